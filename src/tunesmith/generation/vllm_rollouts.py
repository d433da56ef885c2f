"""Answers of a model that is being trained, written by vLLM, which on a GPU is much faster than the running batch.

vLLM holds the frozen base and gets the adapter anew each time, so what it writes is what the model thinks now. It works
in this process, beside the model in training, and leaves it room.
"""

from __future__ import annotations

import os
import shutil
import zlib
from collections.abc import Sequence
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from tunesmith.errors import MissingExtraError, RecipeError
from tunesmith.models.model import Model
from tunesmith.models.plain_lora import save_on_the_first_base

MEMORY_SHARE = 0.35
"""Of the GPU's memory, for vLLM's copy of the base and its keys and values; the rest is for training."""

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as the largest rank of an adapter."""


class VLLMRollouts:
    """Writes with vLLM.

    Args:
        model: A causal model with LoRA.

    Raises:
        MissingExtraError: vLLM is not installed.
        RecipeError: The model has no LoRA, or one that vLLM does not take.
    """

    def __init__(self, model: Model) -> None:
        rank = _rank(model)
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # the engine in this process, on this GPU
        try:
            from vllm import LLM
        except ImportError as error:
            raise MissingExtraError("vllm", "vllm", "`rollouts: {engine: vllm}`") from error
        self.llm: Any = LLM(
            model=str(model.folder),
            dtype=str(model.dtype).removeprefix("torch."),
            max_model_len=model.max_length,
            enable_lora=True,
            max_lora_rank=rank,
            max_loras=1,
            gpu_memory_utilization=MEMORY_SHARE,
            seed=0,
        )
        self._folder = Path(mkdtemp(prefix="tunesmith-adapter-"))
        self._number = 0

    def write(
        self, model: Model, prompts: Sequence[list[int]], rooms: Sequence[int], temperature: float, seed: str
    ) -> tuple[list[list[int]], list[int | None]]:
        """An answer to each prompt in its room (tokens), without the EOS that ended it, and that EOS if one did."""
        from vllm import SamplingParams

        sampling = [
            SamplingParams(
                max_tokens=room,
                temperature=temperature,
                seed=zlib.crc32(f"{seed}:{number}".encode()),
                stop_token_ids=list(model.eos_ids),
                detokenize=False,
            )
            for number, room in enumerate(rooms)
        ]
        asked = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        answers = self.llm.generate(asked, sampling, lora_request=self._adapter(model), use_tqdm=False)
        written: list[list[int]] = []
        ends: list[int | None] = []
        for answer in answers:
            [found] = answer.outputs
            tokens, finished = list(found.token_ids), found.finish_reason == "stop"
            last = tokens.pop() if finished and tokens and tokens[-1] in model.eos_ids else model.end_id
            written.append(tokens)
            ends.append(last if finished else None)
        return written, ends

    def _adapter(self, model: Model) -> Any:
        """The adapter as it is now, under a number that vLLM has not seen; the last one's files go."""
        from vllm.lora.request import LoRARequest

        shutil.rmtree(self._folder / str(self._number), ignore_errors=True)
        self._number += 1
        folder = self._folder / str(self._number)
        wrapped: Any = model.wrapped
        own = {name: value for name, value in wrapped.state_dict().items() if name.startswith("base_model.")}
        wrapped.save_pretrained(str(folder), state_dict=own)  # without what an objective has put beside the model
        if model.first_weights:
            save_on_the_first_base(folder, model.first_weights)
        return LoRARequest(f"policy-{self._number}", self._number, str(folder))

    def close(self) -> None:
        """Remove the adapter's files."""
        shutil.rmtree(self._folder, ignore_errors=True)


def _rank(model: Model) -> int:
    """The largest rank that vLLM has to make room for."""
    config: Any = getattr(model.wrapped, "peft_config", {}).get("default")
    if getattr(getattr(config, "peft_type", None), "value", None) != "LORA" or config.modules_to_save:
        raise RecipeError(
            "vLLM gets the weights of each step as a LoRA adapter, and this model learns in another way",
            where="training.rollouts.engine",
            fix="use `parameters: {kind: lora}` without `modules_to_save`, or `rollouts: {engine: own}`",
        )
    needed = max([config.r, *config.rank_pattern.values()]) * (2 if model.first_weights else 1)
    fitting = [rank for rank in RANKS if rank >= needed]
    if not fitting or config.use_dora:
        raise RecipeError(
            f"vLLM takes no DoRA and no adapter of rank {needed}",
            where="training.rollouts.engine",
            fix=f"use plain LoRA of a rank up to {RANKS[-1]}, or `rollouts: {{engine: own}}`",
        )
    return fitting[0]
