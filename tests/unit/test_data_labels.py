"""Slips in labels are found, and names that merely look alike are left in peace."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.labels import edit_distance, find_typos, in_order


@pytest.mark.parametrize(
    ("label", "other", "distance"),
    [
        ("kitten", "sitting", 3),
        ("ab", "ba", 1),
        ("", "abc", 3),
        ("abc", "abc", 0),
        ("flaw", "lawn", 2),
        ("ca", "abc", 3),
    ],
)
def test_edit_distance_of_known_pairs(label: str, other: str, distance: int) -> None:
    assert edit_distance(label, other, 9) == distance


short = st.text("abc", max_size=6)


@given(short, short, short)
def test_edit_distance_is_symmetric_and_bounded(a: str, b: str, c: str) -> None:
    assert edit_distance(a, b, 9) == edit_distance(b, a, 9)
    assert (edit_distance(a, b, 9) == 0) == (a == b)
    assert edit_distance(a, b, 1) == min(2, edit_distance(a, b, 9))


@pytest.mark.parametrize("slip", ["Positive", "positive ", "POSITIVE", "positve", "postiive", "positivee"])
def test_slips_are_found(slip: str) -> None:
    (typo,) = find_typos({"positive": 100, "negative": 100, slip: 1})
    assert (typo.label, typo.meant) == (slip, "positive")


@pytest.mark.parametrize(
    "counts",
    [
        {"level 1": 500, "level 2": 1},
        {"1": 500, "11": 1, "-1": 1, "1.0": 3},
        {"A": 500, "A-": 1, "B": 40},
        {"cat": 500, "hat": 400},  # both frequent
        {"rise": 20, "rose": 3},
        {"C++": 500, "C": 1, "C#": 1},
        {"positive": 500, "negative": 1},
    ],
)
def test_other_names_are_no_slips(counts: dict[str, int]) -> None:
    assert find_typos(counts) == []


def test_frequent_variants_are_found_by_spelling_alone() -> None:
    (typo,) = find_typos({"card arrival": 300, "card_Arrival": 299})
    assert (typo.label, typo.meant) == ("card_Arrival", "card arrival")


def test_order_of_labels() -> None:
    assert in_order(["10", "9", "-1", "2.5"]) == ["-1", "2.5", "9", "10"]
    assert in_order(["b", "10", "9"]) == ["10", "9", "b"]
    assert in_order(["nan", "2", "1"]) == ["1", "2", "nan"]
