"""Answers written by vLLM, where it is installed: the same requests, another engine.

vLLM loads the base and the adapters itself, from the folders that a run leaves, and batches continuously on its own.
Rendering, stop strings, text and limits stay ours, so that a client sees no difference but speed. Written against the
interface of vLLM 0.33 (``AsyncLLM``, ``SamplingParams``, ``LoRARequest``).
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import itertools
import json
import logging
import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

from tunesmith.errors import MissingExtraError, ResourceError, UsageError
from tunesmith.generation.batch import Request, Token
from tunesmith.generation.engine import QUEUE_LIMIT, QueueFullError, may_join
from tunesmith.generation.sampling import Choice, Sampling

log = logging.getLogger("tunesmith.generation")

Result = TypeVar("Result")

MAX_RANK = 64
"""Largest rank of an adapter that may join; vLLM keeps so much room for each."""
MAX_ADAPTERS = 8
"""Adapters in one batch; further ones take turns."""
SECONDS_AN_ANSWER = 2.0
"""A guess, to tell a client when to come back."""


class VllmEngine:
    """vLLM's engine in a thread with an event loop of its own. See :class:`tunesmith.generation.engine.Engine`.

    Args:
        folder: A model that transformers can load.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
        eos_ids: Tokens that end an answer.
        context: Tokens of prompt and answer together.
        memory_bytes: Of the GPU, for weights, keys and values.
        max_rows: Answers written at a time.
        queue_limit: Requests that may wait for their first token.

    Raises:
        MissingExtraError: vLLM is not installed.
        ResourceError: It cannot load the model.
    """

    def __init__(
        self,
        folder: Path,
        *,
        dtype: str,
        eos_ids: Sequence[int],
        context: int,
        memory_bytes: int,
        max_rows: int = 64,
        queue_limit: int = QUEUE_LIMIT,
    ) -> None:
        try:
            from vllm import AsyncEngineArgs
            from vllm.v1.engine.async_llm import AsyncLLM
        except ImportError as error:
            raise MissingExtraError("vllm", "vllm", "`--engine vllm`") from error
        self.queue_limit = queue_limit
        self._max_rows = max_rows
        self._tokens_written = 0
        self.adapters = VllmAdapters()
        self._eos_ids = list(eos_ids)
        self.context = context
        self._arriving = 0
        self._tasks: dict[Request, asyncio.Task[Token]] = {}
        self._begun: set[Request] = set()
        self._ids = itertools.count()
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vllm", daemon=True)
        self._thread.start()
        arguments = AsyncEngineArgs(
            model=str(folder),
            dtype=dtype,
            max_model_len=context,
            max_num_seqs=max_rows,
            gpu_memory_utilization=_share_of_gpu(memory_bytes),
            generation_config="vllm",  # no settings but those of a request
            trust_remote_code=False,
            enable_lora=True,
            max_loras=MAX_ADAPTERS,
            max_lora_rank=MAX_RANK,
            enable_prefix_caching=True,
            disable_log_stats=True,
        )

        async def start() -> Any:
            return AsyncLLM.from_engine_args(arguments)

        try:
            self._llm = asyncio.run_coroutine_threadsafe(start(), self._loop).result()
        except Exception as error:  # whatever CUDA, its kernels and vLLM's processes come up with
            self._stop()
            raise ResourceError(f"vLLM cannot load the model: {error}", where=str(folder)) from error

    @property
    def waiting(self) -> int:
        """Requests without a first token."""
        return self._arriving + len(self._tasks) - len(self._begun)

    @property
    def running(self) -> int:
        """Answers that have begun."""
        return len(self._begun)

    @property
    def tokens_written(self) -> int:
        """Tokens of all answers so far."""
        return self._tokens_written

    def submit(self, requests: Sequence[Request]) -> None:
        """Let requests join, all or none.

        Raises:
            QueueFullError: Too many are waiting.
            UsageError: They are more than can ever run and wait.
        """
        with self._lock:
            waiting = self.waiting
            if not may_join(len(requests), waiting, self.queue_limit, self._max_rows + self.queue_limit):
                rounds = math.ceil(waiting / max(1, self.running))
                raise QueueFullError(waiting, max(1, min(60, math.ceil(rounds * SECONDS_AN_ANSWER))))
            self._arriving += len(requests)
        self.call(lambda: self._begin(requests))

    def cancel(self, requests: Sequence[Request]) -> None:
        """Stop requests, wherever they are."""
        self.call(lambda: self._end(requests))

    def call(self, function: Callable[[], Result]) -> Future[Result]:
        """Run something in the engine's thread."""

        async def run() -> Result:
            return function()

        return asyncio.run_coroutine_threadsafe(run(), self._loop)

    def withdraw(self, adapter: str) -> None:
        """An adapter is taken away: its answers end. To be called by what :meth:`call` runs."""
        self._end([request for request in self._tasks if request.adapter == adapter])

    def close(self) -> None:
        """Stop everything; requests that are left are told that they were cancelled."""

        async def finish() -> None:
            tasks = list(self._tasks.values())
            self._end(list(self._tasks))
            await asyncio.gather(*tasks, return_exceptions=True)
            self._llm.shutdown()

        asyncio.run_coroutine_threadsafe(finish(), self._loop).result()
        self._stop()

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # --- in the engine's thread --------------------------------------------------------------------------------------

    def _begin(self, requests: Sequence[Request]) -> None:
        for request in requests:
            self._tasks[request] = self._loop.create_task(self._write(request))
            self._tasks[request].add_done_callback(functools.partial(self._over, request))
        with self._lock:
            self._arriving -= len(requests)

    def _end(self, requests: Sequence[Request]) -> None:
        for request in requests:
            if request in self._tasks:
                self._tasks[request].cancel()

    def _over(self, request: Request, task: asyncio.Task[Token]) -> None:
        """Tell the last token, or that there is none."""
        del self._tasks[request]
        self._begun.discard(request)
        if task.cancelled():
            request.on_token(Token(None, finish_reason="cancelled"))
        elif (error := task.exception()) is not None:
            log.error("vLLM gave an answer up", exc_info=error)
            request.on_token(Token(None, finish_reason="failed"))
        else:
            request.on_token(task.result())

    async def _write(self, request: Request) -> Token:
        """Tell all tokens of an answer but the last, which is the result."""
        text, written = request.text, 0
        most = min(request.sampling.max_new_tokens, self.context - len(request.prompt))
        stream = self._llm.generate(
            {"prompt_token_ids": list(request.prompt)},
            _parameters(request, most, self._eos_ids),
            f"tunesmith-{next(self._ids)}",
            lora_request=self.adapters.request(request.adapter),
        )
        try:
            async for output in stream:
                self._begun.add(request)
                request.reused_tokens = output.num_cached_tokens or 0
                part = output.outputs[0]
                for number, token in enumerate(part.token_ids):
                    if token in self._eos_ids:
                        return Token(None, text.finish() if text else "", "stop")
                    written += 1
                    self._tokens_written += 1
                    choice = _choice(token, part.logprobs[number] if part.logprobs else None, request.sampling)
                    piece = text.push(token) if text else ""
                    if text and text.stopped:
                        return Token(choice, piece, "stop")
                    if written >= most:
                        piece += text.finish() if text else ""
                        return Token(choice, piece, "stop" if text and text.stopped else "length")
                    request.on_token(Token(choice, piece))
                if output.finished:
                    return Token(None, text.finish() if text else "", "stop")
        finally:
            await stream.aclose()  # what is not read to its end is given up in vLLM, too
        return Token(None, finish_reason="failed")


