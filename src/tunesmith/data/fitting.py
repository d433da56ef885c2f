"""Making room: what a task allows to be shortened is cut, so that instruction and answer stay whole."""

from __future__ import annotations

import math
from collections.abc import Callable

from tunesmith.data.rows import Row
from tunesmith.tasks.base import Shortens, Task

TOO_LONG = "longer than `data.max_length` (or than the model takes)"
TOO_LONG_FIX = "raise `data.max_length`, shorten or drop the row, or allow `data.truncate`"
"""What is said of a row that would lose its end, and may not (``data.truncate: false``)."""


def fit(task: Task, row: Row, length_of: Callable[[Row], int], limit: int) -> tuple[Row, int]:
    """Shorten a row until it has at most ``limit`` tokens; at most a few tokens are cut more than need be.

    Args:
        task: Rows of tasks that cannot be shortened are given back as they are.
        row: Any.
        length_of: Tokens of the row as the model reads it.
        limit: Room in tokens.

    Returns:
        The row, and how many tokens it lost: 0 too where not even an empty text would fit.
    """
    if not isinstance(task, Shortens):
        return row, 0
    total = length = length_of(row)
    if length <= limit:
        return row, 0
    shorter, characters = row, len(task.input_text(row))
    while length > limit and characters > 0:
        characters -= math.ceil(characters * (length - limit) / length) + 1
        shorter = task.shortened(row, max(0, characters))
        length = length_of(shorter)
    return (shorter, total - length) if length <= limit else (row, 0)
