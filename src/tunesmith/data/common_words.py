"""What messages of one kind have in common, so that one row's value or position is not shown as that of all."""

from __future__ import annotations

import re
from difflib import SequenceMatcher

GAP = "…"
"""Stands where messages differ."""

_LONGEST = 500  # words of a message that are compared; the cost is quadratic
_TOKEN = re.compile(r"'[^']*'|\"[^\"]*\"|`[^`]*`|\d[\d,.]*\d|\w+|\s|[^\w\s]")
_WORD = re.compile(r"[^\W\d]{3,}")


def common(pattern: str, message: str) -> str:
    """The words that a message shares with a pattern of earlier ones, with :data:`GAP` for the others.

    Between its beginning and its end only words count: punctuation that two values share says nothing.
    """
    if pattern == message or _in_gaps(pattern, message) is not None:
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
    details = [detail.strip() for detail in _in_gaps(pattern, first) or () if detail.strip()]
    return f"{pattern} (first: {', '.join(details)})" if details else pattern


def _in_gaps(pattern: str, message: str) -> list[str] | None:
    """What stands in a message where the pattern has gaps; ``None`` if the message does not fit it.

    Each part is looked for behind the one before: an expression would try all places of each against all others.
    """
    start, *parts = pattern.split(GAP)
    if not parts:
        return [] if pattern == message else None
    end = len(message) - len(parts[-1])
    at = len(start)
    if at > end or not (message.startswith(start) and message.endswith(parts[-1])):
        return None
    found = []
    for part in parts[:-1]:
        place = message.find(part, at, end)
        if place < 0:
            return None
        found.append(message[at:place])
        at = place + len(part)
    return [*found, message[at:end]]
