"""Models in memory: one base serves many adapters, and what was not used for longest makes room.

A base, or a model that was tuned as a whole, is a :class:`Host`: a network with the engine that runs it. A plain LoRA
adapter joins the host of its base; what is more than that gets a host of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import itertools
import logging
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from starlette.concurrency import run_in_threadpool

from tunesmith.data.render import ConversationRenderer
from tunesmith.server.errors import ApiError
from tunesmith.server.model_sizes import artefact_bytes, bytes_per_token, loaded_bytes, stored_bytes

if TYPE_CHECKING:
    from tunesmith.generation.constraints import Grammars
    from tunesmith.generation.engine import LoadedAdapters, TextEngine
    from tunesmith.models.model import Model
    from tunesmith.models.saving import ArtefactNotes

log = logging.getLogger("tunesmith.server")

Result = TypeVar("Result")
EngineName = Literal["own", "vllm"]
LEAST_TOKENS = 256
"""Tokens of prompt and answer together that a model must have room for, to be of any use."""


@dataclass(eq=False)
class Host:
    """A network in memory, and the one thread that runs it.

    Attributes:
        model: The network; for a base it may come to carry adapters.
        engine: Writes text; ``None`` if the model cannot.
        adapters: Those that are loaded; ``None`` where none can join.
        bytes: Memory of the weights, and of the keys and values that it may keep.
        touched: When it was used last, in uses of the pool.
        executor: Runs what is asked of a model that does not write.
        lock: Held while its tokenizer is used: its settings change from call to call.
    """

    model: Model
    engine: TextEngine | None
    adapters: LoadedAdapters | None
    bytes: int
    touched: int = 0
    executor: ThreadPoolExecutor | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def call(self, function: Callable[[], Result]) -> Future[Result]:
        """Run something with the model in the host's own thread."""
        if self.engine is not None:
            return self.engine.call(function)
        assert self.executor is not None
        return self.executor.submit(function)

    def close(self) -> None:
        """Stop the thread."""
        if self.engine is not None:
            self.engine.close()
        if self.executor is not None:
            self.executor.shutdown(cancel_futures=True)

    @functools.cached_property
    def grammars(self) -> Grammars:
        """What makes answers be JSON. Takes a second the first time."""
        from tunesmith.generation.constraints import Grammars

        return Grammars(self.model.tokenizer, self.model.eos_ids)


