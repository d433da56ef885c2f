"""How fast models answer on this machine, one text at a time and eight at once, measured in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from tunesmith.compression.modules import NarrowLinear
from tunesmith.models import inference
from tunesmith.models.model import Model

BATCHES = (1, 8)
ROUNDS = 5
WRITTEN = 24
"""Tokens written in one trial: enough that reading the prompt is a small part."""
LONGEST_PROMPT = 64


@dataclass(frozen=True)
class Speed:
    """One model at one batch size.

    Attributes:
        batch: Texts at once.
        seconds: Of a text read and classified, or of a token written: the median of the trials.
        tokens_per_second: Read (by models with a head) or written; by the fastest trial, as others work here too.
    """

    batch: int
    seconds: float
    tokens_per_second: float


def measure_in_turns(models: Mapping[str, Model], texts: Sequence[Sequence[int]]) -> dict[str, list[Speed]]:
    """Let models work on the same tokens in turns, so that a busy machine slows all of them.

    Args:
        models: Name -> model; all of one form.
        texts: Token lists, at least one: prompts for models that write, else whole texts.
    """
    found: dict[str, list[Speed]] = {name: [] for name in models}
    for batch in BATCHES:
        chosen = [list(texts[n % len(texts)]) for n in range(batch)]
        trials = {name: _trial(model, chosen) for name, model in models.items()}
        took: dict[str, list[tuple[int, float]]] = {name: [] for name in models}
        for round_ in range(ROUNDS + 1):  # the first one warms up
            for name, trial in trials.items():
                started = time.perf_counter()
                tokens = trial()
                if round_:
                    took[name].append((tokens, time.perf_counter() - started))
        for name, times in took.items():
            writes = models[name].form in ("generate", "seq2seq")
            each = [seconds / (tokens / batch if writes else batch) for tokens, seconds in times]
            found[name].append(
                Speed(batch, statistics.median(each), max(tokens / seconds for tokens, seconds in times))
            )
    return found


def _trial(model: Model, texts: list[list[int]]) -> Callable[[], int]:
    if model.form in ("generate", "seq2seq"):
        prompts = [text[:LONGEST_PROMPT] for text in texts]

        def write() -> int:
            ends, model.eos_ids = model.eos_ids, []  # all write equally much
            try:
                written = inference.generate(model, prompts, max_new_tokens=WRITTEN)
            finally:
                model.eos_ids = ends
            return sum(len(tokens) for tokens in written)

        return write
    width = max(len(text) for text in texts)
    ids = torch.tensor([text + [model.pad_id] * (width - len(text)) for text in texts], device=model.device)
    mask = torch.tensor([[1] * len(text) + [0] * (width - len(text)) for text in texts], device=model.device)

    def read() -> int:
        with torch.inference_mode():
            model.network(input_ids=ids, attention_mask=mask)
        return sum(len(text) for text in texts)

    return read


def memory_bytes(network: nn.Module) -> int:
    """What the weights take in memory as they are used now: after a pass, narrow ones in the form of their way."""
    total = sum(module.packed_bytes for module in network.modules() if isinstance(module, NarrowLinear))
    seen = {tensor.data_ptr(): tensor.nbytes for tensor in [*network.parameters(), *network.buffers()]}
    return total + sum(seen.values()) + int(getattr(network, "file_bytes", 0))


def as_dict(speeds: Sequence[Speed]) -> list[dict[str, Any]]:
    """For JSON."""
    return [asdict(speed) for speed in speeds]
