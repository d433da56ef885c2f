"""The rows that a model is measured on: the test rows, which it did not learn from and was not chosen by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tunesmith.data.rows import Row
from tunesmith.events import Listener, Notice
from tunesmith.recipe import Recipe
from tunesmith.tasks import TASKS

if TYPE_CHECKING:
    from tunesmith.data.prepare import PreparedData

WRITTEN_LIMIT = 200
"""Test rows on which written answers are measured unless the recipe says otherwise: writing is slow."""


def rows_to_measure(recipe: Recipe, data: PreparedData, tell: Listener) -> list[Row]:
    """The rows that a run is measured on: the held-out ones, or as many as the limit allows."""
    rows = held_out(data, tell)
    most = recipe.evaluate.limit or (WRITTEN_LIMIT if TASKS[recipe.task].answer in ("text", "open") else None)
    if most is not None and len(rows) > most:
        part = "test" if len(data.test) else "validation"
        tell(Notice(level="info", message=f"measuring on {most} of {len(rows)} {part} rows (`evaluate.limit`)"))
    return some_rows(rows, most)


def held_out(data: PreparedData, tell: Listener, *, stage: str | None = None) -> list[Row]:
    """All test rows; where there are none, with a warning, the validation rows.

    Args:
        data: Of the run, or of one of its stages.
        tell: Told that validation rows stand in for test rows.
        stage: Its name, for the warning.
    """
    if len(data.test) or not len(data.validation):
        return list(data.test)
    of = f"stage {stage}: " if stage else ""
    message = f"{of}there are no test rows: measuring on the validation rows, on which the checkpoint was chosen"
    tell(Notice(level="warning", message=message, fix="give `data.test` a share or a file"))
    return list(data.validation)


def some_rows(rows: Sequence[Row], most: int | None) -> list[Row]:
    """Not more rows than so many, chosen by their content: whatever their order, they are the same ones."""
    if most is None or len(rows) <= most:
        return list(rows)
    return sorted(rows, key=lambda row: row.key)[:most]
