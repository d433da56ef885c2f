"""Intervals for every number: the percentile bootstrap over test rows, in matrix form.

A statistic is written as sums over rows and a function of those sums: accuracy is (right) / (rows), macro F1 a function
of the true positives, predictions and references of each class, bits per byte a ratio of two sums. A resample of the
rows then is a vector of row counts, and all resamples together are one matrix product, however complicated the metric.
The same seed draws the same rows for every system, so that differences between two systems are always *paired*.

Sources: B. Efron and R. J. Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 13 (percentile intervals), 10
(bias) and 15-16 (tests); for exact limits of a proportion C. J. Clopper and E. S. Pearson, Biometrika 26, 1934.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from tunesmith.arrays import FloatArray
from tunesmith.errors import DataError

RESAMPLES_AT_ONCE = 64

Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Interval:
    """A measured value with the limits between which the true one lies at the stated confidence."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """For JSON: ``{"value", "low", "high"}``."""
        return {"value": self.value, "low": self.low, "high": self.high}

    def __str__(self) -> str:
        return self.format()

    def format(self, signed: bool = False) -> str:
        """Write ``0.843 [0.81, 0.87]``: narrow intervals get a third decimal, big numbers one.

        Args:
            signed: Write the sign of positive numbers too, as differences want it.
        """
        sign = "+" if signed else ""
        width = self.high - self.low
        digits, limit_digits = (1, 1) if max(abs(self.low), abs(self.high)) >= 10 else (3, 3 if width < 0.02 else 2)
        low, high = (f"{limit:{sign}.{limit_digits}f}" for limit in (self.low, self.high))
        return f"{self.value:{sign}.{digits}f} [{low}, {high}]"

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside the limits."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Statistic:
    """A number computed from sums over rows, so that it can be resampled fast.

    Attributes:
        contributions: (N, K) what each row adds to each of K sums: a numpy array, or a SciPy sparse array. Statistics
            that share one array are resampled at the cost of one.
        combine: Turns sums (B, K) into values (B,).
        row_scores: (N,) how well each row did by itself, higher is better: counts wins and losses of two systems.
        trials: Set for statistics between 0 and 1: the number of rows behind them. When all of those rows agree (the
            value is exactly 0 or 1), a bootstrap sees no spread and would claim certainty; the exact limits of a
            proportion with that many trials are given instead.
        centred: Move the resampled values so that their mean is the estimate. For statistics whose sampling noise adds
            up instead of cancelling (ECE): the bootstrap repeats that bias, and without this step its limits can lie
            above the estimate.
    """

    contributions: Any
    combine: Callable[[FloatArray], FloatArray]
    row_scores: FloatArray | None = None
    trials: int | None = None
    centred: bool = False

    @property
    def rows(self) -> int:
        """N, the number of rows."""
        return int(self.contributions.shape[0])

    @property
    def value(self) -> float:
        """The statistic on the rows as they are."""
        sums = np.asarray(self.contributions.sum(axis=0), dtype=np.float64).reshape(1, -1)
        return float(self.combine(sums)[0])


def mean(scores: FloatArray, *, proportion: bool = False, higher_is_better: bool = True) -> Statistic:
    """The mean of one number per row.

    Args:
        scores: (N,) the numbers.
        proportion: Whether all of them lie between 0 and 1 (see :attr:`Statistic.trials`).
        higher_is_better: Direction, for wins and losses.
    """
    scores = np.asarray(scores, dtype=np.float64)
    rows = len(scores)
    return Statistic(
        contributions=scores[:, None],
        combine=lambda sums: sums[:, 0] / rows,
        row_scores=scores if higher_is_better else -scores,
        trials=rows if proportion else None,
    )


def bootstrap(statistic: Statistic, *, resamples: int = 2000, confidence: float = 0.95, seed: int = 0) -> Interval:
    """Percentile bootstrap interval of one statistic.

    Args:
        statistic: What to measure.
        resamples: Number of resamples with replacement.
        confidence: Coverage, e.g. 0.95.
        seed: Of the resamples; the same for two systems makes their resamples the same rows.

    Raises:
        DataError: There are no rows.
    """
    return bootstrap_all({"": statistic}, resamples=resamples, confidence=confidence, seed=seed)[""]


def bootstrap_all(
    statistics: Mapping[Name, Statistic], *, resamples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> dict[Name, Interval]:
    """Intervals of several statistics over the same rows, from one set of resamples. See :func:`bootstrap`."""
    values = resampled(list(statistics.values()), resamples=resamples, seed=seed)
    return {
        name: _interval(statistic, values_B, confidence)
        for (name, statistic), values_B in zip(statistics.items(), values, strict=True)
    }


def bootstrap_difference(
    a: Statistic, b: Statistic, *, resamples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> tuple[Interval, float]:
    """Paired bootstrap of ``a - b``: both are computed on the same resampled rows.

    Returns:
        The percentile interval of the difference and its two-sided p-value, found by inverting the interval: twice the
        smaller share of resamples on either side of zero (ties count on both), with one added to counts so that it is
        never 0. Efron & Tibshirani 1993, section 15.4; recommended for text metrics by Dror et al., "The Hitchhiker's
        Guide to Testing Statistical Significance in Natural Language Processing", ACL 2018.

    Raises:
        DataError: The statistics are over different numbers of rows.
    """
    if a.rows != b.rows:
        raise DataError(f"a paired comparison needs the same rows, not {a.rows} and {b.rows}")
    values_a, values_b = resampled([a, b], resamples=resamples, seed=seed)
    differences = values_a - values_b
    value = a.value - b.value
    # 1e-12: sums of floats in another order must not turn a tie into a win.
    not_above, not_below = int((differences <= 1e-12).sum()), int((differences >= -1e-12).sum())
    p_value = min(1.0, 2 * (min(not_above, not_below) + 1) / (resamples + 1))
    low, high = percentiles(differences, confidence)
    return Interval(value, min(low, value), max(high, value)), p_value


def resampled(statistics: list[Statistic], *, resamples: int, seed: int) -> list[FloatArray]:
    """Values (B,) of each statistic on B resamples of the rows, the same resamples for all.

    Raises:
        DataError: There are no rows, or not the same number for all.
    """
    sizes = {statistic.rows for statistic in statistics}
    if not statistics:
        return []
    if len(sizes) != 1:
        raise DataError(f"statistics over different numbers of rows: {sorted(sizes)}")
    if sizes == {0}:
        raise DataError("an interval needs at least one row")
    values: list[list[FloatArray]] = [[] for _ in statistics]
    for counts_BN in _row_counts(sizes.pop(), resamples, seed):
        sums_BK: dict[int, FloatArray] = {}
        for collected, statistic in zip(values, statistics, strict=True):
            key = id(statistic.contributions)
            if key not in sums_BK:
                # (K, N) @ (N, B): this order works for numpy and for SciPy's sparse arrays alike.
                sums_BK[key] = np.asarray(statistic.contributions.T @ counts_BN.T).T
            collected.append(statistic.combine(sums_BK[key]))
    return [np.concatenate(parts) for parts in values]


def exact_limits(successes: int, trials: int, confidence: float) -> tuple[float, float]:
    """Clopper-Pearson limits of a proportion; (0, 1) when there was no trial."""
    from scipy.stats import binomtest

    if trials == 0:
        return 0.0, 1.0
    limits = binomtest(successes, trials).proportion_ci(confidence, method="exact")
    return float(limits.low), float(limits.high)


def _row_counts(rows: int, resamples: int, seed: int) -> Iterator[FloatArray]:
    """How often each row is drawn: matrices (b, N) whose lines sum to N, ``resamples`` lines in all."""
    generator = np.random.default_rng(seed)
    for start in range(0, resamples, RESAMPLES_AT_ONCE):
        size = min(RESAMPLES_AT_ONCE, resamples - start)
        drawn = generator.integers(0, rows, size=(size, rows))
        drawn += np.arange(size)[:, None] * rows
        yield np.bincount(drawn.ravel(), minlength=size * rows).reshape(size, rows).astype(np.float64)


def _interval(statistic: Statistic, values: FloatArray, confidence: float) -> Interval:
    value = statistic.value
    if statistic.centred:
        values = np.maximum(values - values.mean() + value, 0.0)
    return of_resamples(value, values, confidence, statistic.trials)


def of_resamples(value: float, values: FloatArray, confidence: float, trials: int | None = None) -> Interval:
    """The interval of a value whose resamples are known; ``trials``: see :class:`Statistic`."""
    if trials is not None and value in (0.0, 1.0):
        return Interval(value, *exact_limits(round(value * trials), trials, confidence))
    low, high = percentiles(values, confidence)
    return Interval(value, min(low, value), max(high, value))


def percentiles(values: FloatArray, confidence: float) -> tuple[float, float]:
    """The limits between which the middle share of the values lies."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, (tail, 1 - tail))
    return float(low), float(high)
