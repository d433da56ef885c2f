"""A score a row: how far it is from the right one, and whether it orders the rows rightly."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tunesmith.arrays import FloatArray
from tunesmith.evaluation.intervals import Statistic, mean
from tunesmith.prediction.outputs import Outputs, Truth
from tunesmith.prediction.reading import scores

PRIMARY = ("r2",)
DECIDING = ("r2", "rmse", "mae", "pearson", "spearman")
VALIDATION = "r2"


def statistics(outputs: Outputs, right: Truth) -> dict[str, Callable[[], Statistic]]:
    """Name -> how to compute it. References are numbers.

    All are functions of sums over rows (numbers, squares, products), so they can be resampled. Spearman's correlation
    is Pearson's of the ranks among all rows, which a resample keeps instead of ranking anew.
    """
    if outputs.scores is None and outputs.texts is None:
        return {}
    truth, found = np.asarray(right.references, dtype=np.float64), scores(outputs)
    gaps = found - truth
    moments = _moments(truth, found)
    return {
        "r2": lambda: Statistic(moments, _r2, row_scores=-(gaps**2)),
        "rmse": lambda: Statistic(moments, _rmse, row_scores=-(gaps**2)),
        "mae": lambda: mean(np.abs(gaps), higher_is_better=False),
        "pearson": lambda: Statistic(moments, _correlation, row_scores=-(gaps**2)),
        "spearman": lambda: Statistic(_moments(_ranks(truth), _ranks(found)), _correlation, row_scores=-(gaps**2)),
    }


def texts(outputs: Outputs, right: Truth) -> list[str]:
    """The scores, or what was written."""
    return outputs.texts if outputs.texts is not None else [f"{score:.6g}" for score in scores(outputs)]


def _moments(truth: FloatArray, found: FloatArray) -> FloatArray:
    """What each row adds, (N, 6): 1, y, f, y^2, f^2, yf. Centred first, for sums of squares lose digits."""
    y, f = truth - truth.mean(), found - truth.mean()
    return np.stack([np.ones_like(y), y, f, y**2, f**2, y * f], axis=1)


def _squared_errors(sums: FloatArray) -> FloatArray:
    _, _, _, yy, ff, yf = sums.T
    return np.maximum(yy - 2 * yf + ff, 0.0)


def _r2(sums: FloatArray) -> FloatArray:
    """1 - squared errors over the squared distances of the truth from its mean; 0 where the truth does not vary."""
    rows, y, _, yy, _, _ = sums.T
    total = yy - y**2 / rows
    return 1.0 - np.divide(
        _squared_errors(sums), total, out=np.ones_like(total), where=total > 1e-12 * np.maximum(yy, 1)
    )


def _rmse(sums: FloatArray) -> FloatArray:
    return np.sqrt(_squared_errors(sums) / sums[:, 0])


def _correlation(sums: FloatArray) -> FloatArray:
    """Pearson's; 0 where one of the two does not vary, for then nothing is ordered."""
    rows, y, f, yy, ff, yf = sums.T
    variances = np.maximum(yy - y**2 / rows, 0.0) * np.maximum(ff - f**2 / rows, 0.0)
    floor = 1e-18 * np.maximum(yy * ff, 1e-300)
    result = np.divide(yf - y * f / rows, np.sqrt(variances), out=np.zeros_like(yf), where=variances > floor)
    return np.clip(result, -1.0, 1.0)


def _ranks(values: FloatArray) -> FloatArray:
    from scipy.stats import rankdata

    return np.asarray(rankdata(values), dtype=np.float64)
