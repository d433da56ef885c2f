"""Heads that give a number: what is folded into them after training, and how grades are read off."""

from __future__ import annotations

import torch
from torch import nn

from tunesmith.models.model import Model


def above_probabilities(logits_BK: torch.Tensor) -> torch.Tensor:
    """P(grade > k) for k = 0 ... K-1, (B, K): the running product of conditional probabilities (arXiv 2111.08851)."""
    return torch.sigmoid(logits_BK).cumprod(dim=-1)


def output_layer(model: Model) -> nn.Linear:
    """The last linear layer of the head; where an adapter keeps the old one beside it, the one that trains."""
    layers = [
        module
        for name, module in model.network.named_modules()
        if isinstance(module, nn.Linear) and set(name.split(".")) & set(model.head_names)
    ]
    return ([layer for layer in layers if layer.weight.requires_grad] or layers)[-1]


def unfold_scale(model: Model, mean: float, spread: float) -> None:
    """Undo :func:`fold_scale`: let a head that gives scores give standardised ones again."""
    layer = output_layer(model)
    with torch.no_grad():
        layer.weight.div_(spread)
        if layer.bias is not None:
            layer.bias.sub_(mean).div_(spread)
    model.scale = (mean, spread)


def fold_scale(model: Model) -> None:
    """Let the outputs of a head that learned standardised scores be scores: mean + deviation x output."""
    mean, spread = model.scale
    if (mean, spread) == (0.0, 1.0):
        return
    layer = output_layer(model)
    with torch.no_grad():
        layer.weight.mul_(spread)
        if layer.bias is not None:
            layer.bias.mul_(spread).add_(mean)
    model.scale = (0.0, 1.0)
