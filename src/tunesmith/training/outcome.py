"""What a stage left: the model, and what it took."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tunesmith.models.model import Model


@dataclass(frozen=True)
class Tuning:
    """What tuning took, wherever it was done.

    Attributes:
        facts: ``tokens_per_second``, ``peak_memory_bytes``, ``trainable_parameters``, ``total_parameters``, ``tokens``.
        seconds: Wall-clock time of the updates.
    """

    facts: dict[str, Any]
    seconds: float


@dataclass(frozen=True)
class Trained(Tuning):
    """The same with the tuned model, which has its best weights."""

    model: Model


def facts_without_updates(model: Model, fitted: int) -> dict[str, Any]:
    """The facts of a stage without updates, in which so many parameters were fitted."""
    return {
        "trainable_parameters": fitted,
        "total_parameters": model.total_parameters,
        "tokens": 0,
        "tokens_per_second": 0.0,
        "peak_memory_bytes": 0,
    }
