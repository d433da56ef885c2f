"""Pairs of answers: whether the better one got the higher score."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tunesmith.evaluation.calibration import expected_calibration_error
from tunesmith.evaluation.intervals import Statistic, mean
from tunesmith.prediction.outputs import Outputs, Truth

PRIMARY = ("pair_accuracy",)
DECIDING = ("pair_accuracy", "log_loss")
VALIDATION = "pair_accuracy"


def statistics(outputs: Outputs, right: Truth) -> dict[str, Callable[[], Statistic]]:
    """Name -> how to compute it. A tie counts half, as a coin would."""
    gaps = outputs.gaps
    if gaps is None:
        return {}
    hits = (gaps > 0) + 0.5 * (gaps == 0)
    makers = {"pair_accuracy": lambda: mean(hits, proportion=not bool((gaps == 0).any()))}
    if outputs.log_odds:  # the model of Bradley and Terry: P(better) = sigmoid(gap)
        makers["ece"] = lambda: expected_calibration_error(1 / (1 + np.exp(-np.abs(gaps))), gaps > 0)
        makers["log_loss"] = lambda: mean(np.logaddexp(0.0, -gaps), higher_is_better=False)
    return makers


def texts(outputs: Outputs, right: Truth) -> list[str]:
    """Which answer was preferred, and by how much."""
    gaps = outputs.gaps if outputs.gaps is not None else np.zeros(outputs.rows)
    return [f"prefers the {'better' if gap > 0 else 'worse'} answer by {abs(gap):.3g}" for gap in gaps]
