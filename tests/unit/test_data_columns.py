"""Columns are taken as told, by name, or guessed; never when in doubt."""

from __future__ import annotations

import pytest

from tunesmith.data.columns import Choice, choose_columns
from tunesmith.data.problems import Fault
from tunesmith.data.rows import Origin
from tunesmith.tasks import TASKS

HERE = Origin("a.csv", 1)


def chosen(
    columns: list[str], given: dict[str, str] | None = None, task: str = "text-classification"
) -> dict[str, tuple]:
    choice = choose_columns(columns, TASKS[task], given or {}, HERE)
    assert isinstance(choice, Choice), choice
    return {c.field.name: (c.column, c.how) for c in choice.columns}


def refused(columns: list[str], given: dict[str, str] | None = None, task: str = "text-classification") -> Fault:
    fault = choose_columns(columns, TASKS[task], given or {}, HERE)
    assert isinstance(fault, Fault)
    assert fault.whole_file
    return fault


def test_names_of_the_task_win_over_aliases() -> None:
    assert chosen(["review", "text", "category", "label"]) == {"text": ("text", "exact"), "label": ("label", "exact")}


def test_aliases_are_guessed_without_regard_to_case() -> None:
    assert chosen(["Review", " CATEGORY"]) == {"text": ("Review", "guessed"), "label": (" CATEGORY", "guessed")}


def test_what_is_told_wins() -> None:
    assert chosen(["text", "title", "label"], {"text": "title"})["text"] == ("title", "given")


def test_ignored_columns_are_kept_for_the_report() -> None:
    choice = choose_columns(["id", "text", "label"], TASKS["text-classification"], {}, HERE)
    assert isinstance(choice, Choice)
    assert choice.ignored == ("id",)
    assert "not used: id" in str(choice)


def test_doubt_is_an_error_that_lists_the_columns() -> None:
    fault = refused(["review", "sentence", "label"])
    assert "`review`, `sentence`" in fault.message
    assert "data.columns.text=review" in str(fault.fix)


@pytest.mark.parametrize(("given", "hint"), [({"text": "reviw"}, "'review'"), ({"txt": "review"}, "data.columns.text")])
def test_slips_in_the_recipe_are_named(given: dict[str, str], hint: str) -> None:
    assert hint in str(refused(["review", "label"], given).fix)


def test_missing_columns_are_named_with_those_found() -> None:
    fault = refused(["a", "b"])
    assert "no column for `text`" in fault.message
    assert "`a`, `b`" in fault.message


def test_second_form_is_taken_where_the_first_does_not_fit() -> None:
    assert chosen(["prompt", "completion"], task="text-generation") == {
        "prompt": ("prompt", "exact"),
        "completion": ("completion", "exact"),
    }
    assert next(iter(chosen(["messages", "prompt", "completion"], task="text-generation"))) == "messages"
    assert "prompt" in chosen(["messages", "q", "a"], {"prompt": "q", "completion": "a"}, task="text-generation")
