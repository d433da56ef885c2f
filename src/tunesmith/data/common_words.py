"""What messages of one kind have in common, so that one row's value or position is not shown as that of all."""

from __future__ import annotations

import re
from difflib import SequenceMatcher
from functools import lru_cache

GAP = "…"
"""Stands where messages differ."""

_LONGEST = 500  # words of a message that are compared; the cost is quadratic
_TOKEN = re.compile(r"'[^']*'|\"[^\"]*\"|`[^`]*`|\d[\d,.]*\d|\w+|\s|[^\w\s]")
_WORD = re.compile(r"[^\W\d]{3,}")


def common(pattern: str, message: str) -> str:
    """The words that a message shares with a pattern of earlier ones, with :data:`GAP` for the others.

    Between its beginning and its end only words count: punctuation that two values share says nothing.
    """
    if pattern == message or _expression(pattern).fullmatch(message):
        return pattern
    one, other = (_TOKEN.findall(text)[:_LONGEST] for text in (pattern, message))
    found, until = "", (0, 0)
    for block in SequenceMatcher(None, one, other, autojunk=False).get_matching_blocks():
        start, end = (block.a, block.b), (block.a + block.size, block.b + block.size)
        shared = "".join(one[block.a : block.a + block.size])
        if start == (0, 0) or end == (len(one), len(other)) or _WORD.search(shared):
            found += (GAP if start != until else "") + shared
            until = end
    return re.sub(f"{GAP}+", GAP, found + GAP * (_LONGEST in (len(one), len(other))))


def with_details(pattern: str, first: str) -> str:
    """The pattern, and what stands in its gaps in the first message."""
    if pattern == first:
        return first
    if not _WORD.search(pattern):
        return f"{first} (and others, which differ)"
    match = _expression(pattern).fullmatch(first)
    details = [detail.strip() for detail in match.groups() if detail.strip()] if match else []
    return f"{pattern} (first: {', '.join(details)})" if details else pattern


@lru_cache(maxsize=256)
def _expression(pattern: str) -> re.Pattern[str]:
    return re.compile("(.*?)".join(map(re.escape, pattern.split(GAP))), re.DOTALL)
