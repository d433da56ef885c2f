"""All parameters train."""

from __future__ import annotations

from tunesmith.models.model import Model
from tunesmith.recipe import Full


def apply(model: Model, settings: Full) -> None:
    """Let everything train."""
    model.network.requires_grad_(True)
