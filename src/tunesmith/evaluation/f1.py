"""Precision, recall and F1 from counts: of classes of rows, of several labels a row, of spans in texts.

All of them are functions of three counts a class: right answers, predictions, and references. What each row adds to
them is an array (N, 3C), in this order, from which the bootstrap resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tunesmith.arrays import FloatArray
from tunesmith.evaluation.intervals import Interval, Statistic, bootstrap_all
from tunesmith.recipe import Evaluate


@dataclass(frozen=True)
class ClassScores:
    """How well one class is recognised. Without references or predictions a score is 0 and its limits 0 and 1.

    Attributes:
        label: The class.
        support: What truly belongs to it: test rows, or spans in them.
        predicted: What was given it.
        precision: Share of ``predicted`` that is right.
        recall: Share of ``support`` that was found.
        f1: Harmonic mean of the two.
    """

    label: str
    support: int
    predicted: int
    precision: Interval
    recall: Interval
    f1: Interval


def class_scores(counts: Any, labels: Sequence[str], settings: Evaluate) -> list[ClassScores]:
    """Precision, recall and F1 of each class with intervals, in the order of the labels.

    Args:
        counts: (N, 3C) what each row adds, a numpy array or a SciPy sparse one.
        labels: The C classes.
        settings: For the intervals.
    """
    _, predicted, support = np.asarray(counts.sum(axis=0), dtype=np.int64).reshape(3, len(labels))
    found: dict[tuple[str, int], Statistic] = {}
    for number in range(len(labels)):
        trials = {"precision": int(predicted[number]), "recall": int(support[number])}
        for score in ("precision", "recall", "f1"):
            found[score, number] = Statistic(
                counts, of_class(score, number), trials=trials.get(score, max(trials.values()))
            )
    got = bootstrap_all(found, resamples=settings.resamples, confidence=settings.confidence, seed=settings.seed)
    return [
        ClassScores(
            label, int(support[i]), int(predicted[i]), *(got[score, i] for score in ("precision", "recall", "f1"))
        )
        for i, label in enumerate(labels)
    ]


def macro_f1(sums: FloatArray) -> FloatArray:
    """Mean over the classes that occur among references or predictions, as scikit-learn does by default."""
    right, predicted, referred = np.split(sums, 3, axis=1)
    occurring = (predicted + referred > 0).sum(axis=1)
    return (2 * right / np.maximum(predicted + referred, 1)).sum(axis=1) / np.maximum(occurring, 1)


def micro_f1(sums: FloatArray) -> FloatArray:
    """F1 of all classes together; 0 where there is neither reference nor prediction."""
    right, predicted, referred = _totals(sums)
    return 2 * right / np.maximum(predicted + referred, 1)


def micro_precision(sums: FloatArray) -> FloatArray:
    """Share of all predictions that is right; 0 where there is none."""
    right, predicted, _ = _totals(sums)
    return right / np.maximum(predicted, 1)


def micro_recall(sums: FloatArray) -> FloatArray:
    """Share of all references that was found; 0 where there is none."""
    right, _, referred = _totals(sums)
    return right / np.maximum(referred, 1)


def of_class(score: str, number: int) -> Callable[[FloatArray], FloatArray]:
    """``precision``, ``recall`` or ``f1`` of one class; 0 where the divisor is 0."""

    def combine(sums: FloatArray) -> FloatArray:
        right, predicted, referred = sums.reshape(len(sums), 3, -1)[:, :, number].T
        bottom = {"precision": predicted, "recall": referred, "f1": (predicted + referred) / 2}[score]
        return right / np.maximum(bottom, 0.5)

    return combine


def _totals(sums: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    right, predicted, referred = (part.sum(axis=1) for part in np.split(sums, 3, axis=1))
    return right, predicted, referred
