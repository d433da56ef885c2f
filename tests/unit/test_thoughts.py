"""Empty thoughts before answers are left out; other thoughts are part of them."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tunesmith.data.thoughts import EmptyThoughtFilter, without_empty_thought

EMPTY = "<think>\n\n</think>\n\n"
LONG = "<think>\nA city in France.\n</think>\n\n"


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("Paris.", "Paris."),
        (EMPTY + "Paris.", "Paris."),
        ("\n" + EMPTY + "Paris.", "\nParis."),
        ("</think>\n\nParis.", "Paris."),
        ("\n\n", "\n\n"),
        (LONG + "Paris.", LONG + "Paris."),
        ("<think>\nA city", "<think>\nA city"),
        ("Close it with </think>.", "Close it with </think>."),
        ("<think></think>", ""),
        ("<thin air>", "<thin air>"),
        ("", ""),
    ],
)
@pytest.mark.parametrize("size", [1, 3, 100])
def test_whole_and_piece_by_piece(written: str, shown: str, size: int) -> None:
    assert without_empty_thought(written) == shown
    edges = [*range(0, len(written), size), len(written)]
    pieces = [written[a:b] for a, b in pairwise(edges)] or [""]
    found = EmptyThoughtFilter()
    assert "".join(found.push(piece) for piece in pieces) + found.push("", last=True) == shown


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("\n</think>\n\nParis.", "Paris."),
        (" \n\n</think>Paris.", "Paris."),
        ("\nA city.\n</think>\n\nParis.", "\nA city.\n</think>\n\nParis."),
        ("\n\n", "\n\n"),
        ("\n</thin", "\n</thin"),
    ],
)
@pytest.mark.parametrize("size", [1, 3, 100])
def test_a_thought_that_the_prompt_has_opened(written: str, shown: str, size: int) -> None:
    """White space before its end is part of it."""
    assert without_empty_thought(written) == shown
    found = EmptyThoughtFilter(opened=True)
    pieces = [written[n : n + size] for n in range(0, len(written), size)]
    assert "".join(found.push(piece) for piece in pieces) + found.push("", last=True) == shown


def test_text_that_is_no_thought_is_shown_at_once() -> None:
    found = EmptyThoughtFilter()
    assert [found.push(piece) for piece in ("<th", "e", "<think>")] == ["", "<the", "<think>"]
