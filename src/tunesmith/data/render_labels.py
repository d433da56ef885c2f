"""Rendering of texts for heads: a class, several labels, a score, a grade."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tunesmith.data.label_sets import unknown_label
from tunesmith.data.render import Render, Rendered, encode_text
from tunesmith.data.rows import Row
from tunesmith.data.scores import grade_name
from tunesmith.errors import DataError
from tunesmith.tasks.base import Task


def input_renderer(tokenizer: Any, task: Task, max_length: int) -> Render:
    """Render what goes into a head, without an answer: as long as the labels are not known."""

    def render(row: Row) -> Rendered:
        input_ids, cut = encode_text(tokenizer, task.input_text(row), max_length)
        return Rendered(input_ids=input_ids, cut_tokens=cut)

    return render


def classification_renderer(tokenizer: Any, task: Task, labels: Sequence[str], max_length: int) -> Render:
    """Render rows for a model with a classification head: special tokens as the model wants them, and the label.

    The returned function raises :class:`DataError` for a label that is not among ``labels``.
    """
    index, inputs = {label: number for number, label in enumerate(labels)}, input_renderer(tokenizer, task, max_length)

    def render(row: Row) -> Rendered:
        label = task.target_text(row)
        if label not in index:
            raise unknown_label(label, row, labels)
        return replace(inputs(row), label=index[label])

    return render


def label_set_renderer(tokenizer: Any, task: Task, labels: Sequence[str], max_length: int) -> Render:
    """Render rows for a head with an output for each label: ``extra["labels"]`` has a 1 for each that applies.

    The returned function raises :class:`DataError` for a label that is not among ``labels``.
    """
    index, inputs = {label: number for number, label in enumerate(labels)}, input_renderer(tokenizer, task, max_length)

    def render(row: Row) -> Rendered:
        applies = [0] * len(labels)
        for label in task.labels(row):
            if label not in index:
                raise unknown_label(label, row, labels)
            applies[index[label]] = 1
        return replace(inputs(row), label=0, extra={"labels": applies})

    return render


def score_renderer(tokenizer: Any, task: Task, max_length: int) -> Render:
    """Render rows for a head that gives a number: ``extra["score"]`` is the right one, as the data have it."""
    inputs = input_renderer(tokenizer, task, max_length)
    return lambda row: replace(inputs(row), label=0, extra={"score": [float(task.reference(row))]})


def grade_renderer(tokenizer: Any, task: Task, grades: Sequence[str], max_length: int) -> Render:
    """Render rows for a head that gives a grade: ``extra["grade"]`` is its place among ``grades``.

    The returned function raises :class:`DataError` for a score that is none of them.
    """
    places, inputs = {grade: number for number, grade in enumerate(grades)}, input_renderer(tokenizer, task, max_length)

    def render(row: Row) -> Rendered:
        grade = grade_name(float(task.reference(row)))
        if grade not in places:
            raise DataError(
                f"the score {task.target_text(row)} is none of the {len(grades)} grades of the training data",
                where=str(row.origin),
                fix="`objective: ordinal` wants a few grades (1, 2, 3 or 0.5, 1, 1.5); for other scores: `mse`",
            )
        return replace(inputs(row), label=0, extra={"grade": [places[grade]]})

    return render
