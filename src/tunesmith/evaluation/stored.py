"""Outputs kept row by row in ``predictions.jsonl``, and made again from there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tunesmith.arrays import FloatArray
from tunesmith.data.rows import Row
from tunesmith.data.spans import Span
from tunesmith.evaluation.metrics import kind
from tunesmith.prediction.outputs import Outputs, Truth
from tunesmith.prediction.reading import label_sets
from tunesmith.runs import StoredAnswer
from tunesmith.tasks.base import Answer, Task

_COLUMNS = {
    "nats": "nats",
    "reference_bytes": "reference_bytes",
    "tokens": "tokens",
    "correct": "correct",
    "scores": "score",
    "gaps": "gap",
    "rewards": "reward",
    "judged": "judged",
}
"""Fields of outputs with a number a row, and their names in a stored answer."""


def stored(task: Task, rows: Sequence[Row], outputs: Outputs, right: Truth) -> list[StoredAnswer]:
    """What a system said on N rows, one object a row."""
    answers = outputs.texts if outputs.texts is not None else kind(right).texts(outputs, right)
    numbers = {name: getattr(outputs, field) for field, name in _COLUMNS.items()}
    given = _given_labels(outputs, right)
    return [
        StoredAnswer(
            key=row.key,
            where=str(row.origin),
            input=task.input_text(row),
            reference=task.target_text(row),
            answer=answers[n],
            probabilities=None if outputs.probabilities is None else outputs.probabilities[n].tolist(),
            references=_several(right, n),
            spans=None if outputs.spans is None else [list(span) for span in outputs.spans[n]],
            reference_spans=[list(span) for span in right.references[n]] if right.answer == "spans" else None,
            right=right.references[n] if isinstance(right.references[n], bool | int | float) else None,
            labels=None if given is None else given[n],
            log_odds=outputs.log_odds,
            **{name: None if values is None else float(values[n]) for name, values in numbers.items()},
        )
        for n, row in enumerate(rows)
    ]


def _several(right: Truth, row: int) -> list[str] | None:
    """All right answers to a row, where there are several texts; all its labels, where it has any number of them."""
    reference = right.references[row]
    return list(reference) if right.answer in ("text", "labels") and not isinstance(reference, str) else None


def _given_labels(outputs: Outputs, right: Truth) -> list[list[str]] | None:
    """The labels given to each row, of a task with several."""
    if right.answer != "labels":
        return None
    labels = right.labels or []
    return [[label for label, given in zip(labels, line, strict=True) if given] for line in label_sets(outputs, labels)]


def outputs_of(answers: Sequence[StoredAnswer], answer: Answer, labels: Sequence[str] | None) -> Outputs:
    """The outputs again, as far as metrics need them; labels as they were chosen, without their probabilities.

    Args:
        answers: N stored ones.
        answer: Kind of the answers.
        labels: All there are, where answers are labels: those of several runs need not be the same.
    """
    if answer == "label":
        return Outputs(probabilities=_chosen([[a.answer] for a in answers], labels or []))
    numbers: dict[str, Any] = {field: _column(answers, name) for field, name in _COLUMNS.items()}
    known = [a.labels for a in answers if a.labels is not None]
    chosen = _chosen(known, labels or []) if answer == "labels" and len(known) == len(answers) else None
    spans = [[Span(*span) for span in a.spans] for a in answers if a.spans is not None]
    reads_numbers = chosen is not None or numbers["scores"] is not None or numbers["gaps"] is not None
    found = Outputs(
        probabilities=chosen,
        texts=None if spans or reads_numbers or answer == "likelihood" else [a.answer for a in answers],
        spans=spans or None,
        log_odds=all(a.log_odds for a in answers),
    )
    return replace(found, **numbers)


def _column(answers: Sequence[StoredAnswer], name: str) -> FloatArray | None:
    """A number of each row, (N,); none if one lacks it."""
    values = [getattr(a, name) for a in answers]
    return None if any(value is None for value in values) else np.asarray(values, dtype=np.float64)


def _chosen(given: Sequence[Sequence[str]], labels: Sequence[str]) -> FloatArray:
    """1 for the labels of each row, (N, C)."""
    numbers = {label: number for number, label in enumerate(labels)}
    found = np.zeros((len(given), len(labels)))
    for row, names in enumerate(given):
        found[row, [numbers[name] for name in names]] = 1.0
    return found


def reference_of(stored_answer: StoredAnswer, answer: Answer) -> Any:
    """The right answer as the metrics of this kind read it."""
    if answer == "labels":
        return stored_answer.references or []
    if stored_answer.right is not None:
        return stored_answer.right
    if answer == "score":
        return float(stored_answer.reference)
    if stored_answer.reference_spans is not None:
        return [Span(*span) for span in stored_answer.reference_spans]
    return stored_answer.references or stored_answer.reference
