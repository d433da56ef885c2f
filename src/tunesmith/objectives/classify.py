"""Cross-entropy of class labels."""

from __future__ import annotations

from torch.nn import functional

from tunesmith.data.batches import Batch
from tunesmith.models.model import Model
from tunesmith.objectives.base import LossSum, Objective
from tunesmith.recipe import Training


class Classify(Objective):
    """-log softmax(logits)[label], summed over the examples; label smoothing as in Szegedy et al. 2016."""

    name = "classify"

    def __init__(self, settings: Training) -> None:
        self.label_smoothing = settings.label_smoothing

    def loss(self, model: Model, batch: Batch) -> LossSum:
        """Sum over B examples; each weighs 1. Metric: ``accuracy``."""
        assert batch.labels is not None, "the data were rendered for another objective"
        logits_BC = model.class_logits(batch)
        total = functional.cross_entropy(logits_BC, batch.labels, reduction="sum", label_smoothing=self.label_smoothing)
        correct = (logits_BC.detach().argmax(-1) == batch.labels).sum()
        return LossSum(total, float(len(batch.labels)), {"accuracy": correct})

    def score(self, metrics: dict[str, float]) -> list[float]:
        """Accuracy first; of two equal ones the lower loss."""
        return [metrics["accuracy"], -metrics["loss"]]
