"""Several labels a row: which were chosen, and the metrics of that."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tunesmith.arrays import BoolArray, FloatArray
from tunesmith.evaluation.f1 import ClassScores, class_scores, macro_f1, micro_f1, micro_precision, micro_recall
from tunesmith.evaluation.intervals import Statistic, mean
from tunesmith.prediction.outputs import Outputs, Truth
from tunesmith.prediction.reading import label_sets, true_label_sets
from tunesmith.recipe import Evaluate

PRIMARY = ("micro_f1",)
DECIDING = ("micro_f1", "macro_f1", "micro_precision", "micro_recall", "subset_accuracy")
VALIDATION = "micro_f1"


def statistics(outputs: Outputs, right: Truth) -> dict[str, Callable[[], Statistic]]:
    """Name -> how to compute it. References are lists of labels.

    ``subset_accuracy`` is the share of rows with exactly the right labels (scikit-learn's ``accuracy_score``).

    Raises:
        DataError: There are no labels, or a reference is not among them.
    """
    if outputs.probabilities is None and outputs.texts is None:
        return {}
    true, chosen = true_label_sets(right), label_sets(outputs, right.labels or [])
    counts = _counts(true, chosen)
    exact = (true == chosen).all(axis=1).astype(np.float64)
    rows = len(true)
    f1_of_row = _row_f1(true, chosen)
    return {
        "micro_f1": lambda: Statistic(counts, micro_f1, row_scores=f1_of_row, trials=rows),
        "macro_f1": lambda: Statistic(counts, macro_f1, row_scores=f1_of_row, trials=rows),
        "micro_precision": lambda: Statistic(counts, micro_precision, row_scores=f1_of_row, trials=rows),
        "micro_recall": lambda: Statistic(counts, micro_recall, row_scores=f1_of_row, trials=rows),
        "subset_accuracy": lambda: mean(exact, proportion=True),
    }


def texts(outputs: Outputs, right: Truth) -> list[str]:
    """The labels given to each row."""
    labels = right.labels or []
    return [
        "; ".join(label for label, given in zip(labels, line, strict=True) if given) or "none"
        for line in label_sets(outputs, labels)
    ]


def per_class(outputs: Outputs, right: Truth, settings: Evaluate) -> list[ClassScores]:
    """Precision, recall and F1 of each label with intervals."""
    labels = right.labels or []
    return class_scores(_counts(true_label_sets(right), label_sets(outputs, labels)), labels, settings)


def _counts(true: BoolArray, chosen: BoolArray) -> FloatArray:
    """What each row adds to right answers, predictions and references of each label, (N, 3C)."""
    return np.concatenate([true & chosen, chosen, true], axis=1).astype(np.float64)


def _row_f1(true: BoolArray, chosen: BoolArray) -> FloatArray:
    """F1 of each row by itself, (N,); 1 where no label applies and none was given."""
    bottom = true.sum(axis=1) + chosen.sum(axis=1)
    return np.where(bottom == 0, 1.0, 2 * (true & chosen).sum(axis=1) / np.maximum(bottom, 1))
