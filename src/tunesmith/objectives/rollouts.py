"""What the model writes while it learns: answers, their rewards, and what it thought of their tokens."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tunesmith.arrays import FloatArray
from tunesmith.data.batches import TokenFile, collate, micro_batches, write_tokens
from tunesmith.data.render import Rendered
from tunesmith.data.rows import Row
from tunesmith.data.thoughts import written_text
from tunesmith.generation.batch import Request, RunningBatch, Token, unsupported
from tunesmith.generation.sampling import Sampling
from tunesmith.models.inference import TOKENS_A_PASS, generate
from tunesmith.models.model import Model
from tunesmith.objectives.supervised import token_nats
from tunesmith.recipe import Rollouts

if TYPE_CHECKING:
    from tunesmith.generation.vllm_rollouts import VLLMRollouts


@dataclasses.dataclass(frozen=True)
class Sample:
    """An answer of the model.

    Attributes:
        row: The row whose prompt was answered.
        prompt: Its tokens.
        tokens: The answer's, with the EOS that ended it.
        finished: Whether an EOS ended it, rather than the limit.
        text: The answer without special tokens.
    """

    row: Row
    prompt: list[int]
    tokens: list[int]
    finished: bool
    text: str


def write(
    model: Model,
    data: TokenFile,
    rows: Sequence[int],
    *,
    group: int,
    max_new_tokens: int,
    temperature: float,
    seed: str,
    engine: VLLMRollouts | None = None,
) -> list[Sample]:
    """``group`` answers to each prompt, those to one prompt next to each other.

    Each answer has a seed of its own, so the same call with the same weights writes the same again. (vLLM does not
    promise it: what a seed gives may depend on the batch there.)
    """
    model.network.eval()
    prompts = [data.tokens(row).tolist() for row in rows for _ in range(group)]
    rooms = [min(max_new_tokens, max(1, model.max_length - len(prompt))) for prompt in prompts]
    if engine is not None:
        written, ends = engine.write(model, prompts, rooms, temperature, seed)
    elif unsupported(model):
        written, ends = _one_room_at_a_time(model, prompts, rooms, temperature, seed)
    else:
        written, ends = _in_running_batch(model, prompts, rooms, temperature, seed)
    samples = []
    for number, (prompt, tokens, end) in enumerate(zip(prompts, written, ends, strict=True)):
        text = written_text(model.tokenizer, tokens)
        whole = tokens if end is None else [*tokens, end]
        samples.append(Sample(data.rows[rows[number // group]], prompt, whole, end is not None, text))
    return samples


def engine_of(model: Model, settings: Rollouts) -> VLLMRollouts | None:
    """What writes in the place of the running batch, if the settings want it.

    Raises:
        MissingExtraError: It is not installed.
        RecipeError: It does not take this model.
    """
    if settings.engine == "own":
        return None
    from tunesmith.generation.vllm_rollouts import VLLMRollouts

    return VLLMRollouts(model)


def _in_running_batch(
    model: Model, prompts: Sequence[list[int]], rooms: Sequence[int], temperature: float, seed: str
) -> tuple[list[list[int]], list[int | None]]:
    """Answers without their EOS, and the EOS of those that one ended."""
    written: list[list[int]] = [[] for _ in prompts]
    ends: list[int | None] = [None] * len(prompts)

    def hear(number: int, token: Token) -> None:
        if token.choice is not None:
            written[number].append(token.choice.token)
        ends[number] = token.end

    batch = RunningBatch(model)
    for number in sorted(range(len(prompts)), key=lambda n: -len(prompts[n])):
        sampling = Sampling(max_new_tokens=rooms[number], temperature=temperature, seed=f"{seed}:{number}")
        batch.add(Request(prompt=prompts[number], sampling=sampling, on_token=functools.partial(hear, number)))
    batch.run()
    return written, ends


def _one_room_at_a_time(
    model: Model, prompts: Sequence[list[int]], rooms: Sequence[int], temperature: float, seed: str
) -> tuple[list[list[int]], list[int | None]]:
    """The same through transformers, which has one limit for all: one call for each."""
    written: list[list[int]] = [[] for _ in prompts]
    for room in sorted(set(rooms)):
        chosen = [number for number, own in enumerate(rooms) if own == room]
        asked = [prompts[number] for number in chosen]
        found = generate(model, asked, max_new_tokens=room, temperature=temperature, seed=_number(seed))
        for number, tokens in zip(chosen, found, strict=True):
            written[number] = tokens
    return written, [model.end_id if len(tokens) < room else None for tokens, room in zip(written, rooms, strict=True)]


def _number(seed: str) -> int:
    import zlib

    return zlib.crc32(seed.encode())


class Reference:
    """The policy as it was at first: with its adapters off, if these began as nothing and all else is frozen.

    Else a frozen copy: the base trains, or the adapters began with a part of it (PiSSA, OLoRA), or with what its
    quantization had lost (LoftQ).
    """

    def __init__(self, model: Model) -> None:
        self._copy: Model | None = None
        if not _only_adapters_train(model):
            network = copy.deepcopy(model.network)
            network.requires_grad_(False)
            self._copy = dataclasses.replace(model, network=network)

    @contextlib.contextmanager
    def of(self, model: Model) -> Iterator[Model]:
        """The reference as a model, for as long as the context lasts."""
        if self._copy is not None:
            yield self._copy
            return
        network: Any = model.network
        with network.disable_adapter():
            yield model


def _only_adapters_train(model: Model) -> bool:
    config: Any = getattr(model.wrapped, "peft_config", {}).get("default")
    if config is None or model.first_weights or getattr(config, "init_lora_weights", True) == "loftq":
        return False
    added = ("lora_", "ia3_", "vera_", "value_head")
    return all(any(mark in name for mark in added) for name, _ in model.trainable())


def to_examples(samples: Sequence[Sample], folder: Path, extra: Sequence[dict[str, list[float]]]) -> TokenFile:
    """Answers behind their prompts as examples; every token of an answer carries loss.

    Args:
        samples: N answers.
        folder: Where the tokens go.
        extra: For each answer, columns with one value for each of its tokens.
    """
    rendered = {}
    for sample, columns in zip(samples, extra, strict=True):
        before = len(sample.prompt)
        whole = {name: [0.0] * before + values for name, values in columns.items()}
        weights = [0.0] * before + [1.0] * len(sample.tokens)
        rendered[id(sample)] = Rendered(sample.prompt + sample.tokens, weights, extra=whole)
    carriers = [Row({"sample": id(sample)}, sample.row.origin) for sample in samples]
    return write_tokens(carriers, lambda row: rendered[row.fields["sample"]], folder)


def log_likelihoods(model: Model, data: TokenFile, temperature: float) -> list[FloatArray]:
    """Log likelihood of each token that carries loss, example by example."""
    found: list[FloatArray] = [np.zeros(0)] * len(data)
    model.network.eval()
    with torch.no_grad():
        for rows in micro_batches(data.lengths, np.arange(len(data)), TOKENS_A_PASS):
            batch = collate(data, rows.tolist(), model.pad_id).to(model.device)
            nats, rows_N, _ = token_nats(model, batch, temperature)
            values, owners = -nats.nats_N.double().cpu().numpy(), rows_N.cpu().numpy()
            for place, row in enumerate(rows.tolist()):
                found[row] = values[owners == place]
    return found


def aligned(batch_column: torch.Tensor, rows_N: torch.Tensor, columns_N: torch.Tensor) -> torch.Tensor:
    """Values of a column with one value a token, at the tokens that carry loss."""
    return batch_column[rows_N, columns_N]
