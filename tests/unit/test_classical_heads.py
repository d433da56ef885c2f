"""Heads fitted on features: chosen by cross-validation, the same as scikit-learn's, saved as arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tunesmith.models import classical as heads
from tunesmith.prediction import classical
from tunesmith.prediction.classical import apply, fit_classical


def blobs(rows: int, num_labels: int, width: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Noisy clusters, one for each label; features in fp32, as a model gives them."""
    random = np.random.default_rng(seed)
    labels = np.arange(rows) % num_labels
    centres = random.normal(size=(num_labels, width)) * 1.5
    return (centres[labels] + random.normal(size=(rows, width))).astype(np.float32).astype(np.float64), labels


@pytest.mark.parametrize("num_labels", [2, 3])
def test_boosted_trees_are_those_of_scikit_learn(num_labels: int) -> None:
    from sklearn.ensemble import HistGradientBoostingClassifier

    features, labels = blobs(160, num_labels)
    asked, _ = blobs(300, num_labels, seed=1)
    theirs = HistGradientBoostingClassifier(max_leaf_nodes=15, early_stopping=False, random_state=0)
    theirs.fit(features, labels)
    scores = torch.from_numpy(apply(classical._boosted(features, labels, num_labels), asked))
    np.testing.assert_allclose(torch.softmax(scores, -1).numpy(), theirs.predict_proba(asked), atol=1e-9)


def test_neighbours_are_those_of_scikit_learn() -> None:
    from sklearn.neighbors import KNeighborsClassifier

    features, labels = blobs(90, 3)
    asked, _ = blobs(50, 3, seed=1)
    theirs = KNeighborsClassifier(5, metric="cosine").fit(features, labels).predict_proba(asked)
    ours = np.exp(apply(classical._neighbours(5)(features, labels, 3), asked))
    np.testing.assert_allclose(ours, (5 * theirs + 1 / 3) / 6, atol=1e-6)


def test_a_support_vector_machine_is_scikit_learns_with_margins_scaled() -> None:
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import LinearSVC

    features, labels = blobs(90, 3)
    chosen = fit_classical(features, labels.tolist(), 3, "svm")
    penalty = float(chosen.title.rsplit(" ", 1)[1])
    scaler = StandardScaler().fit(features)
    theirs = LinearSVC(C=penalty, max_iter=5000, random_state=0).fit(scaler.transform(features), labels)
    margins = theirs.decision_function(scaler.transform(features))
    ratio = apply(chosen.head, features) / margins
    assert ratio.min() > 0 and np.ptp(ratio) < 1e-6 * ratio.max()


def test_the_best_is_the_best_in_cross_validation() -> None:
    """A label in a ring around the other: no line parts them."""
    random = np.random.default_rng(0)
    angle, labels = random.uniform(0, 2 * np.pi, 240), np.arange(240) % 2
    radius = np.where(labels == 1, 3.0, 0.8) + random.normal(size=240) * 0.1
    features = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    chosen = fit_classical(features, labels.tolist(), 2, "best")
    assert chosen.title == max(chosen.accuracies, key=lambda title: chosen.accuracies[title])
    assert chosen.title == "gradient boosting" and chosen.accuracies[chosen.title] > 0.95
    assert max(value for title, value in chosen.accuracies.items() if "SVM" in title or "logistic" in title) < 0.7


def test_one_row_of_a_label_takes_the_default() -> None:
    features, labels = blobs(9, 3)
    labels[:] = [0, 0, 0, 0, 1, 1, 1, 1, 2]
    chosen = fit_classical(features, labels.tolist(), 3, "logistic")
    assert chosen.accuracies == {} and chosen.title == "logistic regression, C 1"


@pytest.mark.parametrize("kind", ["knn", "boosting"])
def test_heads_come_back_from_their_arrays(kind: str, tmp_path: Path) -> None:
    features, labels = blobs(60, 3)
    head: Any = fit_classical(features, labels.tolist(), 3, kind).head
    heads.save(head, tmp_path)
    again = heads.load(tmp_path)
    assert again is not None and np.array_equal(apply(again, features), apply(head, features))
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}


def test_other_trees_of_scikit_learn_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from tunesmith.errors import ResourceError

    features, labels = blobs(60, 3)
    arrays = classical._arrays
    monkeypatch.setattr(
        classical, "_arrays", lambda trees, base: arrays(trees, base) | {"baseline": torch.full((3,), 9.0)}
    )
    monkeypatch.setattr(classical, "apply", lambda head, asked: np.zeros((len(asked), 3)))
    with pytest.raises(ResourceError, match="cannot be saved here"):
        classical._boosted(features, labels, 3)
