"""Holding a model near what it was: L2 to the previous weights, or elastic weight consolidation.

The penalty is strength / 2 * sum F (w - w*)^2 over the weights below the head, where w* are those that the stage began
from. With F = 1 this is L2; with the diagonal of the Fisher information of the earlier tasks it is EWC (Kirkpatrick et
al. 2017, arXiv 1612.00796, equation 3). Fisher matrices of several tasks are added up and held at the latest weights
(Schwarz et al. 2018, arXiv 1805.06370, section 3).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from tunesmith.data.batches import Batch, TokenFile, collate
from tunesmith.events import Listener
from tunesmith.models.model import Model, decoder_of
from tunesmith.objectives.base import LossSum, Objective
from tunesmith.objectives.wrapped import Wrapped

FISHER_EXAMPLES = 256
"""Examples whose squared gradients are averaged."""


class Held(Wrapped):
    """Another objective, with a penalty on leaving the weights that the stage began from.

    Args:
        objective: Of this stage.
        strength: Of the penalty.
        importance: Name below the head -> F; ``None`` is 1 everywhere.
    """

    def __init__(
        self, objective: Objective, strength: float, importance: Mapping[str, torch.Tensor] | None = None
    ) -> None:
        super().__init__(objective)
        self.strength = strength
        self.importance = importance
        self._anchors: dict[str, torch.Tensor] = {}

    def start(self, model: Model, sets: list[TokenFile], folder: Path, tell: Listener) -> None:
        """Remember the weights as they are."""
        self.inner.start(model, sets, folder, tell)
        body = trained_body(model)
        self._anchors = {name: parameter.detach().clone() for name, parameter in body.items()}
        if self.importance is not None:
            self.importance = {name: _fitted(self.importance.get(name), weight) for name, weight in body.items()}

    def loss(self, model: Model, batch: Batch) -> LossSum:
        """The stage's own sum and, while it learns, the penalty for each unit of weight (the loop divides by that)."""
        found = self.inner.loss(model, batch)
        if batch.epoch is not None:
            found.total = found.total + found.weight * self.penalty(model)
        return found

    def penalty(self, model: Model) -> torch.Tensor:
        """The sum over all weights below the head that train."""
        terms = [torch.zeros((), device=model.device)]  # with gradual unfreezing the head may be all that trains yet
        for name, parameter in trained_body(model).items():
            square = (parameter - self._anchors[name]).float().square()
            if self.importance is not None:
                square = square * self.importance[name]
            terms.append(square.sum())
        return self.strength / 2 * torch.stack(terms).sum()


def added(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The sum of two tasks' importance; what is in one alone counts as it is."""
    total = dict(first)
    for name, tensor in second.items():
        larger = max(tensor, total.get(name, tensor), key=torch.Tensor.numel)
        total[name] = _fitted(total.get(name), larger) + _fitted(tensor, larger)
    return total


def _fitted(importance: torch.Tensor | None, weight: torch.Tensor) -> torch.Tensor:
    """F in the shape of a weight: 0 where no earlier task had it, as a pooling layer or the row of a new token."""
    found = torch.zeros_like(weight, dtype=torch.float32, requires_grad=False)
    if importance is not None:
        found[tuple(slice(size) for size in importance.shape)] = importance
    return found


def trained_body(model: Model) -> dict[str, torch.nn.Parameter]:
    """The weights below the head that train, by their names there: the same whatever head stands above."""
    body = decoder_of(model.transformer())
    return {name: parameter for name, parameter in body.named_parameters() if parameter.requires_grad}


def fisher(
    model: Model, objective: Objective, data: TokenFile, seed: int, *, whole: bool = False
) -> dict[str, torch.Tensor]:
    """The diagonal of the Fisher information at the weights as they are, by the right answers (the "empirical" one).

    The mean over some examples of the squared gradient of each one's log likelihood.

    Args:
        model: As a stage left it.
        objective: Of that stage.
        data: Its examples.
        seed: Of the choice among them.
        whole: Of all weights below the head, those too that did not train: the task needs them as much.
    """
    if whole:
        body = dict(decoder_of(model.transformer()).named_parameters())
        frozen = [parameter for parameter in body.values() if not parameter.requires_grad]
    else:
        body, frozen = trained_body(model), []
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        return _mean_squares(model, objective, data, seed, body)
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def _mean_squares(
    model: Model, objective: Objective, data: TokenFile, seed: int, body: Mapping[str, torch.nn.Parameter]
) -> dict[str, torch.Tensor]:
    found = {name: torch.zeros_like(parameter, dtype=torch.float32) for name, parameter in body.items()}
    chosen = np.random.default_rng(seed).permutation(len(data))[:FISHER_EXAMPLES].tolist()
    model.network.eval()
    for row in chosen:
        # Known states would keep the gradient from the layers below them.
        batch = replace(collate(data, [row], model.pad_id), states=None).to(model.device)
        loss = objective.loss(model, batch)
        gradients = torch.autograd.grad(loss.total, list(body.values()), allow_unused=True)
        for name, gradient in zip(body, gradients, strict=True):
            if gradient is not None:
                found[name] += gradient.float().square() / len(chosen)
    return found
