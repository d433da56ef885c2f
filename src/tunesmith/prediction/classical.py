"""Fits of classical heads on frozen features, and the choice between them by cross-validation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from tunesmith.errors import ResourceError
from tunesmith.models.classical import Neighbours, Trees
from tunesmith.prediction.features import PENALTIES, fold_scaling, rows_of_classes, standardised

FOLDS = 5
NEIGHBOURS = (1, 3, 5, 9, 15, 25)
TEMPERATURES = np.geomspace(0.05, 20, 61)
"""Factors of a support vector machine's margins that are tried; the likeliest labels of held-out rows decide."""

Fit = Callable[[np.ndarray, np.ndarray, int], nn.Module]
"""From features (N, d), class numbers (N,) and the number of classes to a head."""


@dataclass(frozen=True)
class Candidate:
    """A head with one setting.

    Attributes:
        title: In words.
        fit: On features.
        needs_scale: Its scores say which label, but not how sure: they are scaled by held-out ones.
    """

    title: str
    fit: Fit
    needs_scale: bool = False


@dataclass(frozen=True)
class Chosen:
    """The head that was taken, fitted on all rows.

    Attributes:
        head: From features to scores whose softmax are probabilities.
        title: In words.
        accuracies: Title -> accuracy in cross-validation, of every candidate; empty if there were too few rows.
    """

    head: nn.Module
    title: str
    accuracies: dict[str, float]


def fit_classical(features: np.ndarray, labels: Sequence[int], num_labels: int, kind: str) -> Chosen:
    """Fit the candidates of a kind of head, and take the one that is right most often in cross-validation.

    Args:
        features: (N, d).
        labels: N class numbers; every class must occur.
        num_labels: C.
        kind: ``logistic``, ``svm``, ``knn``, ``boosting``, or ``best`` of all of them.
    """
    from sklearn.model_selection import StratifiedKFold

    classes = np.asarray(labels)
    folds = min(FOLDS, int(np.bincount(classes, minlength=num_labels).min()))
    candidates = _candidates(kind, len(classes))
    if folds < 2:  # a class of one row cannot be on both sides
        first = candidates[0]
        return Chosen(first.fit(features, classes, num_labels), first.title, {})
    splits = [*StratifiedKFold(folds, shuffle=True, random_state=0).split(features, classes)]
    held_out = [_held_out(candidate, features, classes, num_labels, splits) for candidate in candidates]
    accuracies = [float((scores.argmax(1) == classes).mean()) for scores in held_out]
    best = int(np.argmax(accuracies))
    head = candidates[best].fit(features, classes, num_labels)
    if candidates[best].needs_scale:
        assert isinstance(head, nn.Linear)
        _scale(head, _temperature(held_out[best], classes))
    titles = [candidate.title for candidate in candidates]
    return Chosen(head, titles[best], dict(zip(titles, accuracies, strict=True)))


