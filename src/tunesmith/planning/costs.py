"""Memory and time of a stage, put together from dry runs, the lengths of the rows and the rates of a machine."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from tunesmith.planning.dry_run import Scaled, Work
from tunesmith.planning.machine import Machine

if TYPE_CHECKING:
    from tunesmith.models.model import Model
    from tunesmith.recipe import Training

BATCHES_LOOKED_AT = 200
"""Batches of an epoch that are laid out one by one; the others are taken to be like them."""
HEAD_TRAVERSALS = (5, 10)
"""How often the scores of the vocabulary cross the bus in a forward pass, and in a whole step: made, widened, their
maximum, norm and softmax, the gradient, and this narrowed (:mod:`tunesmith.objectives.cross_entropy`)."""
SCORE_BYTES = 12
"""Bytes for each score of the vocabulary that exists at one time: in bf16 and fp32, and its gradient."""
OPTIMIZER_BYTES = 40
"""Bytes moved for each weight that trains, in an update: its gradient is read for the norm (4), scaled (8), and AdamW
reads weight, gradient and both moments and writes all but the gradient (28)."""
NARROW_OPTIMIZER_BYTES = 16
"""The same on top where weights are narrower than fp32: summing their gradients (10) and copying the masters (6)."""
NARROW_MOMENT_BYTES = 1 + 4 / 256
"""Of a moment in 8 bits: blocks of 256 share a scale in fp32 (arXiv 2110.02861)."""
COMPILED_SHARE = 0.45
"""What compiling leaves of the time between the products: SmolLM2-135M trained 1.5 times as fast with it."""
COMPILE_SECONDS = 60.0
"""Warming up took 27 to 134 s for 5 to 8 widths on two cores."""
ALLOCATOR = {"cpu": 0.25, "cuda": 0.08}
"""What allocators hold beside what is in use, as a share of activations and scores at their most, and on a processor of
gradients, which come and go as well. There the heap keeps what was freed (:mod:`tunesmith.allocator`) and the next
tensors do not fit into all of its gaps: SmolLM2 with LoRA took 1.20 to 1.30 times what was alive in passes of 96 to
1,056 tokens, in bf16 and in fp32."""
LATER_BYTES = 90 * 2**20
"""What the process grows by between the plan and the training, besides the model: more imports, tokens, buffers. Runs
of 5 to 20 s grew by 40 to 110 MB (docs/plan-accuracy.md)."""


@dataclass(frozen=True)
class Range:
    """A quantity: what is expected, and what it will hardly fall below or exceed."""

    low: float
    expected: float
    high: float

    def __add__(self, other: Range) -> Range:
        return Range(self.low + other.low, self.expected + other.expected, self.high + other.high)

    def times(self, factor: float) -> Range:
        """All three multiplied."""
        return Range(self.low * factor, self.expected * factor, self.high * factor)

    def as_dict(self, digits: int | None = None) -> dict[str, float]:
        """Low and high as scripts read them."""
        return {"low": round(self.low, digits), "high": round(self.high, digits)}


NOTHING = Range(0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Sample:
    """What the rendered sample says about the rows.

    Attributes:
        lengths: (N,) tokens of each training row: the sample's, repeated.
        validation_tokens: Tokens of the validation rows.
        loss_share: Share of the tokens that carry loss.
        cut_share: Share of the rows that are cut to fit.
        words: Different tokens in all training rows.
    """

    lengths: np.ndarray
    validation_tokens: int
    loss_share: float
    cut_share: float
    words: float

    @property
    def typical_length(self) -> float:
        """The length S that attention sees, sum of squares over sum."""
        return float((self.lengths.astype(float) ** 2).sum() / max(1, self.lengths.sum()))


@dataclass(frozen=True)
class Passes:
    """Forward passes with what they compute, padding included.

    Attributes:
        count: How many.
        tokens: In sum.
        pairs: Pairs of tokens that attention looks at, in sum.
        largest: Tokens and pairs of the pass that needs most memory.
    """

    count: float
    tokens: float
    pairs: float
    largest: tuple[float, float]

    def times(self, factor: float) -> Passes:
        """The same over and over."""
        return Passes(self.count * factor, self.tokens * factor, self.pairs * factor, self.largest)


def epoch_passes(sample: Sample, training: Training, *, padded: bool) -> tuple[int, Passes]:
    """Updates of one epoch, and its passes, laid out as the loop lays them out."""
    from tunesmith.training.loop import WIDTH_MULTIPLE, batches_of_epoch

    batches = batches_of_epoch(sample.lengths, training, 0)
    stride = -(-len(batches) // BATCHES_LOOKED_AT)
    laid_out = list(_rectangles(sample.lengths, batches[::stride], training.micro_tokens or 4096, padded))
    tokens, pairs = (np.array(column, dtype=float) for column in zip(*laid_out, strict=True))
    share = len(batches) / len(batches[::stride])
    most = int(np.argmax(tokens + pairs / (8.0 * WIDTH_MULTIPLE)))  # close enough to where activations are most
    largest = (float(tokens[most]), float(pairs[most]))
    return len(batches), Passes(len(laid_out) * share, tokens.sum() * share, pairs.sum() * share, largest)


def _rectangles(
    lengths: np.ndarray, batches: Iterable[np.ndarray], micro_tokens: int, padded: bool
) -> Iterable[tuple[float, float]]:
    """Tokens and pairs of each forward pass."""
    from tunesmith.data.batches import micro_batches
    from tunesmith.training.loop import WIDTH_MULTIPLE

    for batch in batches:
        for rows in micro_batches(lengths, batch, micro_tokens, WIDTH_MULTIPLE, padded):
            widths = lengths[rows].astype(float)
            if padded:
                widths[:] = -(-widths.max() // WIDTH_MULTIPLE) * WIDTH_MULTIPLE
            yield widths.sum(), (widths**2).sum()


def read_passes(tokens: int, length: float, micro_tokens: int) -> Passes:
    """Passes over tokens that are only read, in rows of a typical length."""
    at_once = float(min(tokens, micro_tokens))
    return Passes(-(-tokens // max(1, micro_tokens)), tokens, tokens * length, (at_once, at_once * length))


@dataclass(frozen=True)
class Network:
    """What a stage trains, as far as its costs go.

    Attributes:
        scaled: Of its dry runs.
        total: Parameters.
        trainable: Those that train.
        unread: Those of them that no text reads, so that they are never updated.
        copied: Those of them that are updated in a copy, whatever they are kept in: word vectors beside unread ones.
        weight_bytes: All weights as they are kept.
        narrow: Whether what trains is narrower than fp32, so that it has masters.
        wide: Bytes of an activation.
        head: Words and width of the vocabulary's head (V, d); zeros where there is none.
        head_trains: Whether it trains.
        compiled: Whether its layers are compiled.
        narrow_moments: Whether the optimizer keeps its moments in 8 bits.
    """

    scaled: Scaled
    total: int
    trainable: int
    unread: float
    copied: float
    weight_bytes: float
    narrow: bool
    wide: int
    head: tuple[int, int]
    head_trains: bool
    compiled: bool = False
    narrow_moments: bool = False

    @property
    def updated(self) -> float:
        """Parameters that an update may change."""
        return self.trainable - self.unread

    @property
    def optimizer_bytes(self) -> float:
        """Two moments of each weight that is updated, and a master where it is narrower than fp32 or copied."""
        moments = NARROW_MOMENT_BYTES if self.narrow_moments else 4 if self.narrow else max(4, self.wide)
        masters = 4 * self.updated if self.narrow else max(4, self.wide) * self.copied
        return 2 * moments * self.updated + masters


def work(network: Network, machine: Machine, passes: Passes, loss_share: float, *, forward: bool = False) -> Work:
    """All that some passes take, the vocabulary's head included."""
    body = network.scaled.work(passes.tokens, passes.pairs, passes=passes.count, forward=forward)
    words, width = network.head
    scores = words * passes.tokens * loss_share
    products = 1 if forward else 3 if network.head_trains else 2
    flops = 2.0 * scores * width * products
    rate = machine.bf16 if network.wide <= 2 else machine.fp32 * 4 / network.wide
    crossing = scores * HEAD_TRAVERSALS[not forward] * max(4, network.wide) / machine.copy
    between = body.element_seconds * (COMPILED_SHARE if network.compiled else 1.0)
    return replace(
        body,
        flops=body.flops + flops,
        product_seconds=body.product_seconds + flops / rate,
        element_seconds=between + crossing,
    )


