"""A score for each text: read as a number, and rendered for heads that give a number or a grade."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith.data.problems import Fault
from tunesmith.data.rows import Row
from tunesmith.errors import DataError

if TYPE_CHECKING:
    from tunesmith.data.render import Render, Rendered
    from tunesmith.tasks.base import Task

LARGEST_GRADE = 1000
"""Scores beyond it, or finer than :data:`GRADES_A_UNIT`, are measurements, not grades."""
GRADES_A_UNIT = 4


def convert(row: Row) -> tuple[Row, list[Fault]]:
    """A row whose score is a number, or what is wrong with it."""
    value = row.fields["score"]
    try:
        score = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        score = math.nan
    if not math.isfinite(score):
        fix = "write it with a point: 3.5" if isinstance(value, str) and "," in value else "write a number"
        return row, [Fault("bad-score", f"the score {value!r} is no number", row.origin, fix=fix)]
    return Row({**row.fields, "score": score}, row.origin), []


def grade_name(score: float) -> str | None:
    """A score as the name of a grade (``3``, ``3.5``); ``None`` if it is too large or too fine to be one."""
    whole = abs(score) <= LARGEST_GRADE and (score * GRADES_A_UNIT).is_integer()
    return f"{score:g}" if whole else None


def score_renderer(tokenizer: Any, task: Task, max_length: int) -> Render:
    """Render rows for a head that gives a number: ``extra["score"]`` is the right one, as the data have it."""
    from tunesmith.data.render import Rendered, encode_text

    def render(row: Row) -> Rendered:
        input_ids, cut = encode_text(tokenizer, task.input_text(row), max_length)
        return Rendered(input_ids=input_ids, label=0, cut_tokens=cut, extra={"score": [float(task.reference(row))]})

    return render


def grade_renderer(tokenizer: Any, task: Task, grades: Sequence[str], max_length: int) -> Render:
    """Render rows for a head that gives a grade: ``extra["grade"]`` is its place among ``grades``.

    The returned function raises :class:`DataError` for a score that is none of them.
    """
    from tunesmith.data.render import Rendered, encode_text

    places = {grade: number for number, grade in enumerate(grades)}

    def render(row: Row) -> Rendered:
        input_ids, cut = encode_text(tokenizer, task.input_text(row), max_length)
        grade = grade_name(float(task.reference(row)))
        if grade not in places:
            raise DataError(
                f"the score {task.target_text(row)} is none of the {len(grades)} grades of the training data",
                where=str(row.origin),
                fix="`objective: ordinal` wants a few grades (1, 2, 3 or 0.5, 1, 1.5); for other scores: `mse`",
            )
        return Rendered(input_ids=input_ids, label=0, cut_tokens=cut, extra={"grade": [places[grade]]})

    return render


def scale_of(scores: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation of scores; the latter is 1 where they do not vary."""
    return float(scores.mean(dtype=np.float64)), float(scores.std(dtype=np.float64)) or 1.0
