"""One label a row: which was chosen, how sure the model was, and the metrics of that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tunesmith.arrays import FloatArray, IntArray
from tunesmith.errors import DataError
from tunesmith.evaluation import calibration
from tunesmith.evaluation.f1 import ClassScores, class_scores, macro_f1, micro_f1
from tunesmith.evaluation.intervals import Statistic, mean
from tunesmith.prediction.outputs import Outputs, Truth
from tunesmith.prediction.reading import NO_LABEL, label_numbers
from tunesmith.recipe import Evaluate

PRIMARY = ("accuracy",)
DECIDING = ("accuracy", "macro_f1", "micro_f1", "brier", "log_loss")
VALIDATION = "accuracy"

NO_LABEL_TITLE = "(no valid label)"


def statistics(outputs: Outputs, right: Truth) -> dict[str, Callable[[], Statistic]]:
    """Name -> how to compute it, for every metric that the outputs allow.

    Raises:
        DataError: There are no labels, the probabilities are none, or a reference is not among the labels.
    """
    labels = right.labels
    if not labels:
        raise DataError("a classification task needs its labels")
    if outputs.probabilities is None and outputs.texts is None:
        return {}
    _check_probabilities(outputs, len(labels))
    truth, chosen = reference_numbers(right.references, labels), label_numbers(outputs, labels)
    hit = truth == chosen
    hits, sums, rows = hit.astype(np.float64), _class_sums(truth, chosen, len(labels)), len(truth)
    makers: dict[str, Callable[[], Statistic]] = {
        "accuracy": lambda: mean(hits, proportion=True),
        "macro_f1": lambda: Statistic(sums, macro_f1, row_scores=hits, trials=rows),
        "micro_f1": lambda: Statistic(sums, micro_f1, row_scores=hits, trials=rows),
    }
    confidence, probabilities = confidences(outputs), outputs.probabilities
    if confidence is not None and probabilities is not None:
        makers["ece"] = lambda: calibration.expected_calibration_error(confidence, hit)
        makers["brier"] = lambda: calibration.brier_score(probabilities, truth)
        makers["log_loss"] = lambda: calibration.log_loss(probabilities, truth)
    return makers


def texts(outputs: Outputs, right: Truth) -> list[str]:
    """The label given to each row, or what was written where that is no label."""
    labels = right.labels or []
    return [
        labels[number] if number != NO_LABEL else f"{NO_LABEL_TITLE} {outputs.texts[row] if outputs.texts else ''}"
        for row, number in enumerate(label_numbers(outputs, labels))
    ]


def reference_numbers(references: Sequence[str], labels: Sequence[str]) -> IntArray:
    """Index of each right label, (N,).

    Raises:
        DataError: A reference is none of the labels.
    """
    numbers = {label: number for number, label in enumerate(labels)}
    for row, reference in enumerate(references, 1):
        if reference not in numbers:
            raise DataError(
                f"the label {reference!r} of test row {row} is not among the {len(labels)} known labels",
                fix="mend the label, or give the training data examples of it",
            )
    return np.array([numbers[reference] for reference in references], dtype=np.int64)


def confidences(outputs: Outputs) -> FloatArray | None:
    """Probability of the chosen label, (N,); ``None`` unless the probabilities are more than plain answers."""
    probabilities = outputs.probabilities
    if probabilities is None or bool(np.isin(probabilities, (0.0, 1.0)).all()):
        return None
    if outputs.thresholds is not None and probabilities.shape[1] == 2:
        return np.where(probabilities[:, 1] >= outputs.thresholds[1], probabilities[:, 1], probabilities[:, 0])
    return np.asarray(probabilities.max(axis=1))


def confusion_matrix(references: IntArray, predicted: IntArray, classes: int) -> IntArray:
    """Counts (C, C + 1): a line for each true class, a column for each answer; the last column is "no valid label"."""
    columns = np.where(predicted == NO_LABEL, classes, predicted)
    counts = np.bincount(references * (classes + 1) + columns, minlength=classes * (classes + 1))
    return counts.reshape(classes, classes + 1)


def per_class(
    outputs: Outputs, references: Sequence[str], labels: Sequence[str], settings: Evaluate
) -> list[ClassScores]:
    """Precision, recall and F1 of each class with intervals, in the order of the labels."""
    truth, chosen = reference_numbers(references, labels), label_numbers(outputs, labels)
    return class_scores(_class_sums(truth, chosen, len(labels)), labels, settings)


def _class_sums(truth: IntArray, chosen: IntArray, classes: int) -> Any:
    """What each row adds, (N, 3C) sparse: to right answers, to predictions and to references of each class."""
    from scipy.sparse import csr_array

    rows = np.arange(len(truth))
    hit, named = truth == chosen, chosen != NO_LABEL
    columns = np.concatenate([truth[hit], classes + chosen[named], 2 * classes + truth])
    lines = np.concatenate([rows[hit], rows[named], rows])
    return csr_array((np.ones(len(lines)), (lines, columns)), shape=(len(truth), 3 * classes))


def _check_probabilities(outputs: Outputs, classes: int) -> None:
    if outputs.probabilities is None:
        return
    if outputs.probabilities.shape != (outputs.rows, classes):
        raise DataError(f"the probabilities have shape {outputs.probabilities.shape}, not {(outputs.rows, classes)}")
    total = outputs.probabilities.sum(axis=1)
    if (outputs.probabilities < 0).any() or np.abs(total - 1).max(initial=0.0) > 1e-3:
        raise DataError("the probabilities of a row must be 0 or more and add up to 1: were logits passed?")
