"""The labels of a data set: counted, ordered, and searched for slips of the pen."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MOST_LABELS = 10_000
"""More differing labels than this are taken for texts or numbers in the wrong column; they are not told apart."""

MOST_COMPARED = 1_000
"""Typos are sought among at most this many labels: above, names are made by machines, and pairs too many."""

_RARE = 2
_MUCH_RARER = 10  # a label is taken for a slip of another that occurs at least so many times as often


class LabelBook:
    """Gives each label a number, in the order of first appearance."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._numbers: dict[str, int] = {}
        self.overflowing = False

    def number(self, label: str) -> int:
        """The label's number; that of the last one when there are over :data:`MOST_LABELS`."""
        known = self._numbers.get(label)
        if known is None:
            if len(self.names) >= MOST_LABELS:
                self.overflowing = True
                return MOST_LABELS - 1
            known = self._numbers[label] = len(self.names)
            self.names.append(label)
        return known


def in_order(labels: Sequence[str]) -> list[str]:
    """Sorted; as numbers if all of them are, so that ``10`` follows ``9``."""
    numbers = {label: number for label in labels if (number := _number(label)) is not None}
    if len(numbers) == len(labels):
        return sorted(labels, key=lambda label: (numbers[label], label))
    return sorted(labels)


def _number(label: str) -> float | None:
    try:
        number = float(label)
    except ValueError:
        return None
    return None if math.isnan(number) else number


@dataclass(frozen=True)
class Typo:
    """A label that is probably another one, mistyped."""

    label: str
    meant: str
    why: str


def find_typos(counts: Mapping[str, int]) -> list[Typo]:
    """Labels that differ from a more frequent one only in case or white space, or rare ones a slip away from one.

    Labels that differ in digits only (``level 1``, ``level 2``) are never taken for typos.

    Args:
        counts: Label -> rows.
    """
    if len(counts) > MOST_COMPARED:
        return []
    by_count = sorted(counts, key=lambda label: (-counts[label], label))
    typos = []
    for place, label in enumerate(by_count):
        for other in by_count[:place]:
            why = _slip(label, other, counts)
            if why:
                typos.append(Typo(label, other, why))
                break
    return sorted(typos, key=lambda typo: typo.label)


def _slip(label: str, other: str, counts: Mapping[str, int]) -> str | None:
    if _number(label) is not None and _number(other) is not None:
        return None
    if _folded(label) == _folded(other):
        return "they differ only in case, spaces or punctuation"
    rare = counts[label] <= _RARE or counts[label] * 100 <= counts[other]
    if not rare or counts[label] * _MUCH_RARER > counts[other]:
        return None
    if re.sub(r"\d", "", label) == re.sub(r"\d", "", other):
        return None
    allowed = 0 if min(len(label), len(other)) < 3 else 1 if len(label) < 8 else 2
    if allowed and edit_distance(label.lower(), other.lower(), allowed) <= allowed:
        return "they differ by a letter or two"
    return None


def _folded(label: str) -> str:
    """Case and what separates words do not count; a sign at the end does (the grades A and A-)."""
    return re.sub(r"(?<=\w)[\s_\-.]+(?=\w)", " ", label.casefold().strip())


def edit_distance(first: str, second: str, limit: int) -> int:
    """Insertions, deletions, substitutions and swaps of neighbours between two texts (optimal string alignment).

    Args:
        first: One text.
        second: The other.
        limit: Above this the exact value does not matter: ``limit + 1`` is returned.
    """
    if abs(len(first) - len(second)) > limit:
        return limit + 1
    before: list[int] = []
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        above, before, row = before, row, [i]
        for j, b in enumerate(second, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (a != b))
            if i > 1 and j > 1 and a == second[j - 2] and b == first[i - 2]:
                cost = min(cost, above[j - 2] + 1)
            row.append(cost)
        if min(row) > limit:
            return limit + 1
    return row[-1] if row[-1] <= limit else limit + 1
