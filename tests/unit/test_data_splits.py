"""Splits: disjoint, stable, stratified, with duplicates on one side."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import write_jsonl
from tunesmith.data.ledger import Ledger, hash64
from tunesmith.data.prepare import PreparedData, prepare
from tunesmith.data.rows import Origin
from tunesmith.data.splits import NOWHERE, TEST, TRAIN, VALIDATION, Assignment, bounds, stratify
from tunesmith.errors import DataError
from tunesmith.recipe import Data, Recipe

Rows = list[tuple[int, int]]
"""(number of the text, number of the label)"""


def sides_of(rows: Rows, **options: object) -> list[int]:
    """The side of each row, after stratification."""
    ledger = Ledger()
    for number, (text, label) in enumerate(rows):
        content = hash64(f"{text} {label}".encode())
        ledger.add((hash64(str(text).encode()), label, content, 0, 0, label, 0, 0, 0, 0), Origin("f", number + 1))
    assignment = Assignment(**{"validation": 0.1, "test": 0.1, **options})  # type: ignore[arg-type]
    labels = [f"label {n}" for n in range(max((label for _, label in rows), default=0) + 1)]
    stratify(assignment, ledger, labels)
    return [side for _, _, sides in assignment.sides(ledger) for side in sides.tolist()]


many_rows = st.lists(st.tuples(st.integers(0, 300), st.integers(0, 4)), max_size=200)


@settings(max_examples=50)
@given(many_rows, st.integers(0, 5), st.randoms(use_true_random=False))
def test_order_does_not_matter_and_equal_inputs_stay_together(rows: Rows, seed: int, generator: random.Random) -> None:
    sides = sides_of(rows, seed=seed)
    assert len(sides) == len(rows)
    side_of_text = dict(zip((text for text, _ in rows), sides, strict=True))
    assert all(side_of_text[text] == side for (text, _), side in zip(rows, sides, strict=True))
    order = list(range(len(rows)))
    generator.shuffle(order)
    assert sides_of([rows[n] for n in order], seed=seed) == [sides[n] for n in order]


@settings(max_examples=50)
@given(st.lists(st.integers(1, 120), min_size=1, max_size=6), st.sampled_from([0.0, 0.05, 0.1, 0.3, 0.5]))
def test_every_class_keeps_its_share_on_every_side(sizes: list[int], share: float) -> None:
    rows = [(1000 * label + n, label) for label, size in enumerate(sizes) for n in range(size)]
    sides = np.array(sides_of(rows, validation=0.1, test=share))
    labels = np.array([label for _, label in rows])
    for label, size in enumerate(sizes):
        for side, wanted in ((TEST, share), (VALIDATION, 0.1)):
            low, high = bounds(wanted, size)
            held = int(((labels == label) & (sides == side)).sum())
            assert held <= high
            assert held >= min(low, size - 1 - (sides[labels == label] == TEST).sum() * (side == VALIDATION))
        assert ((labels == label) & (sides == TRAIN)).sum() >= 1


def test_bounds() -> None:
    assert bounds(0.1, 100) == (7, 13)
    assert bounds(0.1, 5) == (1, 1)
    assert bounds(0.1, 4) == (0, 1)
    assert bounds(0.0, 100) == (0, 0)


def test_appended_rows_leave_the_others_where_they_are() -> None:
    rows = [(n, n % 2) for n in range(6000)]
    before = sides_of(rows)
    for added in (1, 10, 300, 3000):
        after = sides_of(rows + [(10_000 + n, n % 2) for n in range(added)])
        assert after[: len(rows)] == before


def test_in_small_classes_only_rows_at_the_border_move() -> None:
    rows = [(n, n % 7) for n in range(210)]
    moved = 0
    for added in range(0, 210, 30):
        before = sides_of(rows + [(1000 + n, n % 7) for n in range(added)])
        after = sides_of(rows + [(1000 + n, n % 7) for n in range(added + 30)])
        moved += sum(a != b for a, b in zip(before, after, strict=False))
    assert moved <= 0.05 * sum(210 + added for added in range(0, 210, 30))


def test_shares_are_met_and_seeds_differ() -> None:
    rows = [(n, 0) for n in range(30_000)]
    first, second = np.array(sides_of(rows, seed=0)), np.array(sides_of(rows, seed=1))
    for sides in (first, second):
        assert abs((sides == TEST).mean() - 0.1) < 0.01
        assert abs((sides == VALIDATION).mean() - 0.1) < 0.01
    assert abs(((first == TEST) & (second == TEST)).mean() - 0.01) < 0.005  # independent


def test_tied_inputs_go_together() -> None:
    ties = {hash64(str(n).encode()): min(hash64(str(m).encode()) for m in (n, n + 1)) for n in range(0, 2000, 2)}
    ties |= {hash64(str(n + 1).encode()): ties[hash64(str(n).encode())] for n in range(0, 2000, 2)}
    sides = sides_of([(n, n % 2) for n in range(2000)], ties=ties)
    assert sides[0::2] == sides[1::2]
    assert len(set(sides)) == 3


@pytest.mark.parametrize("most", [1, 10, 500, 999, 1000, 5000])
def test_max_rows_takes_so_many_and_a_smaller_choice_is_part_of_a_larger(most: int) -> None:
    rows = [(n % 900, n % 2) for n in range(1000)]  # some rows repeat others exactly
    chosen = [n for n, side in enumerate(sides_of(rows, max_rows=most)) if side != NOWHERE]
    assert len(chosen) == min(most, 1000)
    fewer = [n for n, side in enumerate(sides_of(rows, max_rows=max(1, most // 2))) if side != NOWHERE]
    assert set(fewer) <= set(chosen)


def grouped(path: Path, rows: list[dict[str, Any]], **data: Any) -> PreparedData:
    recipe = Recipe(
        task="text-generation", model="none", data=Data(train=[str(write_jsonl(path / "rows.jsonl", rows))], **data)
    )
    return prepare(recipe)


def of_tools(rows_of_each: list[int]) -> list[dict[str, Any]]:
    return [
        {"tool": f"tool {tool}", "prompt": f"do thing {n} with {tool}", "completion": f"{tool} --{n}"}
        for tool, count in enumerate(rows_of_each)
        for n in range(count)
    ]


def test_rows_of_a_group_stay_on_one_side(tmp_path: Path) -> None:
    rows = of_tools([1 + n % 9 for n in range(200)])
    tool_of = {row["prompt"]: row["tool"] for row in rows}
    apart = grouped(tmp_path, rows, group_by="tool", validation=0.1, test=0.2)
    sides = [{tool_of[row.fields["prompt"]] for row in part} for part in (apart.train, apart.validation, apart.test)]
    assert not sides[0] & sides[1] and not sides[0] & sides[2] and not sides[1] & sides[2]
    assert [len(side) for side in sides] == [pytest.approx(n, abs=10) for n in (140, 20, 40)]
    assert sum(map(len, (apart.train, apart.validation, apart.test))) == len(rows)
    torn = grouped(tmp_path, rows, validation=0.1, test=0.2)
    assert {tool_of[row.fields["prompt"]] for row in torn.train} & {tool_of[row.fields["prompt"]] for row in torn.test}


def test_what_groups_cannot_keep_apart_is_said(tmp_path: Path) -> None:
    rows = of_tools([5] * 40) + [
        {"tool": f"tool {n}", "prompt": "show the version", "completion": "-v"} for n in range(40)
    ]
    codes = {problem.code: problem for problem in grouped(tmp_path, rows, group_by="tool").report.problems}
    assert "group-overlap" in codes and "group-leakage" not in codes
    own = write_jsonl(tmp_path / "test.jsonl", of_tools([6, 6])[5::6])
    report = grouped(tmp_path, of_tools([5] * 40), group_by="tool", test=[str(own)]).report
    (found,) = (problem for problem in report.problems if problem.code == "group-leakage" and "test" in problem.message)
    assert found.count == 2


def test_a_group_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no column 'tol'.*`tool`"):
        grouped(tmp_path, of_tools([5] * 9), group_by="tol")
    rows = [*of_tools([5] * 9), {"prompt": "what", "completion": "that"}]
    with pytest.raises(DataError, match="grouped") as refused:
        grouped(tmp_path, rows, group_by="tool")
    assert str(refused.value.where).endswith("rows.jsonl:46")