@dataclass(eq=False)
class Loaded:
    """A model that clients can name, in memory.

    Attributes:
        id: Its name.
        host: The network.
        adapter: Name of the adapter on it; ``None`` for all of the host.
        renderer: Of its conversations, as in training; ``None`` if it does not write.
        notes: What the artefact says of itself; ``None`` for a base.
        bytes: Memory beside the host's.
        lock: Held while its tokenizer is used; the host's, unless the tokenizer is its own.
        turn: Held around a rendering, so that requests wait for a slow template without a thread each.
    """

    id: str
    host: Host
    adapter: str | None
    renderer: ConversationRenderer | None
    notes: ArtefactNotes | None
    bytes: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0
    touched: int = 0


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much the pool may use.

    Attributes:
        memory_bytes: Weights, adapters, and keys and values of all models together; ``None``: half of what is free
            on the device when the first model is loaded.
        max_rows: Answers that one model writes at a time.
        queue_limit: Requests that may wait for one model.
        engine: What writes the text of bases and of adapters on them: ``own`` or ``vllm``.
    """

    memory_bytes: int | None = None
    max_rows: int = 64
    queue_limit: int = 256
    engine: EngineName = "own"

    def cache_bytes(self, weights: int) -> int:
        """What one host may keep in keys and values: a quarter of all, and half of what its weights leave at most.

        The other half is for adapters.

        Args:
            weights: Bytes of the host's weights.
        """
        limit = self.memory_bytes or 0
        return min(limit // 4, (limit - weights) // 2)


class Pool:
    """Loads models as they are asked for. For one event loop; the work is done in threads."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._loaded: dict[str, Loaded] = {}
        self._hosts: dict[tuple[str, str], Host] = {}
        self._loading = asyncio.Lock()
        self._lock = threading.Lock()  # what is being taken is not thrown out at the same moment
        self._clock = itertools.count(1)
        self._tokens_of_gone = 0

    @property
    def bytes(self) -> int:
        """Memory that all models take, or may come to take while they write."""
        return sum(h.bytes for h in self._hosts.values()) + sum(m.bytes for m in self._loaded.values())

    @property
    def tokens_written(self) -> int:
        """By all models since the start, also by those that are no longer in memory."""
        return self._tokens_of_gone + sum(host.engine.tokens_written for host in self.hosts() if host.engine)

    def names(self) -> list[str]:
        """What is in memory, longest unused first."""
        return [m.id for m in sorted(self._loaded.values(), key=lambda m: m.touched)]

    def hosts(self) -> list[Host]:
        """The networks in memory."""
        return list(self._hosts.values())

    @contextlib.asynccontextmanager
    async def use(self, name: str, folder: Callable[[], Path]) -> AsyncIterator[Loaded]:
        """A model, loaded if need be, that stays in memory within the block.

        Args:
            name: As clients call it.
            folder: Finds its folder, which holds a base or what a run made; called in a thread.

        Raises:
            ApiError: 503: it does not fit beside what is being used; 507: it never does.
        """
        found = self._take(name)
        if found is None:
            async with self._loading:
                found = self._take(name)
                if found is None:
                    await run_in_threadpool(self._load, name, folder)
                    found = self._take(name)
        assert found is not None
        try:
            yield found
        finally:
            with self._lock:
                found.users -= 1

    def _take(self, name: str) -> Loaded | None:
        """A model that is in memory, held there from now on."""
        with self._lock:
            found = self._loaded.get(name)
            if found is not None:
                found.touched = found.host.touched = next(self._clock)
                found.users += 1
            return found

    async def drop(self, name: str) -> None:
        """Take a model out of memory: it was deleted. Answers that are being written with it fail."""
        async with self._loading:
            if name in self._loaded:
                with self._lock:
                    finish = self._evict(self._loaded[name])
                await run_in_threadpool(finish)

    def close(self) -> None:
        """Stop everything."""
        for host in self._hosts.values():
            host.close()
        self._hosts.clear()
        self._loaded.clear()

    # --- loading (one at a time, in a thread) ------------------------------------------------------------------------

    def _load(self, name: str, folder: Callable[[], Path]) -> Loaded:
        from tunesmith.generation.adapters import is_plain_lora
        from tunesmith.models.bases import find_base
        from tunesmith.models.precision import choose_dtype, default_device
        from tunesmith.models.saving import NOTES, read_notes
        from tunesmith.planning.machine import free_memory

        place = folder()
        if self.limits.memory_bytes is None:
            self.limits = dataclasses.replace(self.limits, memory_bytes=free_memory(default_device()) // 2)
        dtype = str(choose_dtype("auto", default_device())).removeprefix("torch.")
        if not (place / NOTES).is_file():
            return self._add(name, self._base(place, dtype), None)
        notes = read_notes(place)
        joins = notes.adapter and notes.form == "generate" and is_plain_lora(place) and not notes.new_tokens
        if joins and notes.quantization == "none":  # else it learned beside narrowed weights, and was measured on them
            # vLLM takes its share of the GPU for each base: one in several precisions would not fit
            base = find_base(notes, place, fetch=False)  # nobody else could load a model while gigabytes come
            host = self._base(base, dtype if self.limits.engine == "vllm" else notes.dtype)
            if host.adapters is not None:
                return self._add_adapter(name, host, place, notes)
        return self._add(name, self._tuned(place, notes), notes)

    def _base(self, place: Path, dtype: str) -> Host:
        """The host of a base in a precision."""
        import torch

        from tunesmith.models.load import load_config, load_model, natural_form
        from tunesmith.models.precision import default_device

        key = (str(place.resolve()), dtype)
        if key not in self._hosts:
            writes = natural_form(load_config(place)) == "generate"
            by_vllm = writes and self.limits.engine == "vllm"
            self._make_room(stored_bytes(place, getattr(torch, dtype)))
            device = torch.device("meta") if by_vllm else default_device()
            with device if by_vllm else contextlib.nullcontext():
                model = load_model(place, name=place.name, dtype=getattr(torch, dtype), device=device, empty=by_vllm)
            self._hosts[key] = self._start_vllm(model, dtype) if by_vllm else self._start(model, shared=True)
        return self._hosts[key]

    def _tuned(self, place: Path, notes: ArtefactNotes) -> Host:
        """The host of what a run made, in its own precision."""
        from tunesmith.models.precision import default_device
        from tunesmith.models.saving import load_artefact

        key = (str(place.resolve()), "as tuned")
        if key not in self._hosts:
            self._make_room(artefact_bytes(place, notes))
            self._hosts[key] = self._start(load_artefact(place, device=default_device())[0], shared=False)
        return self._hosts[key]

    def _start(self, model: Model, *, shared: bool) -> Host:
        """Start the thread of a network that was loaded; ``shared``: adapters may join it."""
        from tunesmith.generation.adapters import Adapters
        from tunesmith.generation.batch import RunningBatch, unsupported
        from tunesmith.generation.engine import Engine

        if model.form != "generate" or unsupported(model):
            size = self._settled(loaded_bytes(model), 0)
            return Host(model, None, None, size, executor=ThreadPoolExecutor(1, thread_name_prefix="model"))
        cache = self._cache_of(model)
        size = self._settled(loaded_bytes(model), cache)
        adapters = Adapters(model) if shared else None
        batch = RunningBatch(
            model,
            max_rows=self.limits.max_rows,
            cache_tokens=cache // bytes_per_token(model),
            adapters=adapters,
        )
        return Host(model, Engine(batch, queue_limit=self.limits.queue_limit), adapters, size)

    def _start_vllm(self, model: Model, dtype: str) -> Host:
        """A host whose weights are vLLM's; ``model`` has none."""
        from tunesmith.generation.batch import context_length
        from tunesmith.generation.vllm_engine import VllmEngine

        cache = self._cache_of(model)
        size = self._settled(loaded_bytes(model), cache)
        engine = VllmEngine(
            model.folder,
            dtype=dtype,
            eos_ids=model.eos_ids,
            context=min(context_length(model), cache // bytes_per_token(model)),
            memory_bytes=size,
            max_rows=self.limits.max_rows,
            queue_limit=self.limits.queue_limit,
        )
        return Host(model, engine, engine.adapters, size)

    def _cache_of(self, model: Model) -> int:
        """Bytes for its keys and values: its share, as far as it is free and of use.

        Where less is free than one answer of full length takes, what idles shall make room.
        """
        from tunesmith.generation.batch import context_length, slot_length

        def taking(tokens: int) -> int:
            return slot_length(model, tokens) * bytes_per_token(model)

        whole, weights = taking(context_length(model)), loaded_bytes(model)
        share = min(self.limits.cache_bytes(weights), self.limits.max_rows * whole)
        free = (self.limits.memory_bytes or 0) - self.bytes - weights
        if free < whole:
            free += sum(host.bytes for host in self._idle_hosts())
        return max(taking(min(LEAST_TOKENS, context_length(model))), min(share, free))

    def _settled(self, weights: int, cache: int) -> int:
        """What a loaded model takes, for which there is room now: what its files told was a guess."""
        self._make_room(weights + cache)
        return weights + cache

    def _add(self, name: str, host: Host, notes: ArtefactNotes | None) -> Loaded:
        model = host.model
        renderer = ConversationRenderer(model.tokenizer, model.max_length, model.eos_ids) if host.engine else None
        return self._remember(Loaded(name, host, None, renderer, notes, lock=host.lock))

    def _add_adapter(self, name: str, host: Host, place: Path, notes: ArtefactNotes) -> Loaded:
        from tunesmith.models.load import load_tokenizer

        assert host.adapters is not None
        size = stored_bytes(place, host.model.dtype)
        self._make_room(size, keep=host)
        host.call(functools.partial(host.adapters.load, name, place)).result()
        renderer = ConversationRenderer(load_tokenizer(place), host.model.max_length, host.model.eos_ids)
        return self._remember(Loaded(name, host, name, renderer, notes, size))

    def _remember(self, loaded: Loaded) -> Loaded:
        self._loaded[loaded.id] = loaded
        log.info("loaded %s: %d MB are taken by models now", loaded.id, self.bytes // 2**20)
        return loaded

    # --- making room -------------------------------------------------------------------------------------------------

    def _make_room(self, wanted: int, keep: Host | None = None) -> None:
        """Drop what was not used for longest, until so many bytes are free beside what stays.

        Raises:
            ApiError: 503: all is being used; 507: there is never as much.
        """
        limit = self.limits.memory_bytes or 0
        least = wanted + (keep.bytes if keep else 0)
        if least > limit:
            raise ApiError(
                507,
                f"The model needs {least / 2**20:.0f} MB, and {limit / 2**20:.0f} MB are set aside for models.",
                code="model_too_large",
                param="model",
            )
        while self.bytes + wanted > limit:
            with self._lock:
                idle = self._idle_adapters() + [host for host in self._idle_hosts() if host is not keep]
                finish = self._evict(min(idle, key=lambda found: found.touched)) if idle else None
            if finish is None:
                raise ApiError(
                    503,
                    "All models in memory are being used; this one must wait until one of them is not.",
                    code="models_busy",
                    param="model",
                    headers={"Retry-After": "5"},
                )
            finish()

    def _idle_adapters(self) -> list[Loaded | Host]:
        return [model for model in self._loaded.values() if model.adapter and not model.users]

    def _idle_hosts(self) -> list[Host]:
        """Hosts that nobody uses and that carry no adapter."""
        needed = {id(model.host) for model in self._loaded.values() if model.adapter or model.users}
        return [host for host in self._hosts.values() if id(host) not in needed]

    def _evict(self, found: Loaded | Host) -> Callable[[], None]:
        """Let nobody find a model any more; calling what is returned frees its memory."""
        if isinstance(found, Loaded) and found.adapter is not None:
            del self._loaded[found.id]
            log.info("dropping %s from memory", found.id)
            drop = found.host.call(functools.partial(_drop_adapter, found.host, found.adapter))
            return lambda: drop.result()
        host = found.host if isinstance(found, Loaded) else found
        self._loaded = {name: model for name, model in self._loaded.items() if model.host is not host}
        self._hosts = {key: known for key, known in self._hosts.items() if known is not host}
        self._tokens_of_gone += host.engine.tokens_written if host.engine else 0
        log.info("dropping %s from memory", host.model.name)
        return host.close


def _drop_adapter(host: Host, name: str) -> None:
    assert host.engine is not None and host.adapters is not None
    host.engine.withdraw(name)
    host.adapters.drop(name)
