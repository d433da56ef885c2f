"""Losses of class labels: cross-entropy, also with weights for the classes, and focal loss."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from tunesmith.data.batches import Batch, TokenFile
from tunesmith.errors import RecipeError
from tunesmith.events import Listener, Notice, nobody
from tunesmith.models.model import Model
from tunesmith.objectives.base import LossSum, Objective
from tunesmith.recipe import Training


class Classify(Objective):
    """-log softmax(logits)[label], summed over the examples; label smoothing as in Szegedy et al. 2016.

    With class weights each example weighs what its class does, as in ``torch.nn.CrossEntropyLoss(weight=...)``; with
    balanced ones the logged accuracy is balanced accuracy.
    """

    name = "classify"

    def __init__(self, settings: Training) -> None:
        self.label_smoothing = settings.label_smoothing
        self.wanted_weights = settings.class_weights
        self.class_weights: dict[str, float] | None = None

    def start(self, model: Model, sets: list[TokenFile], folder: Path, tell: Listener) -> None:
        """Settle the class weights: balanced ones are rows / (classes x rows of the class), as in scikit-learn."""
        if self.wanted_weights is not None:
            labels, counts_C = model.labels or [], _counts(model, sets[0])
            balanced_C = counts_C.sum() / (len(labels) * np.maximum(counts_C, 1))
            self.class_weights = settled(self.wanted_weights, labels, balanced_C, tell)

    def restart(self, model: Model, data: TokenFile) -> None:
        """Settle the class weights again."""
        self.start(model, [data], Path(), nobody)

    def weight_of(self, model: Model, data: TokenFile) -> float:
        """1, or the mean of the class weights over the examples."""
        if self.class_weights is None:
            return 1.0
        weights_C = [self.class_weights.get(label, 1.0) for label in model.labels or []]
        return float(np.average(weights_C, weights=_counts(model, data)))

    def loss(self, model: Model, batch: Batch) -> LossSum:
        """Weighted sum over B examples; each weighs 1 without class weights. Metric: ``accuracy``."""
        assert batch.labels is not None, "the data were rendered for another objective"
        return self.of_logits(model, model.class_logits(batch), batch.labels)

    def of_logits(self, model: Model, logits_BC: torch.Tensor, labels_B: torch.Tensor) -> LossSum:
        """The same from scores that the head gave already."""
        weights_C = class_weights(self.class_weights, model, logits_BC)
        weights_B = logits_BC.new_ones(len(labels_B)) if weights_C is None else weights_C[labels_B]
        correct_B = logits_BC.detach().argmax(-1) == labels_B
        return LossSum(
            self.total(logits_BC, labels_B, weights_C),
            float(weights_B.sum()),
            {"accuracy": torch.dot(correct_B.to(weights_B.dtype), weights_B)},
        )

    def total(self, logits_BC: torch.Tensor, labels_B: torch.Tensor, weights_C: torch.Tensor | None) -> torch.Tensor:
        """The summed loss of B examples."""
        return functional.cross_entropy(
            logits_BC, labels_B, weights_C, reduction="sum", label_smoothing=self.label_smoothing
        )

    def score(self, metrics: dict[str, float]) -> list[float]:
        """Accuracy first; of two equal ones the lower loss."""
        return [metrics["accuracy"], -metrics["loss"]]


def _counts(model: Model, data: TokenFile) -> np.ndarray:
    """Examples of each class, (C,)."""
    return np.bincount([data.label(row) for row in range(len(data))], minlength=len(model.labels or []))


class Focal(Classify):
    """-(1 - p)^gamma log p with p = softmax(logits)[label]: what the model is sure of counts less.

    Lin et al. 2017, "Focal Loss for Dense Object Detection", arXiv 1708.02002, equation 4, for any number of classes;
    their alpha is the class weights.
    """

    name = "focal"

    def __init__(self, settings: Training) -> None:
        super().__init__(settings)
        self.gamma = settings.focal_gamma

    def total(self, logits_BC: torch.Tensor, labels_B: torch.Tensor, weights_C: torch.Tensor | None) -> torch.Tensor:
        """The summed loss of B examples."""
        nats_B = functional.cross_entropy(logits_BC, labels_B, reduction="none", label_smoothing=self.label_smoothing)
        log_p_B = functional.log_softmax(logits_BC, dim=-1).gather(1, labels_B[:, None])[:, 0]
        # 1 - p by expm1: at p near 1 the difference of two nearly equal numbers would be all rounding.
        losses_B = (-torch.expm1(log_p_B)) ** self.gamma * nats_B
        return (losses_B if weights_C is None else losses_B * weights_C[labels_B]).sum()


def settled(
    wanted: str | dict[str, float], labels: Sequence[str], balanced: np.ndarray, tell: Listener
) -> dict[str, float]:
    """Class weights by label: those of the recipe, or the balanced ones, which are told.

    Raises:
        RecipeError: The recipe names a label that there is not.
    """
    if isinstance(wanted, dict):
        unknown = [label for label in wanted if label not in labels]
        if unknown:
            raise RecipeError(
                f"`class_weights` names {unknown[0]!r}, which is no label of the training data",
                where="training.class_weights",
                fix=f"labels: {', '.join(list(labels)[:10])}",
            )
        return wanted
    weights = dict(zip(labels, balanced.tolist(), strict=True))
    shown = ", ".join(f"{label} {weight:.3g}" for label, weight in list(weights.items())[:10])
    tell(Notice(level="info", message=f"class weights: {shown}{', ...' if len(weights) > 10 else ''}"))
    return weights


def class_weights(weights: dict[str, float] | None, model: Model, like: torch.Tensor) -> torch.Tensor | None:
    """Weights of the model's classes in their order, (C,); 1 for those without a weight of their own."""
    if weights is None:
        return None
    return like.new_tensor([weights.get(label, 1.0) for label in model.labels or []])
