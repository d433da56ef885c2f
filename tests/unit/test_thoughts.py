"""Thoughts before answers: left out where they are empty, or where no answer has any."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tunesmith.data.rows import Origin, Row
from tunesmith.data.thoughts import EmptyThoughtFilter, without_empty_thought, without_thought
from tunesmith.evaluation.answering import read_answer
from tunesmith.tasks import TASKS

EMPTY = "<think>\n\n</think>\n\n"
LONG = "<think>\nA city in France.\n</think>\n\n"
CUT = "<think>\nA city"


@pytest.mark.parametrize(
    ("written", "shown", "answer"),
    [
        ("Paris.", "Paris.", "Paris."),
        (EMPTY + "Paris.", "Paris.", "Paris."),
        (LONG + "Paris.", LONG + "Paris.", "Paris."),
        ("A city in France.</think>Paris.", "A city in France.</think>Paris.", "Paris."),  # opened by the prompt
        (CUT, CUT, ""),
        ("<think></think>", "", ""),
        ("<thin air>", "<thin air>", "<thin air>"),
        ("", "", ""),
    ],
)
def test_what_is_shown_and_what_is_compared(written: str, shown: str, answer: str) -> None:
    assert without_empty_thought(written) == shown
    assert without_thought(written) == answer


@pytest.mark.parametrize(
    "text", [EMPTY + "Paris.\n", LONG + "Paris.", " \n Paris", "<", "<thin air>", EMPTY, "", "a<think>"]
)
@pytest.mark.parametrize("size", [1, 3, 100])
def test_piece_by_piece_it_is_the_same(text: str, size: int) -> None:
    edges = [*range(0, len(text), size), len(text)]
    pieces = [text[a:b] for a, b in pairwise(edges)] or [""]
    found = EmptyThoughtFilter()
    shown = [found.push(piece, last=number == len(pieces) - 1) for number, piece in enumerate(pieces)]
    assert "".join(shown) == without_empty_thought(text)


def test_text_that_is_no_thought_is_shown_at_once() -> None:
    found = EmptyThoughtFilter()
    assert [found.push(piece) for piece in ("<th", "e", "<think>")] == ["", "<the", "<think>"]


@pytest.mark.parametrize(
    ("right", "written", "read"),
    [
        ("Paris.", LONG + "Paris.", "Paris."),
        (LONG + "Paris.", LONG + "Paris.", LONG + "Paris."),  # the data teach to think
        ("", LONG + "Paris.", LONG + "Paris."),  # nothing is known of the answer
        ("", EMPTY + "Paris.", "Paris."),
    ],
)
def test_a_thought_is_part_of_an_answer_if_the_right_one_has_one(right: str, written: str, read: str) -> None:
    row = Row(
        {"messages": [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": right}]}, Origin("x", 1)
    )
    assert read_answer(TASKS["chat"], row, written) == read


def test_only_who_may_call_is_read_as_calling() -> None:
    """An answer in JSON may have the fields of a call."""
    written = '{"parameters": {"b": 1, "a": 2}, "name": "rate"}'
    turns = [{"role": "user", "content": "As JSON."}, {"role": "assistant", "content": written}]
    tools = [{"type": "function", "function": {"name": "rate"}}]
    assert read_answer(TASKS["chat"], Row({"messages": turns}, Origin("x", 1)), written) == written
    found = read_answer(TASKS["chat"], Row({"messages": turns, "tools": tools}, Origin("x", 1)), written)
    assert found == '{"name": "rate", "arguments": {"a": 2, "b": 1}}'
