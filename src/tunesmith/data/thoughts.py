"""Thoughts: what some models write before an answer, as ``<think> ... </think>``.

The template of Qwen 3 puts an empty thought before an answer that has none, so a model that is taught such answers
writes it too. It is no part of the answer. Some templates open the thought in the prompt; its end is then left out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

END = "</think>"
_BEGIN = "<think>"
_EMPTY = re.compile(rf"(?:(\s*){_BEGIN}\s*|\s*){END}\s*")


def is_empty_thought(text: str) -> bool:
    """Whether a text is that and nothing else."""
    return _EMPTY.fullmatch(text) is not None


def without_empty_thought(text: str) -> str:
    """The text behind an empty thought; other texts as they are."""
    found = _EMPTY.match(text)
    return (found[1] or "") + text[found.end() :] if found else text


def opens_thought(prompt: str) -> bool:
    """Whether a prompt ends with the beginning of a thought, so that what follows is one."""
    return prompt.rstrip().endswith(_BEGIN)


def written_text(tokenizer: Any, tokens: Sequence[int]) -> str:
    """An answer of a model as people read it, and as what rewards it does: no special tokens, no empty thought."""
    return without_empty_thought(tokenizer.decode(tokens, skip_special_tokens=True).strip())


class EmptyThoughtFilter:
    """:func:`without_empty_thought` for an answer that comes piece by piece.

    Args:
        opened: Whether the prompt has opened a thought: white space at the beginning is then part of it.
    """

    def __init__(self, *, opened: bool = False) -> None:
        self._opened = opened
        self._held: str | None = ""

    def push(self, piece: str, *, last: bool = False) -> str:
        """What may be shown once this piece is there; ``last``: no other follows."""
        if self._held is None:
            return piece
        whole = self._held + piece
        self._held = whole if self._opened else whole.lstrip()
        before = whole[: len(whole) - len(self._held)]  # is shown whatever follows
        so_far = "".join(self._held.split())
        if not last and any(text.startswith(so_far) for text in (_BEGIN + END, END)):
            return before
        shown, self._held = before + without_empty_thought(self._held), None
        return shown
