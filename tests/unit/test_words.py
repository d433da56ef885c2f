"""Durations and sizes as people read them."""

from __future__ import annotations

import pytest

from tunesmith import words


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0 s"),
        (1e-5, "0 s"),
        (0.0421, "0.042 s"),
        (0.42, "0.42 s"),
        (9.4, "9.4 s"),
        (9.96, "10 s"),
        (38.2, "38 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (192, "3 min 12 s"),
        (3599.7, "1 h 00 min"),
        (7500, "2 h 05 min"),
        (100_000, "27 h 46 min"),
    ],
)
def test_durations(seconds: float, shown: str) -> None:
    assert words.duration(seconds) == shown


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 bytes"),
        (12, "12 bytes"),
        (999, "999 bytes"),
        (12_345, "12.3 kB"),
        (999_600, "1 MB"),
        (90_900_000, "90.9 MB"),
        (2e9, "2 GB"),
        (1.31e9, "1.31 GB"),
        (640e9, "640 GB"),
        (1.34e12, "1.34 TB"),
    ],
)
def test_sizes(count: float, shown: str) -> None:
    assert words.size(count) == shown


def test_spans_are_in_the_unit_of_the_larger() -> None:
    assert words.size_span(0.95e9, 1.4e9) == "0.95 to 1.4 GB"
    assert words.size_span(17.21e9, 19e9) == "17.2 to 19 GB"
    assert words.size_span(0, 0) == "0 to 0 bytes"
    assert words.duration_span(0.2, 0.4) == "0.2 to 0.4 seconds"
    assert words.duration_span(90, 132) == "1.5 to 2.2 minutes"
    assert words.duration_span(3600, 7200) == "1.0 to 2.0 hours"
    assert words.duration_span(45, 45) == "45.0 seconds"
