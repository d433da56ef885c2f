"""Step 2 of the walk: from a recipe to checked, split rows, or to a report of everything that is wrong."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np

from tunesmith import words
from tunesmith.data.dropped import DroppedRows
from tunesmith.data.duplicates import Repeats, find_repeats
from tunesmith.data.judge import (
    Given,
    Tally,
    class_balance,
    judge_groups,
    judge_labels,
    judge_near,
    judge_repeats,
    judge_row_labels,
    judge_sizes,
    judge_unseen,
    length_statistics,
    named,
    row_label_balance,
    tally,
)
from tunesmith.data.labels import in_order
from tunesmith.data.ledger import PARTS, Ledger
from tunesmith.data.near_duplicates import NearPairs, clusters
from tunesmith.data.pictures import unpacked_for_now
from tunesmith.data.problems import CheckReport, Findings, Problem
from tunesmith.data.row_file import PLACE, RowFile, RowSpool
from tunesmith.data.rows import Row
from tunesmith.data.shots import few_shot, too_few
from tunesmith.data.splits import NOWHERE, TRAIN, Assignment, stratify
from tunesmith.data.survey import Rules, Survey, Surveyor, iterate_choices
from tunesmith.data.twins import Twins
from tunesmith.errors import DataError
from tunesmith.events import Listener, Notice, nobody
from tunesmith.recipe import PICTURES, Recipe
from tunesmith.tasks import TASKS

if TYPE_CHECKING:
    from tunesmith.data.render import Rendered

Found = TypeVar("Found")

IN_MEMORY_BYTES = 64 * 2**20
"""A set of rows up to this size (as JSON) is kept in memory; a larger one stays on disk and is mapped."""

_LARGEST_CLUSTER = 0.05  # of the training rows; tying more together would decide the split
_SMALLEST_LIMIT = 10


@dataclass(frozen=True)
class PreparedData:
    """Rows ready for rendering.

    Attributes:
        train: Rows to learn from.
        validation: Rows on which choices are made.
        test: Rows that are only measured on.
        labels: Labels of the training rows, sorted (numbers by value); ``None`` for tasks without labels.
        report: What the checks found.
        fingerprint: Hash of all rows used, with their order and sides: the identity of the data for resuming.
    """

    train: Sequence[Row]
    validation: Sequence[Row]
    test: Sequence[Row]
    labels: list[str] | None
    report: CheckReport
    fingerprint: str


@unpacked_for_now()
def check(
    recipe: Recipe,
    *,
    render: Callable[[Row], Rendered] | None = None,
    rules: Rules | None = None,
    on_event: Listener = nobody,
) -> CheckReport:
    """Find everything that is wrong with a recipe's data.

    Memory does not grow with the length of the rows, and by some 180 bytes with each of them: what is remembered of a
    row to find duplicates (``benchmarks/results/large_check.json``).

    Args:
        recipe: Its ``task`` and ``data`` are read.
        render: Turns a row into tokens, so that truncation and rows without loss are found too. It must not need the
            set of labels, which is only known afterwards.
        rules: What somebody else asks of each record, a provider say.
        on_event: Told about guessed columns and progress.

    Raises:
        DataError: A file does not exist, so there is nothing to check.
    """
    survey = Survey(Ledger(), Findings(drop_bad=recipe.data.drop_bad))
    try:
        Surveyor(recipe, survey, render=render, rules=rules, on_event=on_event).walk()
        report, _, counts = _judge(recipe, survey)
    finally:
        survey.ledger.close()
    return report if recipe.data.shots is None else _with_shots(report, recipe, survey, counts)


def prepare(
    recipe: Recipe,
    *,
    on_event: Listener = nobody,
    render: Callable[[Row], Rendered] | None = None,
    rules: Rules | None = None,
    dropped_to: Path | None = None,
    stop_on_errors: bool = True,
    announce: bool = True,
    scratch: Path | None = None,
) -> PreparedData:
    """Read, check and split a recipe's data.

    The split goes by content: it is the same for the same rows in any order, keeps duplicates and near duplicates on
    one side, and leaves rows where they are when others are appended (see :mod:`tunesmith.data.splits`).

    Args:
        recipe: Its ``task`` and ``data`` are read.
        on_event: Told about guessed columns, progress and every warning.
        render: As for :func:`check`.
        rules: As for :func:`check`.
        dropped_to: With ``data.drop_bad`` or ``data.duplicates: drop``: rows left out are written to this JSONL file
            with reason and origin.
        stop_on_errors: Raise if there are errors; else rows with errors are missing from the result.
        announce: Tell ``on_event`` the warnings; else the caller shows the report, which has them.
        scratch: Folder for temporary files, about as large as the data; default: the system's.

    Raises:
        DataError: The first error with its place, and how many more there are.
    """
    drops = recipe.data.drop_bad or recipe.data.duplicates == "drop"
    dropped = DroppedRows(dropped_to) if drops and dropped_to is not None else None
    spool = RowSpool(scratch)
    survey = Survey(Ledger(scratch), Findings(drop_bad=recipe.data.drop_bad), spool=spool, dropped=dropped)
    try:
        Surveyor(recipe, survey, render=render, rules=rules, on_event=on_event).walk()
        report, assignment, counts = _judge(recipe, survey)
        if stop_on_errors:
            report.raise_errors()
        if dropped is not None:
            _write_late_drops(survey, assignment)
            dropped.finish()
        if announce:
            _announce(report, on_event)
        if announce or dropped is not None:
            _announce_left_out(report, dropped_to if dropped else None, on_event)
        parts, fingerprint = _collect(survey, assignment)
    finally:
        survey.ledger.close()
        if dropped is not None:
            dropped.close()
    labels = None
    if TASKS[recipe.task].answer == "label":
        used = np.flatnonzero(counts.labels[TRAIN] > 0)
        labels = in_order([survey.labels.names[number] for number in used.tolist()])
    elif survey.row_labels.get("train"):
        labels = in_order(list(survey.row_labels["train"]))
    train, validation, test = parts
    prepared = PreparedData(train, validation, test, labels, report, fingerprint)
    return prepared if recipe.data.shots is None else few_shot(prepared, TASKS[recipe.task], recipe.data)


def of_stages(recipe: Recipe, prepare_one: Callable[[Recipe, int], Found]) -> list[Found]:
    """The data of each stage of a resolved recipe; stages that learn the same task from the same data share them.

    Args:
        recipe: Resolved.
        prepare_one: Given the recipe as a stage sees it, and the stage's number from 1; its result is handed on.
    """
    known: dict[str, Found] = {}
    found = []
    for number, stage in enumerate(recipe.stages, 1):
        view = recipe.of_stage(stage)
        key = f"{view.task} {view.data.model_dump_json()}"
        if key not in known:
            known[key] = prepare_one(view, number)
        found.append(known[key])
    return found


def _judge(recipe: Recipe, survey: Survey) -> tuple[CheckReport, Assignment, Tally]:
    """Answer the questions about the set as a whole, decide the split, and write the report."""
    data, ledger, findings = recipe.data, survey.ledger, survey.findings
    given: Given = {"train": data.train, "validation": data.validation, "test": data.test}
    has_labels = TASKS[recipe.task].answer == "label"
    names = survey.labels.names if has_labels else [""]
    task = TASKS[recipe.task]
    # Of a document, whose case teaches little, and of a picture, which any file may hold, input and target are enough.
    by: Literal["target", "content"] = "target" if task.answer == "likelihood" or task.name in PICTURES else "content"
    twins = Twins(ledger.num_rows, by) if data.duplicates == "drop" else None
    repeats = find_repeats(ledger, twins)
    judge_repeats(findings, ledger, repeats, has_labels=has_labels, twins=twins)
    near = survey.near.pairs()
    if twins is not None and task.answer == "likelihood":
        twins.mark_near(near)
    judge_near(findings, ledger, near, dropped=twins.near if twins else 0)
    assignment = Assignment(
        validation=data.validation if isinstance(data.validation, float) else 0.0,
        test=data.test if isinstance(data.test, float) else 0.0,
        seed=data.seed,
        ties=_ties(findings, near, ledger) if data.group_by is None else {},
        left_out=_left_out(repeats) if data.drop_bad else {},
        max_rows=data.max_rows,
        twins=twins,
    )
    stratify(assignment, ledger, names)
    if data.group_by is not None:
        judge_groups(findings, ledger, assignment, data.group_by)
    counts = tally(ledger, assignment, len(names))
    if has_labels:
        unseen = judge_unseen(findings, survey, counts)
        judge_labels(findings, survey, counts, given)
        if unseen and data.drop_bad:
            assignment.left_out_labels = unseen
            counts = tally(ledger, assignment, len(names))
    else:
        judge_row_labels(findings, survey, needed=TASKS[recipe.task].answer == "spans")
    of_pairs = survey.pairs.judge(findings, ledger, assignment) if survey.pairs is not None else []
    judge_sizes(findings, counts, given)
    report = CheckReport(
        problems=findings.problems(),
        rows={part: int(counts.rows[side]) for side, part in enumerate(PARTS)},
        rows_read=survey.rows_read,
        rows_left_out=_rows_left_out(survey, counts),
        classes=class_balance(names, counts) if has_labels else row_label_balance(survey),
        lengths=length_statistics(counts),
        columns=list(iterate_choices(survey)),
        notes=_notes(survey, near, data.read_rows) + of_pairs,
    )
    return report, assignment, counts


def _with_shots(report: CheckReport, recipe: Recipe, survey: Survey, counts: Tally) -> CheckReport:
    """The report of a check, with what speaks against ``data.shots``: a run draws them only after the check."""
    has_labels = TASKS[recipe.task].answer == "label"
    names = survey.labels.names if has_labels else [""]
    rows = {name: int(counts.labels[TRAIN, number]) for number, name in enumerate(names)}
    found = too_few({name: count for name, count in rows.items() if count}, recipe.data.shots or 0, has_labels)
    if found is None:
        return report
    problem = Problem("too-few-shots", "error", found[0], named({"train": recipe.data.train}, "train"), 1, found[1])
    return replace(report, problems=[problem, *report.problems])


def _ties(findings: Findings, near: NearPairs, ledger: Ledger) -> dict[int, int]:
    """Near duplicates of the training part that must fall on one side."""
    inside = (near.parts == TRAIN).all(axis=1)
    largest = max(_SMALLEST_LIMIT, int(_LARGEST_CLUSTER * ledger.num_rows))
    tied, untied = clusters(near.inputs[inside], largest)
    findings.add_many(
        "large-cluster",
        "warning",
        f"inputs are near duplicates in clusters of more than {largest} (rows from a template?): a split cannot keep "
        "such a cluster on one side",
        [],
        untied,
        fix="give validation and test data of their own",
    )
    return tied


def _left_out(repeats: Repeats) -> dict[int, np.ndarray]:
    """Inputs that leave the earlier part of each leak, so that what is measured on stays whole."""
    result: dict[int, np.ndarray] = {}
    for (earlier, _), inputs in repeats.leaked_inputs.items():
        result[earlier] = np.concatenate([result.get(earlier, np.empty(0, np.uint64)), inputs])
    return result


def _rows_left_out(survey: Survey, counts: Tally) -> dict[str, int]:
    """Reason -> rows: errors of their own, duplicates, ``data.max_rows``, and the rest (leaks and unseen labels)."""
    unused = survey.ledger.num_rows - int(counts.rows.sum())
    chosen = {"duplicates": counts.repeated, "max_rows": counts.beyond_limit}
    reasons = {"errors": survey.num_left_out, **chosen, "leaks": unused - sum(chosen.values())}
    return {reason: rows for reason, rows in reasons.items() if rows}


def _notes(survey: Survey, near: NearPairs, read_rows: int | None) -> list[str]:
    notes = _limits(survey.unfinished, read_rows) + _no_text(survey)
    notes += [
        f"near duplicates were sought among {kept:,} of {seen:,} different inputs of the {part} data, chosen by content"
        for part, (kept, seen) in near.sampled.items()
    ]
    notes += [
        f"token lengths and loss were checked on {rows:,} of {survey.rows_read[part]:,} rows of the {part} data"
        for part, rows in survey.rendered.items()
        if rows < survey.rows_read[part] - survey.num_left_out
    ]
    return notes


def _limits(unfinished: Sequence[str], read_rows: int | None) -> list[str]:
    """Which sources were not read to their end."""
    if not unfinished:
        return []
    others = f" and of each of {len(unfinished) - 1:,} other sources" if len(unfinished) > 1 else ""
    return [f"read the first {read_rows:,} rows of {unfinished[0]}{others}, there may be more (`data.read_rows`)"]


def _no_text(survey: Survey) -> list[str]:
    """What was left out of pages, in one line for all of them."""
    if not survey.no_text:
        return []
    counts = ", ".join(f"{count:,} of <{element}>" for element, count in survey.no_text.most_common())
    pages = "1 HTML page" if survey.pages == 1 else f"{survey.pages:,} HTML pages"
    return [f"characters left out of {pages}, as no text: {counts}"]


def _announce(report: CheckReport, on_event: Listener) -> None:
    for problem in report.warnings:
        place = str(problem.where[0]) if problem.where else None
        message = f"{problem.count:,} {problem.message}" if problem.count > 1 else problem.message
        on_event(Notice(level="warning", message=f"{problem.code}: {message}", where=place, fix=problem.fix))
    for note in report.notes:
        on_event(Notice(level="info", message=note))


def _announce_left_out(report: CheckReport, dropped_to: Path | None, on_event: Listener) -> None:
    for reason, rows in report.rows_left_out.items():
        where = f", written to {dropped_to}" if dropped_to and reason != "max_rows" else ""
        on_event(Notice(level="info", message=f"{words.not_used(rows)} ({reason}){where}"))


def _write_late_drops(survey: Survey, assignment: Assignment) -> None:
    """Write rows that only the view of the whole set condemned: leaks, unseen labels and duplicates."""
    assert survey.spool is not None and survey.dropped is not None
    for first, chunk, sides in assignment.sides(survey.ledger):
        for place in np.flatnonzero(sides == NOWHERE).tolist():
            entry = chunk[place]
            leaks = np.isin(entry["input"], assignment.left_out.get(int(entry["part"]), ()))
            unseen = entry["part"] != TRAIN and int(entry["label"]) in assignment.left_out_labels
            reasons = ["leakage: the input is in a later part too"] if leaks else []
            reasons += ["unseen-label: the training data never show this label"] if unseen else []
            reasons += _repeated(survey.ledger, assignment.twins, first + place)
            if reasons:
                row = survey.spool.read(int(entry["offset"]), int(entry["size"]))
                survey.dropped.add(survey.ledger.origin(first + place), reasons, row.decode())


def _repeated(ledger: Ledger, twins: Twins | None, position: int) -> list[str]:
    """Why a row is left out that repeats another."""
    partner = None if twins is None else twins.of(position)
    if partner is None:
        return []
    same = ledger.entry(position)["input"] == ledger.entry(partner)["input"]
    what = "duplicate: it repeats" if same else "near-duplicate: it is nearly the same as"
    return [f"{what} {ledger.origin(partner)}"]


def _collect(survey: Survey, assignment: Assignment) -> tuple[list[Sequence[Row]], str]:
    """The rows of each side in the order of the data, and the fingerprint."""
    assert survey.spool is not None
    places: list[list[np.ndarray]] = [[] for _ in PARTS]
    digests = [hashlib.blake2b(digest_size=16) for _ in PARTS]
    for _, chunk, sides in assignment.sides(survey.ledger):
        for side in range(len(PARTS)):
            rows = chunk[sides == side]
            here = np.empty(len(rows), PLACE)
            for name in PLACE.names or ():
                here[name] = rows[name]
            places[side].append(here)
            digests[side].update(rows["content"].tobytes())
    small = survey.spool.num_bytes <= IN_MEMORY_BYTES
    content = survey.spool.finish()
    files = survey.ledger.files
    sides_rows = [RowFile(content, np.concatenate([np.empty(0, PLACE), *found]), files) for found in places]
    fingerprint = hashlib.blake2b(b"".join(digest.digest() for digest in digests), digest_size=16).hexdigest()
    return [list(rows) if small else rows for rows in sides_rows], fingerprint


__all__ = ["CheckReport", "DataError", "PreparedData", "check", "prepare"]
