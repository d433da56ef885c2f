"""An objective around another one: it does all that the inner one does, unless it says otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tunesmith.data.batches import Batch, TokenFile
from tunesmith.data.render import Render
from tunesmith.data.rows import Row
from tunesmith.events import Listener
from tunesmith.models.model import Model
from tunesmith.objectives.base import Experience, LossSum, Measure, Objective


class Wrapped(Objective):
    """The inner objective, to be changed by inheritance."""

    def __init__(self, inner: Objective) -> None:
        self.inner = inner
        self.name = inner.name
        self.reads_prompts = inner.reads_prompts
        self.compiles = inner.compiles
        self.skips_frozen = inner.skips_frozen
        self.shows_others = inner.shows_others
        self.joins_rows = inner.joins_rows

    def examples_of(self, rows: Sequence[Row], render: Render) -> tuple[Sequence[Row], Render]:
        """As the inner one."""
        return self.inner.examples_of(rows, render)

    def texts(self, data: TokenFile) -> Sequence[TokenFile] | None:
        """As the inner one."""
        return self.inner.texts(data)

    def start(self, model: Model, sets: list[TokenFile], folder: Path, tell: Listener) -> None:
        """As the inner one."""
        self.inner.start(model, sets, folder, tell)

    def restart(self, model: Model, data: TokenFile) -> None:
        """As the inner one."""
        self.inner.restart(model, data)

    def weight_of(self, model: Model, data: TokenFile) -> float:
        """As the inner one."""
        return self.inner.weight_of(model, data)

    def finish(self, model: Model) -> None:
        """As the inner one."""
        self.inner.finish(model)

    def experience(self, model: Model, data: TokenFile, rows: np.ndarray, step: int) -> Experience:
        """As the inner one."""
        return self.inner.experience(model, data, rows, step)

    def enough(self, metrics: dict[str, float]) -> bool:
        """As the inner one."""
        return self.inner.enough(metrics)

    def validate(self, model: Model, data: TokenFile, measure: Measure) -> dict[str, float]:
        """As the inner one."""
        return self.inner.validate(model, data, measure)

    def state(self) -> dict[str, float]:
        """As the inner one."""
        return self.inner.state()

    def load_state(self, state: dict[str, float]) -> None:
        """As the inner one."""
        self.inner.load_state(state)

    def loss(self, model: Model, batch: Batch) -> LossSum:
        """As the inner one."""
        return self.inner.loss(model, batch)

    def metrics(self, sums: dict[str, float], weight: float) -> dict[str, float]:
        """As the inner one."""
        return self.inner.metrics(sums, weight)

    def score(self, metrics: dict[str, float]) -> list[float]:
        """As the inner one."""
        return self.inner.score(metrics)
