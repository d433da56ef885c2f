"""What a stage left: the model, and what it took."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tunesmith.models.model import Model


@dataclass(frozen=True)
class Taken:
    """What the training of a stage took, or of several together.

    Attributes:
        seconds: Wall-clock time of the updates, or of a fit: what is lost with a kill does not count.
        tokens: Real tokens trained on (no padding).
        peak_memory_bytes: The most memory of any of them.
    """

    seconds: float = 0.0
    tokens: int = 0
    peak_memory_bytes: int = 0

    def __add__(self, other: Taken) -> Taken:
        """Both, one after the other."""
        peak = max(self.peak_memory_bytes, other.peak_memory_bytes)
        return Taken(self.seconds + other.seconds, self.tokens + other.tokens, peak)

    def as_facts(self) -> dict[str, Any]:
        """As :attr:`Tuning.facts` has them."""
        return {
            "tokens": self.tokens,
            "tokens_per_second": self.tokens / self.seconds if self.seconds else 0.0,
            "peak_memory_bytes": self.peak_memory_bytes,
        }


@dataclass(frozen=True)
class Tuning:
    """What tuning took, wherever it was done.

    Attributes:
        facts: ``tokens_per_second``, ``peak_memory_bytes``, ``trainable_parameters``, ``total_parameters``, ``tokens``.
        seconds: Wall-clock time of the updates and fits: a part of what the whole run took.
    """

    facts: dict[str, Any]
    seconds: float

    @property
    def taken(self) -> Taken:
        """What can be added up over stages."""
        return Taken(self.seconds, self.facts["tokens"], self.facts["peak_memory_bytes"])


@dataclass(frozen=True)
class Trained(Tuning):
    """The same with the tuned model, which has its best weights."""

    model: Model


def facts_without_updates(model: Model, fitted: int, peak_memory_bytes: int) -> dict[str, Any]:
    """The facts of a stage without updates, in which so many parameters were fitted."""
    parameters = {"trainable_parameters": fitted, "total_parameters": model.total_parameters}
    return parameters | Taken(peak_memory_bytes=peak_memory_bytes).as_facts()
