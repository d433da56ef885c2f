"""Which row is held back: decided by content, so that neither order nor new rows shuffle the sides.

Every row falls on a side by the hash of its input alone; near duplicates go by the hash of one of them. (With
``data.group_by`` it is the hash of that column's value, and shares are shares of its values.) So the same
text is always on the same side, on every machine, and rows that are appended leave the others where they are. Chance
is corrected only where a class would be missing, or be off its share by more than a quarter (with a share of 0.1 that
is usual for classes of tens of rows, and as good as impossible from 3,000 on): then the groups nearest to the border
change sides, and no more of them than needed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.ledger import Entries, Ledger, mixed
from tunesmith.data.twins import Twins

TRAIN, VALIDATION, TEST, NOWHERE = 0, 1, 2, 3

_TOLERANCE = 0.25
_LARGE_CLASS = 20_000  # rows; here chance alone stays within the tolerance
_ROWS_AT_ONCE = 500_000


@dataclass
class Assignment:
    """How rows fall on sides.

    Attributes:
        validation: Share of the training part for validation; 0 for none, or if validation has data of its own.
        test: The same for the test set.
        seed: ``data.seed``.
        ties: Input hash -> the hash by which it goes instead (near duplicates).
        moved: Group hash -> side, where chance was corrected.
        left_out: Part -> hashes of inputs that are not used (leaks, with ``data.drop_bad``).
        left_out_labels: Numbers of labels that are not used outside training (unseen ones, with ``data.drop_bad``).
        max_rows: ``data.max_rows``.
        twins: Training rows that are not used because they repeat others (``data.duplicates: drop``).
    """

    validation: float = 0.0
    test: float = 0.0
    seed: int = 0
    ties: Mapping[int, int] = field(default_factory=dict)
    moved: dict[int, int] = field(default_factory=dict)
    left_out: dict[int, NDArray[np.uint64]] = field(default_factory=dict)
    left_out_labels: Sequence[int] = ()
    max_rows: int | None = None
    twins: Twins | None = None

    def sides(self, ledger: Ledger) -> Iterator[tuple[int, Entries, NDArray[np.int64]]]:
        """Walk through all rows: position of the first of a chunk, its entries, and their sides."""
        limit = self._limit(ledger)
        for first, chunk in ledger.chunks():
            sides = chunk["part"].astype(np.int64)
            for part, inputs in self.left_out.items():
                sides[(chunk["part"] == part) & np.isin(chunk["input"], inputs)] = NOWHERE
            if self.twins is not None:
                sides[self.twins.leave(first, len(chunk))] = NOWHERE
            pool = sides == TRAIN
            if limit is not None:
                pool = limit.cut(chunk, pool)
                sides[(sides == TRAIN) & ~pool] = NOWHERE
            groups = self.groups(chunk["group"][pool])
            sides[pool] = self.by_group(groups)
            if self.left_out_labels:
                sides[(chunk["part"] != TRAIN) & np.isin(chunk["label"], self.left_out_labels)] = NOWHERE
            yield first, chunk, sides

    def groups(self, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """The hash by which each input (or each value of ``data.group_by``) goes."""
        return _replaced(keys, self.ties)

    def by_group(self, groups: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Sides of groups: test from the bottom of the hash's range, validation above it, the rest is training."""
        place = self.place(groups)
        sides = np.where(place < self.test, TEST, np.where(place < self.test + self.validation, VALIDATION, TRAIN))
        return _replaced(groups, self.moved, sides)

    def place(self, groups: NDArray[np.uint64]) -> NDArray[np.float64]:
        """Where groups lie in [0, 1)."""
        return (mixed(groups, f"split {self.seed}") >> np.uint64(11)).astype(np.float64) / 2.0**53

    def _limit(self, ledger: Ledger) -> _Limit | None:
        """The training rows to use: those with the smallest hashes of content, a choice apart from the sides."""
        if self.max_rows is None:
            return None
        smallest = np.empty(0, np.uint64)
        for first, chunk in ledger.chunks():
            stays = chunk["part"] == TRAIN
            if self.twins is not None:
                stays &= ~self.twins.leave(first, len(chunk))
            usable = chunk[stays]
            usable = usable[~np.isin(usable["input"], self.left_out.get(TRAIN, np.empty(0, np.uint64)))]
            smallest = np.concatenate([smallest, _rank(usable, self.seed)])
            if len(smallest) > self.max_rows:
                smallest = np.partition(smallest, self.max_rows - 1)[: self.max_rows]
        if len(smallest) < self.max_rows:
            return None
        bound = smallest.max()
        return _Limit(self.seed, bound, int((smallest == bound).sum()))


