"""Thoughts: what some models write before an answer, as ``<think> ... </think>`` (Qwen 3, DeepSeek-R1, SmolLM3).

The templates of such models put an empty thought before an answer that has none, so a model that is taught such answers
writes it too. It is no part of the answer.
"""

from __future__ import annotations

import re

END = "</think>"
_BEGIN = "<think>"
_EMPTY = re.compile(rf"\s*{_BEGIN}\s*{END}\s*")


def is_empty_thought(text: str) -> bool:
    """Whether a text is that and nothing else."""
    return _EMPTY.fullmatch(text) is not None


def without_empty_thought(text: str) -> str:
    """The text behind an empty thought; other texts as they are."""
    found = _EMPTY.match(text)
    return text[found.end() :] if found else text


def without_thought(text: str) -> str:
    """The answer behind a thought, nothing if the thought was cut off; other texts as they are."""
    if END in text:
        return text.rpartition(END)[2].strip()
    return "" if text.lstrip().startswith(_BEGIN) else text


class EmptyThoughtFilter:
    """:func:`without_empty_thought` for an answer that comes piece by piece."""

    def __init__(self) -> None:
        self._held: str | None = ""

    def push(self, piece: str, *, last: bool = False) -> str:
        """What may be shown once this piece is there; ``last``: no other follows."""
        if self._held is None:
            return piece
        self._held += piece
        if not last and (_BEGIN + END).startswith("".join(self._held.split())):
            return ""
        shown, self._held = without_empty_thought(self._held), None
        return shown
