"""Finished runs against each other, row by row, from the answers that each has kept."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from tunesmith.errors import UsageError
from tunesmith.evaluation.comparison import Comparison, System, compare
from tunesmith.evaluation.metrics import METRICS, measure, truth
from tunesmith.evaluation.sequence import compare_sequences, kept_sequence
from tunesmith.evaluation.stored import outputs_of, reference_of
from tunesmith.runs import Run, StoredAnswer, read_answers
from tunesmith.tasks import TASKS
from tunesmith.tasks.base import Answer

_OUTCOMES = {"beats": "worse than the first", "loses to": "better than the first"}
"""What the first run does to another one -> what the other one is."""


def compare_runs(opened: Sequence[Run]) -> tuple[str, list[dict[str, Any]], str]:
    """Compare the first run with each other one by the task's primary metric.

    Runs whose own test rows differ are compared by the newest rows of other files on which all were measured, which the
    names and the verdict say.

    Returns:
        The metric's name, one dictionary a run, and a verdict in one sentence.

    Raises:
        UsageError: The runs are of different tasks or were measured on different rows.
    """
    given, (opened, answers) = opened, _on_same_rows(opened)
    recipe = opened[0].recipe
    task, settings = TASKS[recipe.task], recipe.evaluate
    labels = _labels(opened, answers, task.answer)
    right = truth(task, [reference_of(a, task.answer) for a in answers[0]], labels, settings)
    systems = []
    for run, stored in zip(opened, answers, strict=True):
        outputs = outputs_of(stored, task.answer, labels)
        name = f"{run.id} ({run.recipe.model}, {run.recipe.method})"
        metrics = measure(outputs, right, settings)
        systems.append(System(run.id, name, "a tuned run", outputs, metrics))
    found = compare(systems[0], systems[1:], right, settings)
    metric = found[0].metric
    table: list[dict[str, Any]] = [
        {"name": system.title, "value": system.metrics[metric].as_dict()} for system in systems
    ]
    for line, against in zip(table[1:], found, strict=True):
        line |= {
            "difference": _negated(against),
            "p": against.p_adjusted,
            "outcome": _OUTCOMES.get(against.outcome, against.outcome),
        }
    verdict = _verdict(systems, found, metric)
    if list(opened) != list(given):
        places = ", ".join(str(run.path) for run in opened)
        verdict += f" Their own test rows differ, so this is on rows that all were measured on since: {places}."
    return metric, table, verdict


def compare_forgetting(opened: Sequence[Run]) -> list[dict[str, Any]]:
    """What runs of the same tasks in turn know at the end, and what each has forgotten, against the first run.

    Returns:
        As :func:`tunesmith.evaluation.sequence.compare_sequences`; empty if not all are such runs.
    """
    names = [[stage.name for stage in run.recipe.stages] for run in opened]
    if any(run.recipe.method != "sequential" for run in opened) or any(other != names[0] for other in names):
        return []
    kept = [kept_sequence(run.path, run.recipe) for run in opened]
    found = [one for one in kept if one is not None]
    return compare_sequences(found) if len(found) == len(opened) else []


def _on_same_rows(opened: Sequence[Run]) -> tuple[Sequence[Run], list[list[StoredAnswer]]]:
    """The runs, or evaluations of them on other files, that answered the same rows; with their answers, in one order.

    Raises:
        UsageError: There are none, or the runs are of different tasks.
    """
    first = opened[0]
    for run in opened:
        if run.recipe.task != first.recipe.task:
            raise UsageError(f"{run.id} is of the task {run.recipe.task}, {first.id} of {first.recipe.task}")
    own = [_answers(run) for run in opened]
    rows = [_rows(answers) for answers in own]
    if all(other == rows[0] for other in rows):
        return opened, own
    measured = []  # of each run: every measurement of it with its answers, its own first
    for run, answers in zip(opened, own, strict=True):
        measured.append([(run, answers), *((one, _answers(one)) for one in run.evaluations() if one.metrics)])
    for one in measured[0]:
        alike = [_first_on(_rows(one[1]), others) for others in measured[1:]]
        found = [one, *(other for other in alike if other is not None)]
        if len(found) == len(opened):
            return [run for run, _ in found], [answers for _, answers in found]
    other = next(run for run, those in zip(opened, rows, strict=True) if those != rows[0])
    commands = ", ".join(f"`tunesmith eval {run.path} --data FILE`" for run in opened)
    raise UsageError(
        f"{other.id} and {first.id} were measured on different test rows, so they cannot be compared",
        fix=f"measure them on one file, then compare them again: {commands}; or tune them with the same `data.test` "
        "(and `data.seed`)",
    )


def _answers(run: Run) -> list[StoredAnswer]:
    return sorted(read_answers(run), key=lambda a: (a.key, a.reference))


def _rows(answers: Sequence[StoredAnswer]) -> list[tuple[str, str]]:
    """What identifies the rows of sorted answers."""
    return [(a.key, a.reference) for a in answers]


def _first_on(
    rows: list[tuple[str, str]], measured: Sequence[tuple[Run, list[StoredAnswer]]]
) -> tuple[Run, list[StoredAnswer]] | None:
    """The first measurement that was on these rows."""
    return next((one for one in measured if _rows(one[1]) == rows), None)


def _labels(opened: Sequence[Run], answers: Sequence[Sequence[StoredAnswer]], answer: Answer) -> list[str] | None:
    """The labels of all runs together; ``None`` for other tasks."""
    if answer == "label":
        return sorted({a.reference for a in answers[0]} | {a.answer for stored in answers for a in stored})
    if answer == "labels":
        named = {label for a in itertools.chain(*answers) for label in [*(a.references or []), *(a.labels or [])]}
        return sorted(named.union(*(_known_labels(run) for run in opened)))
    return None


def _known_labels(run: Run) -> list[str]:
    from tunesmith.models.saving import read_notes

    return read_notes(run.model_folder).labels or []


def _negated(against: Comparison) -> dict[str, float]:
    """The other minus the first: how the table reads."""
    d = against.difference
    return {"value": -d.value, "low": -d.high, "high": -d.low}


def _verdict(systems: Sequence[System], found: Sequence[Comparison], metric: str) -> str:
    sign = 1 if METRICS[metric].higher_is_better else -1
    best = max(systems, key=lambda s: sign * s.metrics[metric].value)
    text = f"{best.title} has the best {metric}: {best.metrics[metric]}."
    undecided = [c.title for c in found if c.outcome == "no difference shown"]
    if undecided:
        text += f" No difference is shown between {systems[0].title} and {', '.join(undecided)}."
    return text
