"""A score for each text: read as a number, and rendered for heads that give a number or a grade."""

from __future__ import annotations

import math

import numpy as np

from tunesmith.data.problems import Fault
from tunesmith.data.rows import Row

LARGEST_GRADE = 1000
"""Scores beyond it, or finer than :data:`GRADES_A_UNIT`, are measurements, not grades."""
GRADES_A_UNIT = 4


def convert(row: Row) -> tuple[Row, list[Fault]]:
    """A row whose score is a number, or what is wrong with it."""
    value = row.fields["score"]
    try:
        score = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):  # the last: an integer of 400 digits
        score = math.nan
    if not math.isfinite(score):
        fix = "write it with a point: 3.5" if isinstance(value, str) and "," in value else "write a number"
        return row, [Fault("bad-score", f"the score {value!r} is no number", row.origin, fix=fix)]
    return Row({**row.fields, "score": score}, row.origin), []


def grade_name(score: float) -> str | None:
    """A score as the name of a grade (``3``, ``3.5``); ``None`` if it is too large or too fine to be one."""
    whole = abs(score) <= LARGEST_GRADE and (score * GRADES_A_UNIT).is_integer()
    return f"{score:g}" if whole else None


def scale_of(scores: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation of scores; the latter is 1 where they do not vary."""
    return float(scores.mean(dtype=np.float64)), float(scores.std(dtype=np.float64)) or 1.0