def _candidates(kind: str, rows: int) -> list[Candidate]:
    """All settings that are tried; the first of a kind is its default."""
    penalties = sorted(PENALTIES, key=lambda penalty: abs(np.log(penalty)))
    fitting = [k for k in NEIGHBOURS if k <= rows * (FOLDS - 1) // FOLDS // 2] or [1]
    found = {
        "logistic": [Candidate(f"logistic regression, C {c:g}", _linear("logistic", c)) for c in penalties],
        "svm": [Candidate(f"linear SVM, C {c:g}", _linear("svm", c), needs_scale=True) for c in penalties],
        "knn": [Candidate(f"{k} nearest neighbour{'s' * (k > 1)}", _neighbours(k)) for k in fitting],
        "boosting": [Candidate("gradient boosting", _boosted)],
    }
    return [one for ones in found.values() for one in ones] if kind == "best" else found[kind]


def _held_out(
    candidate: Candidate, features: np.ndarray, classes: np.ndarray, num_labels: int, splits: Sequence[Any]
) -> np.ndarray:
    """Scores (N, C) of each row by a head that was fitted without it."""
    scores = np.zeros((len(classes), num_labels))
    for learned, asked in splits:
        head = candidate.fit(features[learned], classes[learned], num_labels)
        scores[asked] = apply(head, features[asked])
    return scores


def apply(head: nn.Module, features: np.ndarray) -> np.ndarray:
    """A head's scores, (N, C) float64."""
    with torch.inference_mode():
        found: np.ndarray = head(torch.from_numpy(np.ascontiguousarray(features))).double().numpy()
    return found


def _linear(kind: str, penalty: float) -> Fit:
    def fit(features: np.ndarray, classes: np.ndarray, num_labels: int) -> nn.Module:
        from sklearn.linear_model import LogisticRegression
        from sklearn.svm import LinearSVC

        scaled, mean, scale = standardised(features)
        model: Any = LinearSVC(C=penalty, max_iter=5000, random_state=0)
        if kind == "logistic":
            model = LogisticRegression(C=penalty, max_iter=1000)
        found = model.fit(scaled, classes)
        weight, bias = fold_scaling(*rows_of_classes(found.coef_, found.intercept_, num_labels), mean, scale)
        head = nn.Linear(weight.shape[1], num_labels, dtype=torch.float64)
        with torch.no_grad():
            head.weight.copy_(torch.from_numpy(weight))
            head.bias.copy_(torch.from_numpy(bias))
        return head

    return fit


def _scale(head: nn.Linear, factor: float) -> None:
    with torch.no_grad():
        head.weight.mul_(factor)
        head.bias.mul_(factor)


def _temperature(scores: np.ndarray, classes: np.ndarray) -> float:
    """The factor with which the softmax of held-out scores gives the right labels the highest likelihood."""
    from scipy.special import logsumexp

    right = scores[np.arange(len(classes)), classes]
    nats = [float((logsumexp(factor * scores, axis=1) - factor * right).mean()) for factor in TEMPERATURES]
    return float(TEMPERATURES[int(np.argmin(nats))])


def _neighbours(k: int) -> Fit:
    def fit(features: np.ndarray, classes: np.ndarray, num_labels: int) -> nn.Module:
        vectors = torch.from_numpy(features).float()
        return Neighbours(vectors, torch.from_numpy(classes).long(), num_labels, min(k, len(classes)))

    return fit


def _boosted(features: np.ndarray, classes: np.ndarray, num_labels: int) -> nn.Module:
    """Gradient boosting over histograms (scikit-learn's, after LightGBM); its trees as arrays of ours.

    Raises:
        ResourceError: This version of scikit-learn keeps its trees in another way.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier

    model: Any = HistGradientBoostingClassifier(max_leaf_nodes=15, early_stopping=False, random_state=0)
    model.fit(features, classes)
    probe = features[:200]
    try:
        trees = [tree.nodes for step in model._predictors for tree in step]
        head = Trees(_arrays(trees, model._baseline_prediction), max(int(nodes["depth"].max()) for nodes in trees))
        expected = model.decision_function(probe)
        same = np.allclose(apply(head, probe)[:, -1 if num_labels == 2 else slice(None)], expected)
    except (AttributeError, KeyError, ValueError, IndexError):
        same = False
    if not same:
        raise ResourceError(
            "this version of scikit-learn keeps its boosted trees in a way that cannot be saved here",
            where="parameters.head",
            fix="use `head: logistic`, `svm` or `knn`, or the version of scikit-learn in constraints.txt",
        )
    return head


def _arrays(trees: Sequence[np.ndarray], baseline: np.ndarray) -> dict[str, torch.Tensor]:
    """Nodes of all trees as rectangles; a leaf leads to itself."""
    widest = max(len(nodes) for nodes in trees)
    own = np.tile(np.arange(widest), (len(trees), 1))
    arrays: dict[str, np.ndarray] = {"left": own, "right": own.copy(), "feature": np.zeros_like(own)}
    arrays |= {"threshold": np.zeros(own.shape), "value": np.zeros(own.shape)}
    for number, nodes in enumerate(trees):
        inner = np.flatnonzero(nodes["is_leaf"] == 0)
        for name, column in (("left", "left"), ("right", "right"), ("feature", "feature_idx")):
            arrays[name][number, inner] = nodes[column][inner]
        arrays["threshold"][number, inner] = nodes["num_threshold"][inner]
        arrays["value"][number, : len(nodes)] = nodes["value"]
    found = {name: torch.from_numpy(values) for name, values in arrays.items()}
    return found | {"baseline": torch.from_numpy(np.asarray(baseline, dtype=np.float64).reshape(-1))}
