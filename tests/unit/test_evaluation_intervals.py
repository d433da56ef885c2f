from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_array

from tunesmith.errors import DataError
from tunesmith.evaluation.calibration import expected_calibration_error
from tunesmith.evaluation.intervals import Interval, Statistic, bootstrap, bootstrap_all, bootstrap_difference, mean


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    generator = np.random.default_rng(7)
    trials, covered = 300, 0
    for _ in range(trials):
        interval = bootstrap(mean((generator.random(120) < 0.8).astype(float), proportion=True), resamples=400)
        covered += interval.low <= 0.8 <= interval.high
    # Three standard errors of a share of 300 around 0.94, which is what the percentile bootstrap reaches at 120 rows.
    assert 0.90 <= covered / trials <= 0.98


def test_a_narrower_confidence_covers_less() -> None:
    scores = mean(np.random.default_rng(0).normal(size=200))
    wide, narrow = bootstrap(scores, confidence=0.99), bootstrap(scores, confidence=0.8)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_the_interval_agrees_with_theory() -> None:
    scores = np.random.default_rng(1).normal(size=400)
    interval = bootstrap(mean(scores), resamples=4000)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * scores.std() / 20, rel=0.05)


def test_resampling_rows_is_what_the_matrix_form_does() -> None:
    """A ratio of sums, resampled in the matrix form, against resampling the rows one index at a time."""
    values = np.random.default_rng(2).random((50, 2))
    statistic = Statistic(values, lambda sums: sums[:, 0] / sums[:, 1])
    generator = np.random.default_rng(3)
    slow = [
        (lambda drawn: drawn[:, 0].sum() / drawn[:, 1].sum())(values[generator.integers(0, 50, 50)])
        for _ in range(8000)
    ]
    fast = bootstrap(statistic, resamples=8000)
    assert [fast.low, fast.high] == pytest.approx(np.quantile(slow, [0.025, 0.975]).tolist(), rel=0.02)


def test_sparse_and_dense_contributions_agree() -> None:
    hits = (np.random.default_rng(4).random((90, 3)) < 0.2).astype(float)
    share = lambda sums: sums[:, 0] / np.maximum(sums.sum(axis=1), 1)  # noqa: E731
    found = bootstrap_all({"dense": Statistic(hits, share), "sparse": Statistic(csr_array(hits), share)})
    assert found["dense"] == found["sparse"]


def test_a_seed_fixes_the_interval() -> None:
    scores = mean(np.random.default_rng(0).normal(size=50))
    assert bootstrap(scores, seed=1) == bootstrap(scores, seed=1)
    assert bootstrap(scores, seed=1) != bootstrap(scores, seed=2)


def test_a_difference_is_paired() -> None:
    """Systems that differ by a constant on noisy rows: unpaired limits would be wide, paired ones have no width."""
    noise = np.random.default_rng(0).normal(scale=5.0, size=100)
    difference, p_value = bootstrap_difference(mean(noise + 0.5), mean(noise))
    assert (difference.low, difference.high) == (pytest.approx(0.5), pytest.approx(0.5))
    assert p_value < 0.01


def test_equal_systems_are_never_told_apart() -> None:
    scores = mean(np.random.default_rng(0).random(30))
    difference, p_value = bootstrap_difference(scores, scores)
    assert (difference, p_value) == (Interval(0.0, 0.0, 0.0), 1.0)


def test_p_values_of_systems_alike_are_uniform() -> None:
    generator = np.random.default_rng(5)
    p_values = [
        bootstrap_difference(mean(generator.normal(size=60)), mean(generator.normal(size=60)), resamples=300)[1]
        for _ in range(300)
    ]
    assert 0.015 <= np.mean(np.array(p_values) < 0.05) <= 0.10
    assert 0.40 <= np.mean(np.array(p_values) < 0.5) <= 0.60


def test_calibration_error_limits_hold_the_estimate() -> None:
    generator = np.random.default_rng(0)
    confidence = generator.uniform(0.5, 1.0, 300)
    interval = bootstrap(expected_calibration_error(confidence, generator.random(300) < confidence))
    assert 0.0 <= interval.low < interval.value < interval.high


def test_comparing_different_rows_is_refused() -> None:
    with pytest.raises(DataError, match="same rows"):
        bootstrap_difference(mean(np.ones(3)), mean(np.ones(4)))


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        (Interval(0.843, 0.812, 0.868), "0.843 [0.81, 0.87]"),
        (Interval(0.843, 0.8361, 0.852), "0.843 [0.836, 0.852]"),
        (Interval(45.27, 43.11, 47.92), "45.3 [43.1, 47.9]"),
    ],
)
def test_intervals_read_well(interval: Interval, text: str) -> None:
    assert str(interval) == text
    assert interval.format(signed=True).startswith("+")
    assert interval.as_dict() == {"value": interval.value, "low": interval.low, "high": interval.high}
