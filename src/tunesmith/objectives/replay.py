"""Replay: while a task is learned, some examples of earlier tasks are learned again, each with its own task's head.

The oldest remedy against forgetting, and still hard to beat (Ratcliff 1990; Chaudhry et al. 2019, arXiv 1902.10486).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tunesmith.data.batches import Batch, TokenFile, collate
from tunesmith.events import Listener
from tunesmith.models.model import Model
from tunesmith.objectives.base import LossSum, Objective
from tunesmith.objectives.wrapped import Wrapped

_OWN = "own weight"
_DRAWS = 1  # keeps these draws apart from those of an objective that draws by (seed, epoch, row) too


@dataclass(frozen=True)
class Memory:
    """An earlier task.

    Attributes:
        objective: That taught it, started again.
        model: The head it has kept, on the body that trains now; for a model that writes, that model itself.
        data: Its training examples.
    """

    objective: Objective
    model: Model
    data: TokenFile


class Replay(Wrapped):
    """Another objective, beside which earlier examples are learned again.

    Whether an example brings an earlier one along, and which, follows from (seed, epoch, row): so neither a resume nor
    the size of a forward pass changes anything. An earlier example counts as much as one of this stage does on the
    average, whatever each of them is counted in (rows, tokens).

    Args:
        objective: Of this stage.
        memories: The earlier tasks; each is drawn from alike.
        share: How many earlier examples there are for each of this stage.
        seed: Of the draws.
    """

    def __init__(self, objective: Objective, memories: Sequence[Memory], share: float, seed: int) -> None:
        super().__init__(objective)
        self.memories = memories
        self.share = share
        self.seed = seed
        self._scales = [1.0] * len(memories)

    def texts(self, data: TokenFile) -> Sequence[TokenFile] | None:
        """This stage's and those of the memories."""
        found = [self.inner.texts(data), *(memory.objective.texts(memory.data) for memory in self.memories)]
        known = [texts for texts in found if texts is not None]
        return [one for texts in known for one in texts] if len(known) == len(found) else None

    def start(self, model: Model, sets: list[TokenFile], folder: Path, tell: Listener) -> None:
        """Find out what an example of each task weighs on the average."""
        self.inner.start(model, sets, folder, tell)
        own = self.inner.weight_of(model, sets[0])
        self._scales = [own / memory.objective.weight_of(memory.model, memory.data) for memory in self.memories]

    def loss(self, model: Model, batch: Batch) -> LossSum:
        """The sum over this stage's examples and those drawn; what is only measured on brings none along."""
        found = self.inner.loss(model, batch)
        found.metrics[_OWN] = found.total.new_tensor(found.weight)
        if batch.epoch is None:
            return found
        for number, rows in self._drawn(batch.rows, batch.epoch):
            memory, scale = self.memories[number], self._scales[number]
            earlier = collate(memory.data, rows, memory.model.pad_id, 16, batch.epoch).to(batch.input_ids.device)
            again = memory.objective.loss(memory.model, earlier)
            found.total = found.total + scale * again.total
            found.weight += scale * again.weight
        return found

    def metrics(self, sums: dict[str, float], weight: float) -> dict[str, float]:
        """Those of this stage's own examples."""
        own = sums[_OWN]
        return self.inner.metrics({name: value for name, value in sums.items() if name != _OWN}, own)

    def _drawn(self, rows: Sequence[int], epoch: int) -> list[tuple[int, list[int]]]:
        """Number of a memory -> its rows that come along."""
        drawn: dict[int, list[int]] = {}
        for row in rows:
            random = np.random.default_rng([self.seed, epoch, row, _DRAWS])
            if random.random() < self.share:
                number = int(random.integers(len(self.memories)))
                drawn.setdefault(number, []).append(int(random.integers(len(self.memories[number].data))))
        return sorted(drawn.items())
