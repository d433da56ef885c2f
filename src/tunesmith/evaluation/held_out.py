"""The rows that a model is measured on: the test rows, which it did not learn from and was not chosen by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.data.rows import Row
from tunesmith.events import Listener, Notice
from tunesmith.recipe import Recipe
from tunesmith.tasks import TASKS

if TYPE_CHECKING:
    from tunesmith.data.prepare import PreparedData

_ASKED = ("text", "label", "spans", "pair", "thumb", "open")
"""Kinds of answers for which a model is asked with its chat template, or with a prompt that must not be empty."""
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


def measurable(view: Recipe, data: PreparedData, base: Path, dropped_to: Path, tell: Listener) -> PreparedData:
    """The data with those held-out rows alone that a model can be asked: found out before hours of training.

    Rows that are only too long stay: they lose the beginning of their prompt, and a notice says so.

    Args:
        view: The recipe as the stage sees it.
        data: Of the stage.
        base: Folder of the model that it begins from.
        dropped_to: Where rows that are left out are written (``data.drop_bad``).
        tell: Told how many are left out.

    Raises:
        DataError: The model's template refuses a row, or it has no prompt; without ``data.drop_bad``.
    """
    from tunesmith.data.dropped import sieved
    from tunesmith.data.renderers import row_renderer
    from tunesmith.models.forms import form_of
    from tunesmith.models.load import load_config, load_tokenizer, longest_example
    from tunesmith.prediction.references import UNCUT

    task = TASKS[view.task]
    form, _ = form_of(view, view.stages[0], base)
    if task.answer not in _ASKED or (form != "generate" and task.answer != "pair"):
        return data
    scores = form != "generate"  # judges read what they were taught to read
    render = row_renderer(
        load_tokenizer(base),
        task,
        form=form,
        labels=data.labels,
        max_length=longest_example(base, load_config(base), view.data.max_length) if scores else UNCUT,
        system_prompt=view.system_prompt,
        loss_on="last-answer",
    )
    rows, what = (data.test, "test rows") if len(data.test) else (data.validation, "validation rows")
    left = [rows[n] for n, _ in sieved(rows, render, dropped_to if view.data.drop_bad else None, what, tell)]
    if len(left) == len(rows):
        return data
    return replace(data, test=left) if len(data.test) else replace(data, validation=left)


def some_rows(rows: Sequence[Row], most: int | None) -> list[Row]:
    """Not more rows than so many, chosen by their content: whatever their order, they are the same ones."""
    if most is None or len(rows) <= most:
        return list(rows)
    return sorted(rows, key=lambda row: row.key)[:most]
