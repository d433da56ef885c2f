"""Frozen features and a classical head: a linear classifier fitted on a model's embeddings, nothing else trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from tunesmith.models.heads import SentenceClassifier
from tunesmith.models.image_classifier import ImageClassifier

PENALTIES = (0.01, 0.1, 1.0, 10.0)
"""Inverse strengths of the L2 penalty that are tried; the validation rows decide."""

RIDGE_PENALTIES = (0.001, 0.01, 0.1, 1.0, 10.0)
"""Penalties of ridge regression that are tried, as multiples of the number of rows."""

CONSTANT_SHARE = 1e-6
"""A dimension whose spread is below this share of the largest one counts as constant."""


@dataclass(frozen=True)
class LinearHead:
    """A fitted linear model: multinomial or binary logistic regressions, or a ridge regression.

    Attributes:
        weight: (C, d).
        bias: (C,).
        penalty: The strength that was chosen (of logistic regression its inverse).
        validation_score: By which it was chosen, the greater the better; ``None`` without validation rows.
    """

    weight: np.ndarray
    bias: np.ndarray
    penalty: float
    validation_score: float | None

    def scores(self, features: np.ndarray) -> np.ndarray:
        """What the head gives before anything is made of it, (N, C)."""
        result: np.ndarray = features @ self.weight.T + self.bias
        return result

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """Softmax of the scores, (N, C)."""
        scores = self.scores(features)
        scores -= scores.max(axis=1, keepdims=True)
        likelihoods = np.exp(scores)
        result: np.ndarray = likelihoods / likelihoods.sum(axis=1, keepdims=True)
        return result

    def copy_to(self, network: SentenceClassifier | ImageClassifier) -> None:
        """Make this the head of a network: then the fit is saved and served like any tuned model."""
        assert isinstance(network.classifier, torch.nn.Linear)
        with torch.no_grad():
            network.classifier.weight.copy_(torch.from_numpy(self.weight))
            network.classifier.bias.copy_(torch.from_numpy(self.bias))


Fit = Callable[[np.ndarray, float], tuple[np.ndarray, np.ndarray]]
"""From standardised features (N, d) and a penalty to weights (C, d) and biases (C,)."""

Quality = Callable[[LinearHead, np.ndarray], float]
"""How good a head is on features: the greater the better."""


def fit_linear_head(
    features: np.ndarray,
    labels: Sequence[int],
    num_labels: int,
    validation: tuple[np.ndarray, Sequence[int]] | None = None,
) -> LinearHead:
    """Fit multinomial logistic regression (scikit-learn); the penalty with the best validation accuracy is taken.

    Args:
        features: (N, d).
        labels: N class indices; every class must occur.
        num_labels: C.
        validation: Features and labels on which the penalty is chosen; without any it is 1.
    """
    from sklearn.linear_model import LogisticRegression

    def fit(scaled: np.ndarray, penalty: float) -> tuple[np.ndarray, np.ndarray]:
        found = LogisticRegression(C=penalty, max_iter=1000).fit(scaled, np.asarray(labels))
        return rows_of_classes(found.coef_, found.intercept_, num_labels)

    def accuracy(head: LinearHead, asked: np.ndarray) -> float:
        assert validation is not None
        return float((head.probabilities(asked).argmax(1) == np.asarray(validation[1])).mean())

    return _best(features, fit, PENALTIES, accuracy, validation[0] if validation else None)


def fit_label_heads(
    features: np.ndarray, labels: np.ndarray, validation: tuple[np.ndarray, np.ndarray] | None = None
) -> LinearHead:
    """Fit a logistic regression for each label by itself; the penalty with the best validation log loss is taken.

    Args:
        features: (N, d).
        labels: (N, C) whether each label applies. One that never does, or always, gets its log odds and no weights.
        validation: Features and labels on which the penalty is chosen; without any it is 1.
    """
    from sklearn.linear_model import LogisticRegression

    def fit(scaled: np.ndarray, penalty: float) -> tuple[np.ndarray, np.ndarray]:
        shares = (labels.sum(axis=0) + 0.5) / (len(labels) + 1)
        weight, bias = np.zeros((labels.shape[1], scaled.shape[1])), np.log(shares / (1 - shares))
        for number, applies in enumerate(labels.T):
            if applies.any() and not applies.all():
                found = LogisticRegression(C=penalty, max_iter=1000).fit(scaled, applies)
                weight[number], bias[number] = found.coef_[0], found.intercept_[0]
        return weight, bias

    def likelihood(head: LinearHead, asked: np.ndarray) -> float:
        assert validation is not None
        signed = np.where(validation[1], 1.0, -1.0) * head.scores(asked)
        return float(-np.logaddexp(0.0, -signed).mean())

    return _best(features, fit, PENALTIES, likelihood, validation[0] if validation else None)


def fit_score_head(
    features: np.ndarray, scores: np.ndarray, validation: tuple[np.ndarray, np.ndarray] | None = None
) -> LinearHead:
    """Fit ridge regression (scikit-learn); the penalty with the least squared error in validation is taken.

    Args:
        features: (N, d).
        scores: (N,).
        validation: Features and scores on which the penalty is chosen; without any it is 1 a row.
    """
    from sklearn.linear_model import Ridge

    def fit(scaled: np.ndarray, penalty: float) -> tuple[np.ndarray, np.ndarray]:
        found = Ridge(alpha=penalty * len(scaled)).fit(scaled, scores)
        return found.coef_[None, :], np.array([found.intercept_])

    def closeness(head: LinearHead, asked: np.ndarray) -> float:
        assert validation is not None
        return float(-np.square(head.scores(asked)[:, 0] - validation[1]).mean())

    return _best(features, fit, RIDGE_PENALTIES, closeness, validation[0] if validation else None)


def _best(
    features: np.ndarray, fit: Fit, penalties: Sequence[float], quality: Quality, validation: np.ndarray | None
) -> LinearHead:
    """The best head of those that the penalties give, with the standardisation folded into its weights."""
    scaled, mean, scale = standardised(features)
    best: LinearHead | None = None
    for penalty in penalties if validation is not None and len(validation) else (1.0,):
        head = LinearHead(*fold_scaling(*fit(scaled, penalty), mean, scale), penalty, None)
        if validation is None or not len(validation):
            return head
        found = quality(head, validation)
        if best is None or best.validation_score is None or found > best.validation_score:
            best = replace(head, validation_score=found)
    assert best is not None
    return best


def standardised(features: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features of mean 0 and spread 1, and the means and spreads (d,) that they had."""
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(features)
    spread = np.sqrt(scaler.var_)
    # A dimension that hardly varies would get an enormous weight when the scaling is folded in: it gets none.
    scale = np.where(spread > CONSTANT_SHARE * spread.max(), spread, np.inf)
    return (features - scaler.mean_) / scale, scaler.mean_, scale


def fold_scaling(
    weight: np.ndarray, bias: np.ndarray, mean: np.ndarray, scale: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Weights and biases for features as they are, from those for standardised ones."""
    weight = weight / scale
    return weight, bias - weight @ mean


def rows_of_classes(coefficients: np.ndarray, intercepts: np.ndarray, num_labels: int) -> tuple[np.ndarray, np.ndarray]:
    """One row a class: scikit-learn keeps a single row for two classes (that of the second)."""
    if num_labels == 2:
        zeros = np.zeros_like(coefficients)
        return np.concatenate([zeros, coefficients]), np.concatenate([np.zeros(1), intercepts])
    return coefficients, intercepts
