"""What every objective gives the loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from tunesmith.data.batches import Batch, TokenFile
from tunesmith.data.render import Render
from tunesmith.data.rows import Row
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


@dataclass(frozen=True)
class Experience:
    """What one step of the loop learns from.

    Attributes:
        data: Examples; those of the data set, or what the model wrote just now.
        batches: Rows of each change of the weights; one for all that learn from data.
        metrics: What is logged besides, of the experience as a whole.
    """

    data: TokenFile
    batches: Sequence[np.ndarray]
    metrics: dict[str, float] = field(default_factory=dict)


Measure = Callable[[TokenFile], dict[str, float]]
"""Gives the metrics of a set, ``loss`` among them."""


class Objective(Protocol):
    """What is minimised. Objectives inherit from it: methods that have a body here need none of their own."""

    name: str

    def examples_of(self, rows: Sequence[Row], render: Render) -> tuple[Sequence[Row], Render]:
        """What is learned from, and how it is rendered: the rows themselves, unless an example is made of several."""
        return rows, render

    skips_frozen: bool = True
    """Whether frozen layers may be passed over: the model gets the tokens of an example as they are in the data set,
    each time again, and nothing looks inside its layers."""

    shows_others: bool = False
    """Whether the model is shown tokens that are not in its data: it writes them, or they stand for hidden ones."""

    reads_prompts: bool = False
    """Whether it wants the prompts alone, because the model writes the answers that it learns from."""

    joins_rows: bool = False
    """Whether an example is made of several rows, so that a row which cannot be rendered must be sorted out before."""

    compiles: bool = True
    """Whether the model's layers may be compiled while it is learned by this."""

    def texts(self, data: TokenFile) -> Sequence[TokenFile] | None:
        """All sets whose tokens the model is shown while it learns from ``data``; ``None`` if it is shown others."""
        return None if self.shows_others else [data]

    def start(self, model: Model, sets: list[TokenFile], folder: Path, tell: Listener) -> None:
        """Called once, before any update and before a checkpoint is read.

        Args:
            model: As it is before it learns.
            sets: The training and the validation data.
            folder: For files of its own.
            tell: Told about progress.
        """
        return None

    def restart(self, model: Model, data: TokenFile) -> None:
        """Called instead of :meth:`start` where the model has learned these data by this already, and will again."""
        return None

    def weight_of(self, model: Model, data: TokenFile) -> float:
        """What an example of these data adds to the weight of :meth:`loss`, on the average."""
        return float(data.loss_weight.mean())

    def finish(self, model: Model) -> None:
        """Called once at the end: takes away what ``start`` added to the model."""
        return None

    def experience(self, model: Model, data: TokenFile, rows: np.ndarray, step: int) -> Experience:
        """What a step learns from, given the global batch that is due. The same for the same step, model and state."""
        return Experience(data, [rows])

    def enough(self, metrics: dict[str, float]) -> bool:
        """Whether the model has learned enough from the present experience, given the metrics of its last change."""
        return False

    def validate(self, model: Model, data: TokenFile, measure: Measure) -> dict[str, float]:
        """Metrics on the validation data, ``loss`` among them.

        Args:
            model: As it is now.
            data: The validation data.
            measure: Gives the mean of :meth:`loss` over a set, and its :meth:`metrics`.
        """
        return measure(data)

    def state(self) -> dict[str, float]:
        """What a resumed run must know besides the weights."""
        return {}

    def load_state(self, state: dict[str, float]) -> None:
        """Take back what :meth:`state` gave."""
        return None

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
