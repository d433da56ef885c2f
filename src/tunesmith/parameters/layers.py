"""The last layers and the head train; what lies below is frozen, and no gradient is computed for it."""

from __future__ import annotations

from tunesmith.errors import RecipeError
from tunesmith.models.model import Model
from tunesmith.parameters.head import train_head
from tunesmith.recipe import Layers


def apply(model: Model, settings: Layers) -> None:
    """Freeze everything but the last layers, the norm behind them and the head.

    Raises:
        RecipeError: The model has fewer layers.
    """
    blocks = model.blocks()
    if settings.count > len(blocks):
        raise RecipeError(
            f"{model.name} has {len(blocks)} layers, so the last {settings.count} cannot be chosen",
            where="parameters.layers",
            fix=f"use `last {len(blocks)}` or fewer, or `kind: full`",
        )
    model.network.requires_grad_(False)
    for block in blocks[-settings.count :]:
        block.requires_grad_(True)
    for name, module in model.transformer().named_modules():
        if name.rsplit(".", 1)[-1] in ("norm", "final_layernorm", "ln_f"):  # the one norm behind the last layer
            module.requires_grad_(True)
    train_head(model)


def learning_rate(form: str) -> float:
    """Twice the rate of full training: fewer layers move (cf. Howard & Ruder 2018, arXiv 1801.06146)."""
    return 4e-5 if form == "generate" else 1e-4
