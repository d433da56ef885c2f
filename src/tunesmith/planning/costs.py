"""Arithmetic, memory and time of training steps, from the shape of the network and the lengths of the rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tunesmith.planning.shape import Shape

if TYPE_CHECKING:
    import numpy as np

PRODUCTS = (0.8, 0.4)
"""Share of the probed rate that the matrix products of a training step reach, at best and at worst."""
PASSES = {"cpu": (80.0, 350.0), "cuda": (10.0, 60.0)}
"""How often a layer's activations (d + ff values a token) cross the memory bus in a step beside the products.

Chosen so that four speeds measured on two AMX cores (2,400 GFLOP/s, 25 GB/s) lie inside the range: SmolLM2-135M with
LoRA (759 tokens/s, 1,135 compiled), MiniLM-L6 in full (2,754 with dropout, 3,912 without). The figures for GPUs are
estimates, checked against no measurement.
"""
FORWARD_SHARE = 1 / 3
"""Part of those crossings that a forward pass alone makes."""
KEPT = ((9.0, 4.0), (25.0, 8.0))
"""Values kept a token and layer for the backward pass, in units of d and ff, at least and at most.

Resident memory after a forward pass in bf16 came to about 9 d + 4 ff for MiniLM-L6 in full, and 16 to 24 d + 4 ff for
SmolLM2-135M with LoRA (two runs; the allocator's share is in it).
"""
KEPT_SCORES = {True: (0.8, 1.2), False: (1.0, 3.2)}
"""The same for attention weights, in units of H x S: for causal models (0.83 measured) and for others, which usually
drop some at random and keep the mask as well (3.0 measured)."""
PROCESS_BYTES = (350 * 2**20, 1000 * 2**20)
"""Python with torch and transformers, before any weight."""
SCORE_BYTES = 12
"""Bytes for each score of the vocabulary that exists at one time: in bf16 and fp32, and its gradient."""


@dataclass(frozen=True)
class Range:
    """A quantity between two bounds."""

    low: float
    high: float

    def __add__(self, other: Range) -> Range:
        return Range(self.low + other.low, self.high + other.high)


@dataclass(frozen=True)
class Sample:
    """What the rendered sample says about the rows.

    Attributes:
        lengths: (N,) tokens of each training row: the sample's, repeated.
        validation_tokens: Tokens of the validation rows.
        loss_share: Share of the tokens that carry loss.
        cut_share: Share of the rows that are cut to fit.
    """

    lengths: np.ndarray
    validation_tokens: int
    loss_share: float
    cut_share: float

    @property
    def typical_length(self) -> float:
        """The length S that attention sees, sum of squares over sum."""
        return float((self.lengths.astype(float) ** 2).sum() / max(1, self.lengths.sum()))


def flops_per_token(shape: Shape, length: float, loss_share: float) -> tuple[float, float]:
    """Floating-point operations a token: of a training step, and of a forward pass alone.

    With all weights training this is 6 N + 6 L H h S, with adapters 4 N + 6 P + 6 L H h S (causal; twice the last
    term without a mask), where the vocabulary's part of N counts for the share of tokens that carry loss.
    """
    share = shape.trained_layers / shape.layers if shape.layers else 0.0
    head = shape.head_weights * loss_share
    attention = (2.0 if shape.causal else 4.0) * shape.layers * shape.attention * length
    forward = 2.0 * (shape.layer_weights + shape.adapter_weights + head) + attention
    to_inputs = 2.0 * share * (shape.layer_weights + shape.adapter_weights) + 2.0 * share * attention + 2.0 * head
    to_weights = 2.0 * (shape.trained_weights + shape.adapter_weights)
    if shape.head_weights and shape.trained_weights == shape.layer_weights:
        to_weights += 2.0 * head
    return forward + to_inputs + to_weights, forward


def seconds(
    shape: Shape,
    sample: Sample,
    *,
    trained_tokens: int,
    read_tokens: int,
    machine: dict[str, float],
    device: str,
    wide: int,
) -> Range:
    """Time of training on some tokens and only reading others.

    Products run at a share of the probed rate; everything between them is bound by the memory bus.

    Args:
        shape: Of the network.
        sample: Lengths of the rows.
        trained_tokens: Tokens that go through a training step.
        read_tokens: Tokens that go forward only (validation, features).
        machine: Rates, see :func:`tunesmith.planning.machine.speed`.
        device: ``cpu`` or ``cuda``.
        wide: Bytes of an activation: 2, 4 or 8.
    """
    rate = machine["bf16"] if wide == 2 else machine["fp32"] * 4 / wide
    train, read = flops_per_token(shape, sample.typical_length, sample.loss_share)
    flops = train * trained_tokens + read * read_tokens
    width = (shape.hidden + shape.feed_forward) * wide * shape.layers
    backward = shape.trained_layers / max(1, shape.layers)
    weight = trained_tokens * (FORWARD_SHARE + (1 - FORWARD_SHARE) * backward) + read_tokens * FORWARD_SHARE
    low, high = (
        flops / (share * rate) + passes * width * weight / machine["copy"]
        for share, passes in zip(PRODUCTS, PASSES[device], strict=True)
    )
    return Range(low, high)


def memory(
    shape: Shape, sample: Sample, *, total: int, trainable: int, micro_tokens: int, device: str, wide: int
) -> Range:
    """Peak bytes of training: weights, gradients with optimizer, activations of one forward pass, scores.

    Weights narrower than fp32 have, where they train, a gradient of their own, and master, summed gradient and two
    moments in fp32: 18 bytes. Wider ones have a gradient and two moments.

    Args:
        shape: Of the network.
        sample: Lengths of the rows.
        total: All parameters.
        trainable: Those that train.
        micro_tokens: Tokens of one forward pass, padding included.
        device: ``cpu`` counts the process as well.
        wide: Bytes of a weight and of an activation.
    """
    from tunesmith.objectives.cross_entropy import CHUNK_SCORES

    fixed = total * wide + trainable * (18 if wide == 2 else 3 * wide)
    longest = int(sample.lengths.max()) if len(sample.lengths) else 0
    tokens = min(max(micro_tokens, longest), int(sample.lengths.sum()))
    bounds = []
    lengths = (sample.typical_length, longest)
    for (d, ff), scores, length, process in zip(KEPT, KEPT_SCORES[shape.causal], lengths, PROCESS_BYTES, strict=True):
        a_layer = (d * shape.hidden + ff * shape.feed_forward + scores * shape.heads * length) * wide
        kept = tokens * a_layer * max(1, shape.trained_layers)
        vocabulary = SCORE_BYTES * CHUNK_SCORES if shape.head_weights else 0
        bounds.append(fixed + kept + vocabulary + (process if device == "cpu" else 0))
    return Range(*bounds)
