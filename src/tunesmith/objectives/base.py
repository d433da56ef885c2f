"""What every objective gives the loop."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from tunesmith.data.batches import Batch, TokenFile
from tunesmith.events import Listener
from tunesmith.models.model import Model


@dataclass
class LossSum:
    """A loss before anything was divided.

    Attributes:
        total: Scalar, the weighted sum of the losses of a micro-batch's items (tokens or examples).
        weight: The sum of those weights.
        metrics: Further sums, of which :meth:`Objective.metrics` makes what is logged (e.g. correct tokens).
    """

    total: torch.Tensor
    weight: float
    metrics: dict[str, torch.Tensor] = field(default_factory=dict)


class Objective(Protocol):
    """What is minimised. Objectives inherit from it: methods that have a body here need none of their own."""

    name: str

    def prepare(self, batch: Batch, sampler: Any) -> Batch:
        """Turn a batch into what ``loss`` needs; mostly it is that already."""
        return batch

    def start(self, model: Model, sets: list[TokenFile], tell: Listener) -> None:
        """Called once with the model as it is before any update, and the training and validation data."""

    def loss(self, model: Model, batch: Batch) -> LossSum:
        """The summed loss of a micro-batch, differentiable in the model's trainable parameters."""
        ...

    def metrics(self, sums: dict[str, float], weight: float) -> dict[str, float]:
        """What is logged, from the sums of a whole batch or set: their means over what the loss is a mean over."""
        return means(sums, weight)

    def score(self, metrics: dict[str, float]) -> list[float]:
        """Order of validation results: the greater list is the better one."""
        ...


def means(sums: dict[str, float], weight: float) -> dict[str, float]:
    """Sums divided by the weight that the loss is divided by."""
    return {name: value / weight for name, value in sums.items()}
