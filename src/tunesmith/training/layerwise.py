"""Rates and beginnings that differ from layer to layer (ULMFiT; Howard & Ruder 2018, arXiv 1801.06146)."""

from __future__ import annotations

from tunesmith.models.model import Model
from tunesmith.recipe import Training


def depths(model: Model) -> dict[str, int]:
    """How far from the input each parameter that trains is: 0 before the L layers, 1 to L in them, L + 1 behind.

    Parameters are told apart by their place in the network's own order. Where a network has several stacks of layers
    (an encoder and a decoder), those of the largest are counted and the rest lies before or behind it.
    """
    blocks = {id(p): number for number, block in enumerate(model.blocks(), 1) for p in block.parameters()}
    top = len(model.blocks()) + 1
    found: dict[str, int] = {}
    entered = False
    for name, parameter in model.network.named_parameters():
        entered = entered or id(parameter) in blocks
        depth = blocks.get(id(parameter), top if entered else 0)
        if parameter.requires_grad:
            found[name] = depth
    return found


def rates(model: Model, settings: Training) -> dict[str, float]:
    """Factor of the learning rate of each parameter that trains: its own, times the decay for each layer above it."""
    of_depth = depths(model)
    highest = max(of_depth.values(), default=0)
    return {
        name: model.rates.get(name, 1.0) * settings.layer_decay ** (highest - depth) for name, depth in of_depth.items()
    }


def first_updates(model: Model, settings: Training, updates_per_epoch: int) -> dict[str, int]:
    """With gradual unfreezing: the update, counted from 0, in which each parameter begins to train; empty without.

    The layers that train join one by one from the output down, each ``unfreeze_epochs`` after the one above it.
    """
    if settings.unfreeze_epochs is None:
        return {}
    of_depth = depths(model)
    order = sorted(set(of_depth.values()), reverse=True)
    begins = {depth: round(n * settings.unfreeze_epochs * updates_per_epoch) for n, depth in enumerate(order)}
    return {name: begins[depth] for name, depth in of_depth.items()}
