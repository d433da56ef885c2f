"""The numbers of a network that the arithmetic of a step depends on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from tunesmith.models.model import Model
    from tunesmith.planning.dry_run import Scaled
    from tunesmith.planning.machine import Machine


@dataclass(frozen=True)
class Shape:
    """What the arithmetic of a step depends on.

    Attributes:
        layers: Number of transformer layers L.
        trained_layers: How many of them, counted from the output, a gradient passes through.
        layer_weights: Weights of all linear layers inside the layers, without adapters.
        trained_weights: Those of them that train.
        adapter_weights: Parameters of adapters (P).
        head_weights: Weights of the vocabulary's head (V x d); 0 for classes.
        hidden: d.
        feed_forward: ff.
        attention: H x h.
        heads: H.
        causal: Whether a token sees only earlier ones.
    """

    layers: int
    trained_layers: int
    layer_weights: int
    trained_weights: int
    adapter_weights: int
    head_weights: int
    hidden: int
    feed_forward: int
    attention: int
    heads: int
    causal: bool


def shape_of(model: Model, config: Any) -> Shape:
    """Count what the arithmetic needs, layer by layer."""
    from torch import nn

    from tunesmith.models.model import TEXT_HEADS

    blocks = model.blocks()
    trained = [any(p.requires_grad for p in block.parameters()) for block in blocks]
    linear = [
        module.weight
        for block in blocks
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear) and "lora_" not in name
    ]
    adapters = sum(p.numel() for p in model.wrapped.parameters() if p.requires_grad) if model.has_adapters else 0
    writes = model.form not in (*TEXT_HEADS, "tag")
    head = sum(p.numel() for p in model.vocabulary_head().parameters()) if writes else 0
    heads = int(config.num_attention_heads)
    width = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    feed_forward = int(getattr(config, "intermediate_size", None) or 4 * config.hidden_size)
    return Shape(
        layers=len(blocks),
        trained_layers=len(blocks) - trained.index(True) if any(trained) else 0,
        layer_weights=sum(weight.numel() for weight in linear),
        trained_weights=sum(weight.numel() for weight in linear if weight.requires_grad),
        adapter_weights=adapters,
        head_weights=head,
        hidden=int(config.hidden_size),
        feed_forward=feed_forward,
        attention=heads * width,
        heads=heads,
        causal=model.form == "generate",
    )


KEPT = (17.0, 6.0)
"""Values kept a token and layer for the backward pass, in units of d and ff."""
KEPT_SCORES = 2.0
"""The same for attention weights, in units of H x S."""
TRAVERSALS = 150.0
"""How often a layer's activations (d + ff values a token) cross the bus in a step beside the products."""


def flops_per_token(shape: Shape, length: float) -> tuple[float, float]:
    """Floating-point operations a token, without the vocabulary's head: of a training step, and of a forward pass.

    With all weights training this is 6 N + 6 L H h S, with adapters 4 N + 6 P + 6 L H h S. (The last term is that of
    a causal model that skips what it masks; it is twice as much for one that computes all scores.)
    """
    share = shape.trained_layers / shape.layers if shape.layers else 0.0
    attention = (2.0 if shape.causal else 4.0) * shape.layers * shape.attention * length
    forward = 2.0 * (shape.layer_weights + shape.adapter_weights) + attention
    to_inputs = 2.0 * share * (shape.layer_weights + shape.adapter_weights) + 2.0 * share * attention
    return forward + to_inputs + 2.0 * (shape.trained_weights + shape.adapter_weights), forward


def by_formula(model: Model, machine: Machine) -> Scaled:
    """Costs from the sizes of a transformer, for networks that cannot be run without values. Rough."""
    from tunesmith.planning.dry_run import NOTHING, Scaled, Step, Work

    shape = shape_of(model, cast(Any, model.transformer()).config)
    wide = model.dtype.itemsize
    rate = machine.products(model.dtype)
    backward = shape.trained_layers / max(1, shape.layers)
    steps = []
    for unit in ("token", "pair"):
        flops = flops_per_token(shape, 0.0)
        kept = (KEPT[0] * shape.hidden + KEPT[1] * shape.feed_forward) * wide * shape.trained_layers
        moved = (shape.hidden + shape.feed_forward) * wide * shape.layers * TRAVERSALS / machine.copy
        if unit == "pair":
            both_of_pair, forward_of_pair = flops_per_token(shape, 1.0)
            flops = both_of_pair - flops[0], forward_of_pair - flops[1]
            kept, moved = KEPT_SCORES * shape.heads * wide * shape.trained_layers, 0.0
        both, forward = (Work(flops=f, product_seconds=f / rate, kept_bytes=kept, peak_bytes=kept) for f in flops)
        steps.append(
            Step(
                replace(both, element_seconds=moved * (1 + 2 * backward) / 3),
                replace(forward, element_seconds=moved / 3),
            )
        )
    return Scaled(NOTHING, *steps)
