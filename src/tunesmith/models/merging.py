"""Adding adapters into the weights they stand beside."""

from __future__ import annotations

from typing import Any

from tunesmith.errors import UsageError
from tunesmith.models.load import quiet
from tunesmith.models.model import Model


def merge(model: Model) -> None:
    """Turn a model with adapters into a plain one that gives the same answers.

    Raises:
        UsageError: Its parameters are not of a kind that can be added into the weights.
    """
    if model.virtual_tokens:
        raise UsageError(
            "virtual tokens stand before the text and cannot be added into the weights",
            fix="keep the adapter as it is, or tune with `parameters: {kind: lora}`",
        )
    wrapped: Any = model.wrapped
    with quiet():
        model.wrap(wrapped.merge_and_unload())
