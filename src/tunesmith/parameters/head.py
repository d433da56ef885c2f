"""Only the task's head trains."""

from __future__ import annotations

from tunesmith.errors import RecipeError
from tunesmith.models.model import Model
from tunesmith.recipe import Head


def apply(model: Model, settings: Head) -> None:
    """Freeze everything but the head.

    Raises:
        RecipeError: The model has no head.
    """
    model.network.requires_grad_(False)
    train_head(model)
    if not model.trainable_parameters:
        raise RecipeError(
            f"{model.name} answers by writing text and has no head to train",
            where="parameters.kind",
            fix="use `parameters: {kind: lora}`, or `objective: classify`",
        )


def train_head(model: Model) -> None:
    """Let the task's head, which is new, train."""
    for name in model.head_names:
        model.network.get_submodule(name).requires_grad_(True)
