"""Calibration: whether a system that says "90 % sure" is right nine times in ten."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tunesmith.arrays import BoolArray, FloatArray, IntArray
from tunesmith.evaluation.intervals import Interval, Statistic, exact_limits, mean

BINS = 15
"""Equal-width bins of confidence, as in Guo et al. 2017."""


@dataclass(frozen=True)
class ReliabilityBin:
    """The test rows whose confidence lies in ``(low, high]``.

    Attributes:
        low: Lower edge of the bin.
        high: Upper edge of the bin.
        rows: How many rows fell in.
        confidence: Their mean confidence; the bin's centre if there are none.
        accuracy: The share that was right, with exact limits; ``None`` if there are no rows.
    """

    low: float
    high: float
    rows: int
    confidence: float
    accuracy: Interval | None


def expected_calibration_error(confidence: FloatArray, right: BoolArray, bins: int = BINS) -> Statistic:
    """Mean gap between confidence and accuracy over bins of confidence, weighted by their rows.

    C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger, "On Calibration of Modern Neural Networks", ICML 2017, equation 3. In a
    bin, rows x |accuracy - confidence| is |number right - sum of confidences|, so two sums a bin are one.
    The estimate errs on the high side for few rows, since a gap cannot be negative; see :attr:`Statistic.centred`.

    Args:
        confidence: (N,) probability of the predicted class.
        right: (N,) whether the prediction is right.
        bins: Number of equal-width bins.
    """
    rows = len(confidence)
    gaps = np.zeros((rows, bins))
    gaps[np.arange(rows), bin_numbers(confidence, bins)] = right.astype(np.float64) - confidence
    return Statistic(gaps, lambda sums: np.abs(sums).sum(axis=1) / rows, centred=True)


def brier_score(probabilities: FloatArray, references: IntArray) -> Statistic:
    """Mean squared distance of the probabilities from the truth (G. W. Brier, Monthly Weather Review 78, 1950).

    Summed over classes, 0 to 2; for two classes the half, 0 to 1, as scikit-learn and most texts have it.

    Args:
        probabilities: (N, C).
        references: (N,) index of the right class.
    """
    truth = np.zeros_like(probabilities)
    truth[np.arange(len(references)), references] = 1.0
    scale = 0.5 if probabilities.shape[1] == 2 else 1.0
    return mean(scale * ((probabilities - truth) ** 2).sum(axis=1), higher_is_better=False)


def log_loss(probabilities: FloatArray, references: IntArray) -> Statistic:
    """Mean of -ln(probability of the right class), in nats. Probabilities are kept off 0 by the float's precision."""
    of_truth = probabilities[np.arange(len(references)), references]
    return mean(-np.log(np.clip(of_truth, np.finfo(np.float64).eps, 1.0)), higher_is_better=False)


def reliability(
    confidence: FloatArray, right: BoolArray, *, bins: int = BINS, level: float = 0.95
) -> list[ReliabilityBin]:
    """The bins of a reliability diagram.

    Args:
        confidence: (N,) probability of the predicted class.
        right: (N,) whether the prediction is right.
        bins: Number of equal-width bins.
        level: Coverage of the limits of each bin's accuracy.
    """
    numbers = bin_numbers(confidence, bins)
    table = []
    for number in range(bins):
        inside = numbers == number
        rows, hits = int(inside.sum()), int(right[inside].sum())
        accuracy = Interval(hits / rows, *exact_limits(hits, rows, level)) if rows else None
        centre = float(confidence[inside].mean()) if rows else (number + 0.5) / bins
        table.append(ReliabilityBin(number / bins, (number + 1) / bins, rows, centre, accuracy))
    return table


def bin_numbers(confidence: FloatArray, bins: int) -> IntArray:
    """Bin of each confidence, counted from 0; bin m holds (m / bins, (m + 1) / bins], and 0 goes into the first."""
    return np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