def seconds(found: Work, machine: Machine) -> float:
    """Time of some work: nothing overlaps, but a GPU starts operations while it works on earlier ones."""
    busy = found.product_seconds + found.element_seconds + found.random_seconds
    starting = found.operations * machine.start_seconds
    return max(busy, starting) if machine.kind == "cuda" else busy + starting


def update_seconds(network: Network, machine: Machine) -> float:
    """Time of changing the weights once."""
    moved = OPTIMIZER_BYTES + (NARROW_OPTIMIZER_BYTES if network.narrow else 0)
    return network.updated * moved / machine.copy


def memory(
    network: Network, machine: Machine, passes: Passes, loss_share: float, *, passes_an_update: float, trains: bool
) -> dict[str, float]:
    """Peak bytes by part.

    Weights narrower than fp32 have, where they train, a gradient of their own, and master, summed gradient and two
    moments in fp32: 18 bytes with the weight itself 20. Wider ones have a gradient and two moments. (ZeRO, arXiv
    1910.02054, section 3.1, counts 16 with the sum kept narrow.) What activations take is read off the dry run; by
    formula it is s b h (34 + 5 a s / h) bytes a layer in 16 bits (arXiv 2205.05198, section 4.1).
    """
    from tunesmith.objectives.cross_entropy import CHUNK_SCORES

    tokens, pairs = passes.largest
    largest = network.scaled.work(tokens, pairs, forward=not trains)
    scores = min(CHUNK_SCORES, network.head[0] * tokens * loss_share)
    wide = max(4, network.wide)
    gradients = network.updated * (wide + (2 if network.narrow else 0)) if trains else 0.0
    activations = alive = largest.peak_bytes if trains else largest.peak_bytes - largest.kept_bytes
    if passes_an_update <= 1 and machine.kind == "cuda":  # gradients come as activations go; a heap keeps the gaps
        activations = max(activations - gradients, activations / 3)
    logits = SCORE_BYTES * scores + (wide * network.head[0] * network.head[1] if network.head_trains else 0)
    return {
        "process": machine.process_bytes + LATER_BYTES if machine.process_bytes else 0.0,
        "weights": network.weight_bytes,
        "gradients": gradients,
        "optimizer": network.optimizer_bytes if trains else 0.0,
        "activations": activations,
        "logits": logits,
        "allocator": ALLOCATOR[machine.kind] * (alive + logits + (gradients if machine.kind == "cpu" else 0.0)),
    }


def weight_bytes(model: Model, wide: int, quantized: str, quantizer: str) -> float:
    """Bytes of all weights: those of a head on a sentence encoder in fp32 at least, a quantized base's with scales."""
    from torch import nn

    from tunesmith.models.quantized import plain_tables

    tables = {id(p) for p in plain_tables(model)} if quantized != "none" and quantizer == "torchao" else set()
    narrow = {"int8": 1.01, "int4": 0.567}.get(quantized, float(wide))
    inside = {
        id(module.weight)
        for block in model.blocks()
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear) and "lora_" not in name
    }
    each = {**dict.fromkeys(inside, narrow), **dict.fromkeys(tables, 1.01)}
    return sum(p.numel() * each.get(id(p), wide) for p in model.network.parameters())
