"""All parameters train."""

from __future__ import annotations

from tunesmith.models.model import Model
from tunesmith.recipe import Full


def apply(model: Model, settings: Full) -> None:
    """Let everything train."""
    model.network.requires_grad_(True)


def learning_rate(form: str) -> float:
    """5e-5 for encoders (BERT, arXiv 1810.04805, A.3: 2e-5 to 5e-5), 2e-5 for decoders (Alpaca, Zephyr)."""
    return 2e-5 if form == "generate" else 5e-5
