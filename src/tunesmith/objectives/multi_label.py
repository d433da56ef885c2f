"""Binary cross-entropy of several labels a text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch.nn import functional

from tunesmith.data.batches import Batch, TokenFile
from tunesmith.events import Listener, nobody
from tunesmith.models.model import Model
from tunesmith.objectives.base import LossSum, Objective
from tunesmith.objectives.classify import class_weights, settled
from tunesmith.recipe import Training

COUNTS = ("right_labels", "predicted_labels", "true_labels")


class MultiLabel(Objective):
    """For each label -log sigmoid(logit) where it applies, else -log sigmoid(-logit); summed over examples and labels.

    Divided by both numbers this is the loss of transformers' ``problem_type="multi_label_classification"``. Class
    weights multiply the first of the two terms (``pos_weight`` of ``torch.nn.BCEWithLogitsLoss``).
    """

    name = "multi-label"

    def __init__(self, settings: Training) -> None:
        self.label_smoothing = settings.label_smoothing
        self.wanted_weights = settings.class_weights
        self.class_weights: dict[str, float] | None = None

    def start(self, model: Model, sets: list[TokenFile], folder: Path, tell: Listener) -> None:
        """Settle the class weights: balanced ones are rows without the label over rows with it."""
        labels = model.labels or []
        if self.wanted_weights is not None:
            applies = sets[0].extra["labels"].values.reshape(-1, len(labels)).sum(axis=0)
            balanced = (len(sets[0]) - applies) / np.maximum(applies, 1)
            self.class_weights = settled(self.wanted_weights, labels, np.maximum(balanced, 1e-3), tell)

    def restart(self, model: Model, data: TokenFile) -> None:
        """Settle the class weights again."""
        self.start(model, [data], Path(), nobody)

    def weight_of(self, model: Model, data: TokenFile) -> float:
        """Each of the C labels weighs 1."""
        return float(len(model.labels or []))

    def loss(self, model: Model, batch: Batch) -> LossSum:
        """Sum over (B, C); each of the B * C weighs 1. Metrics: ``micro_f1`` at a threshold of 0.5."""
        assert "labels" in batch.extra, "the data were rendered for another objective"
        logits_BC = model.class_logits(batch)
        true_BC = batch.extra["labels"].to(logits_BC.dtype)
        wanted_BC = true_BC * (1 - self.label_smoothing) + 0.5 * self.label_smoothing
        weights_C = class_weights(self.class_weights, model, logits_BC)
        total = functional.binary_cross_entropy_with_logits(logits_BC, wanted_BC, pos_weight=weights_C, reduction="sum")
        chosen_BC = (logits_BC.detach() > 0).to(true_BC.dtype)
        counts = ((chosen_BC * true_BC).sum(), chosen_BC.sum(), true_BC.sum())
        return LossSum(total, float(logits_BC.numel()), dict(zip(COUNTS, counts, strict=True)))

    def metrics(self, sums: dict[str, float], weight: float) -> dict[str, float]:
        """F1 over all labels together."""
        right, predicted, true = (sums[name] for name in COUNTS)
        return {"micro_f1": 2 * right / max(1.0, predicted + true)}

    def score(self, metrics: dict[str, float]) -> list[float]:
        """The lower loss is better: thresholds are tuned afterwards, so F1 at 0.5 says little."""
        return [-metrics["loss"]]