@dataclass
class _Limit:
    """Rows ranked under ``bound`` are used, and the first ``at_bound`` of those right on it (repeats of one row)."""

    seed: int
    bound: np.uint64
    at_bound: int

    def cut(self, chunk: Entries, usable: NDArray[np.bool_]) -> NDArray[np.bool_]:
        rank = _rank(chunk, self.seed)
        on_bound = np.flatnonzero(usable & (rank == self.bound))
        chosen: NDArray[np.bool_] = usable & (rank < self.bound)
        chosen[on_bound[: self.at_bound]] = True
        self.at_bound -= min(self.at_bound, len(on_bound))
        return chosen


def _rank(chunk: Entries, seed: int) -> NDArray[np.uint64]:
    return mixed(chunk["content"], f"max_rows {seed}")


def _replaced(keys: NDArray[np.uint64], table: Mapping[int, int], values: NDArray | None = None) -> NDArray:
    """``values`` (default: the keys themselves), with those of keys that stand in ``table`` taken from there."""
    result = (keys if values is None else values).copy()
    if table and len(keys):
        known = np.array(sorted(table), np.uint64)
        place = np.minimum(np.searchsorted(known, keys), len(known) - 1)
        hit = known[place] == keys
        replacements = np.array([table[key] for key in known.tolist()], result.dtype)
        result[hit] = replacements[place[hit]]
    return result


def stratify(assignment: Assignment, ledger: Ledger, labels: Sequence[str]) -> None:
    """Correct chance where a class is missing from a side, or off its share by more than a quarter.

    Fills ``assignment.moved``. Labels are taken in the order of their names and groups in the order of their hashes,
    so the outcome does not depend on the order of rows.

    Args:
        assignment: Shares and ties; changed in place.
        ledger: All rows.
        labels: Names by number; one empty name where the task has no labels.
    """
    if not assignment.validation and not assignment.test:
        return
    counts = np.zeros(len(labels), np.int64)
    for _, chunk, sides in assignment.sides(ledger):
        pool = chunk["label"][(chunk["part"] == TRAIN) & (sides != NOWHERE)]
        counts += np.bincount(pool, minlength=len(labels))
    small = [number for number in np.argsort(np.array(labels), kind="stable") if 0 < counts[number] <= _LARGE_CLASS]
    batch: list[int] = []
    for number in small:
        if batch and counts[[*batch, number]].sum() > _ROWS_AT_ONCE:
            _correct(assignment, ledger, batch)
            batch = []
        batch.append(int(number))
    if batch:
        _correct(assignment, ledger, batch)


def _correct(assignment: Assignment, ledger: Ledger, batch: Sequence[int]) -> None:
    """Correct the classes of a batch, for which one walk through the ledger gathers the groups."""
    found: dict[int, list[NDArray[np.uint64]]] = {number: [] for number in batch}
    for _, chunk, sides in assignment.sides(ledger):
        pool = chunk[(chunk["part"] == TRAIN) & (sides != NOWHERE) & np.isin(chunk["label"], batch)]
        if not len(pool):  # nothing of this chunk is used
            continue
        order = np.argsort(pool["label"], kind="stable")
        numbers, starts = np.unique(pool["label"][order], return_index=True)
        for number, inputs in zip(numbers, np.split(pool["group"][order], starts[1:]), strict=True):
            found[int(number)].append(assignment.groups(inputs))
    for number in batch:
        _correct_class(assignment, np.unique(np.concatenate(found[number])))


def _correct_class(assignment: Assignment, groups: NDArray[np.uint64]) -> None:
    """Move the fewest groups of one class over the nearest border, until each side is near its share."""
    groups = groups[np.argsort(assignment.place(groups), kind="stable")]
    sides = assignment.by_group(groups)
    free = len(groups) - 1  # training keeps one
    for side, share in ((TEST, assignment.test), (VALIDATION, assignment.validation)):
        low, high = bounds(share, len(groups))
        held = np.flatnonzero(sides == side)
        high = min(high, free)
        low = min(low, high)
        if len(held) > high:
            changed, target = held[high:], TRAIN
        else:
            settled = np.isin(groups, np.array(list(assignment.moved), np.uint64))  # by another class it also has
            changed, target = np.flatnonzero((sides == TRAIN) & ~settled)[: max(0, low - len(held))], side
        sides[changed] = target
        assignment.moved |= dict.fromkeys(groups[changed].tolist(), target)
        free -= int((sides == side).sum())


def bounds(share: float, groups: int) -> tuple[int, int]:
    """The fewest and the most groups of a class that may lie on a side with this share."""
    wanted = share * groups
    if wanted < 0.5:
        return 0, math.ceil(wanted)
    return max(1, math.floor(wanted * (1 - _TOLERANCE))), math.ceil(wanted * (1 + _TOLERANCE))
