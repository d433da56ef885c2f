"""Exact questions about the whole set: rows that repeat, contradict each other, or leak from one part into another."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.ledger import PARTS, Ledger
from tunesmith.data.problems import PLACES
from tunesmith.data.twins import Twins

_ROWS_AT_ONCE = 500_000

_KEY = np.dtype([("input", "<u8"), ("target", "<u8"), ("content", "<u8"), ("part", "<u4"), ("position", "<u8")])


@dataclass
class Pairs:
    """Rows that each stand in a relation to an earlier one.

    Attributes:
        count: How many rows.
        first: The first of them: (position, position of its partner), in the order of the data.
    """

    count: int = 0
    first: list[tuple[int, int]] = field(default_factory=list)

    def add(self, positions: NDArray[Any], partners: NDArray[Any]) -> None:
        """Count rows, and keep the first places."""
        self.count += len(positions)
        early = np.argsort(positions, kind="stable")[:PLACES]
        found = zip(positions[early].tolist(), partners[early].tolist(), strict=True)
        self.first = heapq.nsmallest(PLACES, [*self.first, *found])


@dataclass
class Repeats:
    """What :func:`find_repeats` found.

    Attributes:
        duplicates: Rows with input and target of an earlier row of the same part.
        contradictions: Rows with the input of an earlier row of the same part, but another target.
        leaks: (earlier part, later part) -> rows of the later part whose input is also in the earlier one.
        leaked_inputs: For the same pairs, the hashes of those inputs.
    """

    duplicates: Pairs = field(default_factory=Pairs)
    contradictions: Pairs = field(default_factory=Pairs)
    leaks: dict[tuple[int, int], Pairs] = field(default_factory=dict)
    leaked_inputs: dict[tuple[int, int], NDArray[np.uint64]] = field(default_factory=dict)


def find_repeats(ledger: Ledger, twins: Twins | None = None) -> Repeats:
    """Compare all rows by the hashes of input and target.

    Works through the ledger in slices of the hashes' range, each small enough for memory, so that rows with the same
    input always meet in one slice.

    Args:
        ledger: All rows.
        twins: Told of each training row that repeats another, if they are to be left out.
    """
    repeats = Repeats()
    slices = max(1, -(-ledger.num_rows // _ROWS_AT_ONCE))
    for number in range(slices):
        keys = _slice(ledger, number, slices)
        keys = keys[np.lexsort((keys["position"], keys["part"], keys["input"]))]
        if len(keys):
            _compare_within_parts(keys, repeats, twins)
            _compare_between_parts(keys, repeats)
    return repeats


def _slice(ledger: Ledger, number: int, slices: int) -> NDArray[np.void]:
    found = []
    for first, chunk in ledger.chunks():
        chosen = np.flatnonzero(chunk["input"] % np.uint64(slices) == number)
        keys = np.empty(len(chosen), _KEY)
        for name in ("input", "target", "content", "part"):
            keys[name] = chunk[name][chosen]
        keys["position"] = chosen + first
        found.append(keys)
    return np.concatenate(found) if found else np.empty(0, _KEY)


def _compare_within_parts(keys: NDArray[np.void], repeats: Repeats, twins: Twins | None) -> None:
    """Keys come sorted by input, part, position; the first row of each (input, part) is what the others repeat."""
    same = (keys["input"][1:] == keys["input"][:-1]) & (keys["part"][1:] == keys["part"][:-1])
    if not same.any():
        return
    starts = np.concatenate([[True], ~same])
    first = np.maximum.accumulate(np.where(starts, np.arange(len(keys)), 0))
    differs = keys["target"] != keys["target"][first]
    repeats.contradictions.add(keys["position"][differs], keys["position"][first][differs])
    repeats.duplicates.add(*_again(keys, first, "target")[:2])
    if twins is not None:
        twins.mark(*_again(keys, first, twins.by))


def _again(keys: NDArray[np.void], first: NDArray[Any], name: str) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Rows that share a field, and the first row of their input, with an earlier one: positions, its own, and parts."""
    order = np.lexsort((keys["position"], keys[name], first))
    ordered, run = keys[order], first[order]
    equal = (run[1:] == run[:-1]) & (ordered[name][1:] == ordered[name][:-1])
    begin = np.maximum.accumulate(np.where(np.concatenate([[True], ~equal]), np.arange(len(keys)), 0))
    again = np.concatenate([[False], equal])
    return ordered["position"][again], ordered["position"][begin][again], ordered["part"][again]


def _compare_between_parts(keys: NDArray[np.void], repeats: Repeats) -> None:
    inputs, group = np.unique(keys["input"], return_inverse=True)
    holders = np.zeros((len(PARTS), len(inputs)), dtype=np.int64)  # position + 1 of a part's first row; 0: none
    for part in range(len(PARTS)):
        rows = np.flatnonzero(keys["part"] == part)[::-1]  # the first row is written last, and so stays
        holders[part, group[rows]] = keys["position"][rows] + 1
    for earlier, later in ((0, 1), (0, 2), (1, 2)):
        shared = (holders[earlier] > 0) & (holders[later] > 0)
        if not shared.any():
            continue
        rows = np.flatnonzero((keys["part"] == later) & shared[group])
        pair = (earlier, later)
        partners = holders[earlier][group[rows]] - 1
        repeats.leaks.setdefault(pair, Pairs()).add(keys["position"][rows], partners)
        known = repeats.leaked_inputs.get(pair, np.empty(0, np.uint64))
        repeats.leaked_inputs[pair] = np.concatenate([known, inputs[shared]])
