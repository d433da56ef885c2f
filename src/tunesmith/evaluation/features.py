"""Frozen features and a classical head: a linear classifier fitted on a model's embeddings, nothing else trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tunesmith.models.heads import SentenceClassifier

PENALTIES = (0.01, 0.1, 1.0, 10.0)
"""Inverse strengths of the L2 penalty that are tried; the validation rows decide."""

CONSTANT_SHARE = 1e-6
"""A dimension whose spread is below this share of the largest one counts as constant."""


@dataclass(frozen=True)
class LinearHead:
    """A fitted multinomial logistic regression.

    Attributes:
        weight: (C, d).
        bias: (C,).
        penalty: The inverse strength that was chosen.
        validation_accuracy: By which it was chosen; ``None`` without validation rows.
    """

    weight: np.ndarray
    bias: np.ndarray
    penalty: float
    validation_accuracy: float | None

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """Softmax of the scores, (N, C)."""
        scores = features @ self.weight.T + self.bias
        scores -= scores.max(axis=1, keepdims=True)
        likelihoods = np.exp(scores)
        result: np.ndarray = likelihoods / likelihoods.sum(axis=1, keepdims=True)
        return result

    def copy_to(self, network: SentenceClassifier) -> None:
        """Make this the head of a network: then the fit is saved and served like any tuned model."""
        with torch.no_grad():
            network.classifier.weight.copy_(torch.from_numpy(self.weight))
            network.classifier.bias.copy_(torch.from_numpy(self.bias))


def fit_linear_head(
    features: np.ndarray,
    labels: Sequence[int],
    num_labels: int,
    validation: tuple[np.ndarray, Sequence[int]] | None = None,
) -> LinearHead:
    """Fit logistic regression (scikit-learn) on standardised features; the scaling is folded into the weights.

    Args:
        features: (N, d).
        labels: N class indices; every class must occur.
        num_labels: C.
        validation: Features and labels on which the penalty is chosen; without any it is 1.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(features)
    spread = np.sqrt(scaler.var_)
    # A dimension that hardly varies would get an enormous weight when the scaling is folded in: it gets none.
    scale = np.where(spread > CONSTANT_SHARE * spread.max(), spread, np.inf)
    scaled = (features - scaler.mean_) / scale
    best: LinearHead | None = None
    for penalty in PENALTIES if validation is not None and len(validation[1]) else (1.0,):
        fit = LogisticRegression(C=penalty, max_iter=1000).fit(scaled, np.asarray(labels))
        weight, bias = _all_classes(fit.coef_, fit.intercept_, num_labels)
        weight = weight / scale
        bias = bias - weight @ scaler.mean_
        head = LinearHead(weight, bias, penalty, None)
        if validation is None or not len(validation[1]):
            return head
        accuracy = float((head.probabilities(validation[0]).argmax(1) == np.asarray(validation[1])).mean())
        if best is None or accuracy > (best.validation_accuracy or 0.0):
            best = LinearHead(weight, bias, penalty, accuracy)
    assert best is not None
    return best


def _all_classes(coefficients: np.ndarray, intercepts: np.ndarray, num_labels: int) -> tuple[np.ndarray, np.ndarray]:
    """One row a class: scikit-learn keeps a single row for two classes (that of the second)."""
    if num_labels == 2:
        zeros = np.zeros_like(coefficients)
        return np.concatenate([zeros, coefficients]), np.concatenate([np.zeros(1), intercepts])
    return coefficients, intercepts
