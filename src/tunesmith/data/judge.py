"""Judges the data set as a whole: repeats, leaks, near duplicates, labels, sizes and lengths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.duplicates import Pairs, Repeats
from tunesmith.data.labels import MOST_COMPARED, MOST_LABELS, find_typos, in_order
from tunesmith.data.ledger import PARTS, Ledger
from tunesmith.data.near_duplicates import NearPairs
from tunesmith.data.problems import PLACES, Findings
from tunesmith.data.rows import Origin
from tunesmith.data.splits import NOWHERE, TRAIN, Assignment
from tunesmith.data.survey import Survey
from tunesmith.data.twins import Twins

FEW_IN_CLASS = 8
"""A class with fewer training rows is reported: here few-shot methods begin (SetFit, arXiv 2209.11055)."""

LEAK_ERROR_SHARE = 0.01
"""Leaks are an error from this share of the part that is measured on; below, they can move accuracy by less than a
point and are a warning (banking77, a public benchmark, has 7 such rows among 3,080)."""

FEW_TRAINING_ROWS = 20
FEW_TEST_ROWS = 50
_LOPSIDED = 0.9
_COUNT_DOUBLE = (
    "they count double in training, unless `data.duplicates: drop` leaves one of those that are equal in all; the "
    "split keeps them on one side"
)
_STAY = "those that are not left out differ in case, spaces or another field, or are no training rows"
_NAMES_SHOWN = 10


class Lengths:
    """Counts lengths in bounded memory: exactly below 10,000, above to three digits (mean and maximum stay exact)."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self._sum, self._max = 0, 0

    def add(self, values: NDArray[Any]) -> None:
        """Count an array of lengths."""
        if not len(values):
            return
        exact = values.astype(np.int64)
        self._sum += int(exact.sum())
        self._max = max(self._max, int(exact.max()))
        scale = 10 ** np.maximum(np.floor(np.log10(np.maximum(exact, 1))).astype(np.int64) - 2, 0)
        rounded = np.where(exact < 10_000, exact, exact // scale * scale)
        lengths, counts = np.unique(rounded, return_counts=True)
        self._counts.update(dict(zip(lengths.tolist(), counts.tolist(), strict=True)))

    def statistics(self) -> dict[str, float]:
        """``count``, ``mean``, ``min``, ``p50``, ``p90``, ``p95``, ``p99`` and ``max``; empty without values."""
        total = self._counts.total()
        if not total:
            return {}
        lengths = np.array(sorted(self._counts))
        reached = np.cumsum([self._counts[length] for length in lengths.tolist()])
        at = {f"p{q}": float(lengths[np.searchsorted(reached, q / 100 * total)]) for q in (50, 90, 95, 99)}
        return {"count": total, "mean": self._sum / total, "min": float(lengths[0]), **at, "max": float(self._max)}


@dataclass
class Tally:
    """Counts of a walk through all rows with their sides.

    Attributes:
        rows: Rows on each side.
        labels: (sides, labels) rows.
        first_of_label: Position of a label's first row on each side, -1 for none.
        characters: Lengths on each side.
        tokens: The same in tokens, of the rows that were rendered.
        cut: On each side, rows and tokens that truncation touches.
        beyond_limit: Training rows that ``data.max_rows`` leaves out.
        repeated: Training rows that ``data.duplicates`` leaves out, but for those that leak as well.
    """

    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    first_of_label: NDArray[np.int64]
    characters: list[Lengths] = field(default_factory=lambda: [Lengths() for _ in PARTS])
    tokens: list[Lengths] = field(default_factory=lambda: [Lengths() for _ in PARTS])
    cut: NDArray[np.int64] = field(default_factory=lambda: np.zeros((len(PARTS), 2), np.int64))
    beyond_limit: int = 0
    repeated: int = 0


def tally(ledger: Ledger, assignment: Assignment, num_labels: int) -> Tally:
    """Walk through the ledger once and count."""
    shape = (len(PARTS), max(1, num_labels))
    result = Tally(np.zeros(len(PARTS), np.int64), np.zeros(shape, np.int64), np.full(shape, -1))
    leaked = assignment.left_out.get(TRAIN, np.empty(0, np.uint64))
    for first, chunk, sides in assignment.sides(ledger):
        unused = (sides == NOWHERE) & (chunk["part"] == TRAIN) & ~np.isin(chunk["input"], leaked)
        if assignment.twins is not None:
            repeated = unused & assignment.twins.leave(first, len(chunk))
            result.repeated += int(repeated.sum())
            unused &= ~repeated
        result.beyond_limit += int(unused.sum())
        for side in range(len(PARTS)):
            places = np.flatnonzero(sides == side)
            rows = chunk[places]
            result.rows[side] += len(rows)
            result.labels[side] += np.bincount(rows["label"], minlength=shape[1])
            numbers, where = np.unique(rows["label"], return_index=True)
            fresh = result.first_of_label[side, numbers] < 0
            result.first_of_label[side, numbers[fresh]] = first + places[where[fresh]]
            result.characters[side].add(rows["characters"])
            result.tokens[side].add(rows["tokens"][rows["tokens"] > 0])
            result.cut[side] += (int((rows["cut"] > 0).sum()), int(rows["cut"].sum()))
    return result


def judge_repeats(
    findings: Findings, ledger: Ledger, repeats: Repeats, *, has_labels: bool, twins: Twins | None = None
) -> None:
    """Report duplicates, contradictions and exact leaks.

    Args:
        findings: Where to report them.
        ledger: All rows.
        repeats: What was found.
        has_labels: Whether each row has one label.
        twins: The duplicates that are left out, if they are.
    """
    rows_of_part = rows_by_part(ledger)
    _pairs(
        findings,
        ledger,
        repeats.duplicates,
        "duplicate",
        "rows repeat an earlier row (input and target; case and spaces aside)",
        _COUNT_DOUBLE if twins is None else _STAY if twins.exact < repeats.duplicates.count else None,
        dropped=twins.exact if twins is not None else 0,
    )
    if has_labels:
        _pairs(
            findings,
            ledger,
            repeats.contradictions,
            "contradiction",
            "rows have the input of an earlier row, but another label",
            "decide which label is right: nothing can learn both",
        )
    for (earlier, later), pairs in repeats.leaks.items():
        what = f"rows of the {PARTS[later]} data are in the {PARTS[earlier]} data too"
        fix: str | None = f"remove them from either (`data.drop_bad: true` takes them out of the {PARTS[earlier]} data)"
        if findings.drop_bad:
            what, fix = f"{what}; they were left out of the {PARTS[earlier]} data", None
        few = pairs.count < LEAK_ERROR_SHARE * rows_of_part[later]
        severity = "warning" if findings.drop_bad or few else "error"
        group = f"{earlier}{later}"
        _pairs(findings, ledger, pairs, "leakage", what, fix, severity=severity, group=group, in_rows=True)


def rows_by_part(ledger: Ledger) -> NDArray[np.int64]:
    """Good rows of each part as the recipe names them, before any split."""
    counts = np.zeros(len(PARTS), np.int64)
    for _, chunk in ledger.chunks():
        counts += np.bincount(chunk["part"], minlength=len(PARTS))
    return counts


def _pairs(
    findings: Findings,
    ledger: Ledger,
    pairs: Pairs,
    code: str,
    what: str,
    fix: str | None,
    *,
    severity: Any = "warning",
    group: str = "",
    in_rows: bool = False,
    dropped: int = 0,
) -> None:
    if not pairs.count:
        return
    row, partner = (ledger.origin(position) for position in pairs.first[0])
    places = [ledger.origin(position) for position, _ in pairs.first]
    message = f"{what} (first: {row} and {partner})"
    findings.add_many(
        code, severity, message, places, pairs.count, fix=fix, group=group, in_rows=in_rows, dropped=dropped
    )


def judge_near(findings: Findings, ledger: Ledger, near: NearPairs, *, dropped: int = 0) -> None:
    """Report near duplicates inside a part and across parts.

    Args:
        findings: Where to report them.
        ledger: All rows.
        near: What was found.
        dropped: How many are left out.
    """
    same = near.parts[:, 0] == near.parts[:, 1]
    kept = "the split keeps them on one side"
    for mask, code, what, fix, gone in (
        (same, "near-duplicate", "rows are nearly the same as an earlier one", kept, dropped),
        (
            ~same,
            "near-leakage",
            "rows are nearly the same as one of another part",
            "look at them: results may flatter",
            0,
        ),
    ):
        positions = near.positions[mask]
        rows, where = np.unique(positions[:, 1], return_index=True)
        found = Pairs()
        found.add(rows, positions[where, 0])
        _pairs(findings, ledger, found, code, what, fix, dropped=gone)


Given = Mapping[str, float | Sequence[str]]
"""The recipe's ``train``, ``validation`` and ``test``: names of data, or a share of the training data."""


def named(given: Given, part: str) -> list[Origin]:
    """The data that a part comes from, as places: of a share those it is taken from."""
    specs = given[part] if isinstance(given[part], list) else given["train"]
    return [Origin(spec, 0) for spec in specs] if isinstance(specs, list) else []


def judge_labels(findings: Findings, survey: Survey, counts: Tally, given: Given) -> None:
    """Report what is wrong with labels: too few, too many, mistyped, rare, absent, unseen or lopsided."""
    names, ledger = survey.labels.names, survey.ledger
    train = counts.labels[TRAIN]
    _number_of_labels(findings, survey, int((train > 0).sum()), int(counts.rows[TRAIN]))
    total = {name: int(counts.labels[:, number].sum()) for number, name in enumerate(names)}
    firsts = np.where(counts.first_of_label < 0, np.iinfo(np.int64).max, counts.first_of_label).min(axis=0)
    for typo in find_typos({name: count for name, count in total.items() if count}):
        label, meant = (f"{name!r} ({total[name]} rows)" for name in (typo.label, typo.meant))
        findings.add_many(
            "label-typo",
            "warning",
            f"the label {label} may be {meant}: {typo.why}",
            [ledger.origin(int(firsts[names.index(typo.label)]))],
            total[typo.label],
            fix=f"write {typo.meant!r}, if that was meant",
            group=typo.label,
        )
    rare = np.flatnonzero((train > 0) & (train < FEW_IN_CLASS))
    findings.add_many(
        "rare-class",
        "warning",
        f"classes with fewer than {FEW_IN_CLASS} training rows: {_some(names, rare)}",
        _firsts(ledger, counts, TRAIN, rare),
        len(rare),
        fix="add rows, or merge classes",
    )
    if len(train) and train.max() >= _LOPSIDED * max(1, counts.rows[TRAIN]) and (train > 0).sum() > 1:
        findings.add_many(
            "imbalance",
            "warning",
            f"{train.max() / counts.rows[TRAIN]:.0%} of the training rows are {names[int(train.argmax())]!r}",
            [],
            1,
            fix="look at macro F1 rather than accuracy",
        )
    for side, part in enumerate(PARTS[1:], 1):
        here = counts.labels[side]
        absent = np.flatnonzero((train > 0) & (here == 0)) if counts.rows[side] else np.empty(0, np.int64)
        what, where = f"classes without a row in the {part} data: {_some(names, absent)}", named(given, part)
        findings.add_many("class-absent", "warning", what, where, int(len(absent) > 0), fix="add rows", group=part)


def judge_row_labels(findings: Findings, survey: Survey, *, needed: bool) -> None:
    """Report what is wrong with labels of which a row may have any number: mistyped ones, and ones never learned.

    Args:
        findings: Where to report it.
        survey: What was read.
        needed: Whether there is nothing to learn without labels.
    """
    train = survey.row_labels.get("train", Counter())
    if needed and not train and "train" in survey.row_labels:
        findings.add_many("no-labels", "error", "no training row has a label", [], 1, fix="check the training data")
        return
    for typo in find_typos(train):
        what = f"the label {typo.label!r} ({train[typo.label]} times) may be {typo.meant!r} ({train[typo.meant]} times)"
        place, fix = survey.label_origins["train", typo.label], f"write {typo.meant!r}, if that was meant"
        message = f"{what}: {typo.why}"
        findings.add_many("label-typo", "warning", message, [place], train[typo.label], fix=fix, group=typo.label)
    for part, counts in survey.row_labels.items():
        unseen = in_order([label for label in counts if label not in train])
        findings.add_many(
            "unseen-label",
            "warning",
            f"labels of the {part} data that the training data never show, so that no model can find them: "
            + ", ".join(map(repr, unseen[:_NAMES_SHOWN])),
            [survey.label_origins[part, label] for label in unseen][:PLACES],
            sum(counts[label] for label in unseen),
            fix="correct the labels, or add training rows with them",
            group=part,
        )


def row_label_balance(survey: Survey) -> dict[str, dict[str, int]]:
    """Part of the recipe -> label -> how often it occurs, where a row may have any number of labels."""
    return {
        part: {label: counts[label] for label in in_order(list(counts))}
        for part, counts in survey.row_labels.items()
        if counts
    }


def judge_groups(findings: Findings, ledger: Ledger, assignment: Assignment, column: str) -> None:
    """Report what ``data.group_by`` cannot keep apart: groups in files of their own, inputs of several groups."""
    keys = {name: [list[NDArray[np.uint64]]() for _ in PARTS] for name in ("group", "input")}
    for _, chunk, sides in assignment.sides(ledger):
        for side in range(len(PARTS)):
            for name, found in keys.items():
                found[side].append(chunk[name][sides == side])
    for name, code, what in (
        ("group", "group-leakage", f"rows of the {{}} data have a `{column}` that the {{}} data have too"),
        (
            "input",
            "group-overlap",
            f"rows of the {{}} data have the input of a row of the {{}} data with another `{column}`",
        ),
    ):
        train, *held_out = (np.concatenate([np.empty(0, np.uint64), *found]) for found in keys[name])
        for part, rows in zip(PARTS[1:], held_out, strict=True):
            count = int(np.isin(rows, train).sum())
            fix = (
                "give each group to one file" if name == "group" else f"make inputs tell their `{column}`, or drop them"
            )
            findings.add_many(code, "warning", what.format(part, PARTS[TRAIN]), [], count, fix=fix, group=part)


def judge_unseen(findings: Findings, survey: Survey, counts: Tally) -> list[int]:
    """Report labels of validation or test data that training never shows; returns their numbers."""
    names = survey.labels.names
    missing = counts.labels[TRAIN] == 0
    for side, part in enumerate(PARTS[1:], 1):
        unseen = np.flatnonzero(missing & (counts.labels[side] > 0))
        rows = int(counts.labels[side][unseen].sum())
        findings.add_many(
            "unseen-label",
            "warning" if findings.drop_bad else "error",
            f"labels of the {part} data that the training data never show: {_some(names, unseen)}",
            _firsts(survey.ledger, counts, side, unseen),
            rows,
            fix="correct the labels, or add training rows with them",
            dropped=rows if findings.drop_bad else 0,
            group=part,
            in_rows=True,
        )
    return np.flatnonzero(missing & (counts.labels[1:].sum(axis=0) > 0)).tolist()


def _number_of_labels(findings: Findings, survey: Survey, used: int, rows: int) -> None:
    if survey.labels.overflowing:
        findings.add_many(
            "too-many-labels",
            "error",
            f"more than {MOST_LABELS:,} different labels: is `label` the right column?",
            [],
            1,
            fix="data.columns.label=COLUMN",
        )
    elif used < 2 and rows:
        findings.add_many(
            "too-few-classes",
            "error",
            f"the training data have {used} class{'' if used == 1 else 'es'}: there is nothing to tell apart",
            [survey.ledger.origin(0)],
            1,
            fix="add rows of at least one other class",
        )
    elif used > MOST_COMPARED:
        findings.add_many(
            "many-labels",
            "warning",
            f"{used:,} different labels; typos among them were not sought",
            [],
            1,
            fix="is `label` the right column? data.columns.label=COLUMN",
        )


def judge_sizes(findings: Findings, counts: Tally, given: Given) -> None:
    """Report parts with too few rows."""
    for side, part in enumerate(PARTS):
        rows, wanted = int(counts.rows[side]), given[part]
        if not wanted and part != "train":
            continue
        if not rows and findings.has_errors:
            continue  # what they say explains it
        if not rows:
            severity: Any = "error" if isinstance(wanted, list) or part == "train" else "warning"
            what, fix = f"no usable row for {part}", f"put rows into it, or name other data in `data.{part}`"
            findings.add_many("no-rows", severity, what, named(given, part), 1, fix=fix, group=part)
        elif part == "train" and rows < FEW_TRAINING_ROWS:
            what, where = f"only {rows} rows to train on", named(given, part)
            findings.add_many("few-rows", "warning", what, where, 1, fix="add rows", group=part)
        elif part == "test" and rows < FEW_TEST_ROWS:
            what, fix = f"only {rows} rows to test on: intervals will be wide", "add rows, or raise `data.test`"
            findings.add_many("few-rows", "warning", what, named(given, part), 1, fix=fix, group=part)
    wanted_any = given["validation"] or given["test"]
    if wanted_any and counts.rows[TRAIN] and not counts.rows[TRAIN + 1 : NOWHERE].any() and not findings.has_errors:
        what = "no rows to measure on: neither test nor validation data have any"  # said before the training
        fix = "add rows, raise `data.test`, or give it a file"
        findings.add_many("no-rows", "error", what, named(given, "train"), 1, fix=fix, group="measure")


def class_balance(names: Sequence[str], counts: Tally) -> dict[str, dict[str, int]]:
    """Split -> label -> rows, labels in their order."""
    number = {name: n for n, name in enumerate(names)}
    used = [name for name in in_order(names) if counts.labels[:, number[name]].any()]
    return {
        part: {name: int(counts.labels[side, number[name]]) for name in used}
        for side, part in enumerate(PARTS)
        if counts.rows[side]
    }


def length_statistics(counts: Tally) -> dict[str, dict[str, Mapping[str, float]]]:
    """Split -> characters and, where rendered, tokens."""
    result: dict[str, dict[str, Mapping[str, float]]] = {}
    for side, part in enumerate(PARTS):
        if not counts.rows[side]:
            continue
        result[part] = {"characters": counts.characters[side].statistics()}
        if tokens := counts.tokens[side].statistics():
            rows, cut = counts.cut[side].tolist()
            result[part]["tokens"] = {**tokens, "cut_rows": rows, "cut_tokens": cut}
    return result


def _some(names: Sequence[str], numbers: NDArray[Any]) -> str:
    chosen = in_order([names[number] for number in numbers.tolist()])
    more = f" and {len(chosen) - _NAMES_SHOWN} more" if len(chosen) > _NAMES_SHOWN else ""
    return ", ".join(repr(name) for name in chosen[:_NAMES_SHOWN]) + more


def _firsts(ledger: Ledger, counts: Tally, side: int, numbers: NDArray[Any]) -> list[Origin]:
    positions = sorted(counts.first_of_label[side, numbers].tolist())[:PLACES]
    return [ledger.origin(position) for position in positions]
