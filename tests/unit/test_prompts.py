"""Prompts without answers: everything beside the prompt is there for rewards, and a row with an answer is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from conftest import write_jsonl
from tunesmith.data.prepare import check, prepare
from tunesmith.errors import RecipeError
from tunesmith.recipe_file import parse

ASKED: list[Any] = [{"role": "user", "content": "what is the capital of france"}]


def recipe(path: Path, **more: Any) -> Any:
    tree = {"task": "prompts", "method": "verifiable-reward", "model": "smollm2-135m-instruct"}
    return parse({**tree, "data": {"train": str(path), "validation": 0.0, "test": 0.0}, **more}, source="test")


def test_all_other_columns_come_with_the_prompt(tmp_path: Path) -> None:
    rows = [
        {"messages": ASKED, "capital": "paris", "more": {"n": 1}},
        {"messages": ASKED[:], "capital": "rome", "n": 2},
    ]
    found = prepare(recipe(write_jsonl(tmp_path / "a.jsonl", rows))).train
    assert [row.fields["item"] for row in found] == [
        {"capital": "paris", "more": {"n": 1}},
        {"capital": "rome", "n": 2},
    ]
    assert all(row.fields["prompt"] == ASKED and row.fields["completion"] == "" for row in found)


def test_prompts_of_plain_text(tmp_path: Path) -> None:
    found = prepare(recipe(write_jsonl(tmp_path / "a.jsonl", [{"question": "why", "answer": "so"}]))).train[0]
    assert found.fields == {"prompt": "why", "completion": "", "item": {"answer": "so"}}


@pytest.mark.parametrize(
    ("row", "code"),
    [
        ({"messages": [*ASKED, {"role": "assistant", "content": "paris"}]}, "last-role"),
        ({"messages": [{"role": "user", "content": " "}]}, "empty-field"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "unknown-role"),
    ],
)
def test_rows_that_ask_nothing(tmp_path: Path, row: dict[str, Any], code: str) -> None:
    report = check(recipe(write_jsonl(tmp_path / "a.jsonl", [row])))
    assert [problem.code for problem in report.errors if problem.code != "no-rows"] == [code]


def test_nothing_but_rewards_can_teach_them(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no answers to learn from"):
        recipe(tmp_path / "a.jsonl", method="instruction")
