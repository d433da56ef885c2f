"""Where the words of a text stand: what a tag belongs to, whatever pieces a tokenizer cuts them into."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import regex

Offsets = tuple[int, int]
"""First character, and the one behind the last."""

_ALONE = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}"
_WORD = regex.compile(rf"(?V1)[{_ALONE}]|[[\p{{L}}\p{{M}}\p{{N}}_]--[{_ALONE}]]+|\S")
"""A run of letters, marks and digits, or any other sign by itself. Scripts that write no spaces between words, or glue
particles to names (Korean), go character by character."""


def word_offsets(text: str) -> list[Offsets]:
    """The words of a plain text: ``"in Berlin."`` has three."""
    return [match.span() for match in _WORD.finditer(text)]


def token_offsets(tokens: Iterable[str]) -> list[Offsets]:
    """Where given tokens stand in the text that joins them by single spaces."""
    ends = list(itertools.accumulate(len(token) + 1 for token in tokens))
    return [(start, end - 1) for start, end in itertools.pairwise([0, *ends])]
