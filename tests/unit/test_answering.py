"""What is put before a model when a prompt does not fit."""

from __future__ import annotations

import tiny
from tunesmith.events import Notice
from tunesmith.prediction.answering import _fitting


def test_prompts_too_long_for_the_model_lose_their_beginning_and_are_named() -> None:
    events = tiny.Events()
    rows = tiny.rows_of([{}, {}, {}])
    assert _fitting([[1, 2, 3], [4], [5, 6]], rows, 2, events) == [[2, 3], [4], [5, 6]]
    (notice,) = events.of(Notice)
    assert notice.where == "rows.jsonl:1" and "1 of 3 prompts" in notice.message


def test_prompts_that_fit_are_left_alone() -> None:
    events = tiny.Events()
    assert _fitting([[1, 2]], tiny.rows_of([{}]), 2, events) == [[1, 2]] and not events