class VllmAdapters:
    """The adapters that requests may name: vLLM reads them from their folders, which are in PEFT's format."""

    def __init__(self) -> None:
        self._requests: dict[str, Any] = {}
        self._numbers = itertools.count(1)

    def __contains__(self, name: str) -> bool:
        return name in self._requests

    def load(self, name: str, folder: Path) -> None:
        """Let requests use an adapter. vLLM loads it when the first one comes.

        Raises:
            ResourceError: Its rank is too large for the room that vLLM was told to keep.
        """
        from vllm.lora.request import LoRARequest

        rank = int(json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["r"])
        if rank > MAX_RANK:
            raise ResourceError(
                f"the adapter has the rank {rank}; with vLLM at most {MAX_RANK} can be served",
                where=str(folder),
                fix="serve it without `--engine vllm`",
            )
        self._requests[name] = LoRARequest(lora_name=name, lora_int_id=next(self._numbers), lora_path=str(folder))

    def drop(self, name: str) -> None:
        """Forget an adapter; a later one of the same name gets another number, so nothing of it is used again."""
        del self._requests[name]

    def request(self, name: str | None) -> Any:
        """What vLLM wants to know of an adapter; ``None`` for the base."""
        return None if name is None else self._requests[name]

    def use_for_all(self, name: str | None) -> AbstractContextManager[None]:
        """Embeddings, which vLLM's engine for text does not compute.

        Raises:
            UsageError: Always.
        """
        raise UsageError("a model that vLLM serves gives no embeddings", fix="serve it without `--engine vllm`")


def _parameters(request: Request, most: int, eos_ids: Sequence[int]) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    sampling = request.sampling
    schema = getattr(request.constraint, "schema", None)
    return SamplingParams(
        max_tokens=most,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        seed=_seed(sampling.seed),
        frequency_penalty=sampling.frequency_penalty,
        presence_penalty=sampling.presence_penalty,
        logit_bias=dict(sampling.logit_bias) or None,
        logprobs=sampling.top_logprobs,
        stop_token_ids=list(eos_ids),
        structured_outputs=None if schema is None else StructuredOutputsParams(json=schema),
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )


def _share_of_gpu(memory_bytes: int) -> float:
    """As vLLM measures memory, with what it computes with: a tenth of the GPU beside what is kept."""
    import torch

    total = torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else memory_bytes
    return min(0.9, memory_bytes / total + 0.1)


def _seed(seed: int | str) -> int:
    """31 bits of whatever names the answer's random numbers."""
    return int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:4]) >> 1


def _choice(token: int, logprobs: Any, sampling: Sampling) -> Choice:
    """A token with the log probabilities that were asked for; vLLM gives the chosen one in any case."""
    if logprobs is None:
        return Choice(token)
    best = sorted(logprobs.items(), key=lambda item: -item[1].logprob)[: sampling.top_logprobs or 0]
    return Choice(token, logprobs[token].logprob, tuple((other, value.logprob) for other, value in best))
