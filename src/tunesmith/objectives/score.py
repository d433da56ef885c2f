"""Losses of scores: squared error, Huber's, and one for grades that have an order but no distances."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from tunesmith.data.batches import Batch, TokenFile
from tunesmith.data.scores import scale_of
from tunesmith.events import Listener
from tunesmith.models.model import Model
from tunesmith.models.score_heads import above_probabilities, fold_scale, output_layer, unfold_scale
from tunesmith.objectives.base import LossSum, Objective
from tunesmith.recipe import Training


class SquaredError(Objective):
    """(output - score)^2, summed over the examples: the loss of transformers' ``problem_type="regression"``.

    Scores are standardised for training (``Model.scale``): the same learning rate fits grades of 1 to 5 and dollars.
    """

    name = "mse"

    def __init__(self, settings: Training) -> None:
        pass

    def start(self, model: Model, sets: list[TokenFile], folder: Path, tell: Listener) -> None:
        """Standardise by the training scores; a head without bias cannot learn a mean, so it is left in."""
        model.scale = _scale(model, sets[0])

    def restart(self, model: Model, data: TokenFile) -> None:
        """Standardise what the head has learned to give."""
        unfold_scale(model, *_scale(model, data))

    def loss(self, model: Model, batch: Batch) -> LossSum:
        """Sum over B examples; each weighs 1. Metric: ``r2``, against guessing the mean of the training scores."""
        assert "score" in batch.extra, "the data were rendered for another objective"
        mean, spread = model.scale
        found_B = model.class_logits(batch)[:, 0]
        wanted_B = ((batch.extra["score"][:, 0].double() - mean) / spread).to(found_B.dtype)
        squares = functional.mse_loss(found_B.detach(), wanted_B, reduction="sum")
        return LossSum(self.total(found_B, wanted_B), float(len(found_B)), {"mse": squares})

    def finish(self, model: Model) -> None:
        """Let the head give scores as the data have them."""
        fold_scale(model)

    def total(self, found_B: torch.Tensor, wanted_B: torch.Tensor) -> torch.Tensor:
        """The summed loss of B examples."""
        return functional.mse_loss(found_B, wanted_B, reduction="sum")

    def metrics(self, sums: dict[str, float], weight: float) -> dict[str, float]:
        """The share of the variance that is explained, as validation sees it."""
        return {"r2": 1.0 - sums["mse"] / weight}

    def score(self, metrics: dict[str, float]) -> list[float]:
        """The lower loss is better."""
        return [-metrics["loss"]]


def _scale(model: Model, data: TokenFile) -> tuple[float, float]:
    mean, spread = scale_of(data.extra["score"].values)
    return (mean if output_layer(model).bias is not None else 0.0, spread)


class Huber(SquaredError):
    """Half the squared error up to one standard deviation, linear beyond: single wild scores pull less.

    P. J. Huber, "Robust Estimation of a Location Parameter", Annals of Mathematical Statistics 35, 1964.
    """

    name = "huber"

    def total(self, found_B: torch.Tensor, wanted_B: torch.Tensor) -> torch.Tensor:
        """The summed loss of B examples."""
        return functional.huber_loss(found_B, wanted_B, reduction="sum", delta=1.0)


class Ordinal(Objective):
    """CORN: for each grade but the last, whether the truth lies above it, given that it lies at or above it.

    Shi, Cao and Raschka 2021, "Deep Neural Networks for Rank-Consistent Ordinal Regression Based On Conditional
    Probabilities", arXiv 2111.08851, equations 3 to 5. A product of conditional probabilities cannot rise with the
    grade, so the answers are consistent without sharing weights between the outputs.
    """

    name = "ordinal"

    def __init__(self, settings: Training) -> None:
        pass

    def weight_of(self, model: Model, data: TokenFile) -> float:
        """An example asks whether the truth is above each grade up to its own, but for the highest one."""
        questions = np.minimum(data.extra["grade"].values + 1, len(model.labels or []) - 1)
        return float(questions.mean())

    def loss(self, model: Model, batch: Batch) -> LossSum:
        """Sum over the (example, grade) pairs of which the question makes sense; each weighs 1.

        Metrics: ``mean_grade_error``, in grades.
        """
        assert "grade" in batch.extra, "the data were rendered for another objective"
        logits_BK = model.class_logits(batch)  # K = grades - 1
        grade_B = batch.extra["grade"][:, 0]
        rank_K = torch.arange(logits_BK.shape[1], device=grade_B.device)
        above_BK = grade_B[:, None] > rank_K
        asked_BK = grade_B[:, None] >= rank_K
        losses_BK = functional.binary_cross_entropy_with_logits(
            logits_BK, above_BK.to(logits_BK.dtype), reduction="none"
        )
        found_B = (above_probabilities(logits_BK.detach()) > 0.5).sum(-1)
        sums = {"error": (found_B - grade_B).abs().sum(), "examples": torch.tensor(len(grade_B))}
        return LossSum((losses_BK * asked_BK).sum(), float(asked_BK.sum()), sums)

    def metrics(self, sums: dict[str, float], weight: float) -> dict[str, float]:
        """Mean distance between the found and the true grade."""
        return {"mean_grade_error": sums["error"] / sums["examples"]}

    def score(self, metrics: dict[str, float]) -> list[float]:
        """The lower loss is better."""
        return [-metrics["loss"]]
