"""What a reader of a report wants to see beyond the metrics: confusions, and examples gained, lost and typical."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from tunesmith.arrays import FloatArray, IntArray
from tunesmith.data.spans import Span
from tunesmith.evaluation import label_set_metrics, span_metrics
from tunesmith.evaluation.calibration import ReliabilityBin, reliability
from tunesmith.evaluation.comparison import System
from tunesmith.evaluation.f1 import ClassScores
from tunesmith.evaluation.label_metrics import (
    NO_LABEL_TITLE,
    confidences,
    confusion_matrix,
    per_class,
    reference_numbers,
)
from tunesmith.evaluation.metrics import available, kind, primary, statistics
from tunesmith.prediction.outputs import Outputs, Truth
from tunesmith.prediction.reading import NO_LABEL, label_numbers
from tunesmith.recipe import Evaluate

SHOWN = 8
"""Examples of each kind in a report."""


@dataclass(frozen=True)
class Confusion:
    """A pair of classes that were mixed up: ``rows`` of class ``truth`` were called ``answer``."""

    truth: str
    answer: str
    rows: int
    share: float


@dataclass(frozen=True)
class Example:
    """One test row with what two systems said.

    Attributes:
        text: What went in.
        reference: What should come out.
        ours: The tuned model's answer.
        theirs: The best alternative's answer; ``None`` without an alternative.
        ours_score: Probability of the label, or ROUGE-L of a text; ``None`` if unknown.
        theirs_score: The same for the alternative.
        origin: ``file:line``.
        spans: Where answers are spans: those of the reference, of ours and of theirs.
    """

    text: str
    reference: str
    ours: str
    theirs: str | None
    ours_score: float | None
    theirs_score: float | None
    origin: str
    spans: tuple[Sequence[Span], Sequence[Span], Sequence[Span] | None] | None = None


@dataclass(frozen=True)
class Findings:
    """Everything that is derived from the tuned model's answers and those of the best alternative.

    Attributes:
        classes: The per-class table, in the order of the labels; empty for generation.
        labels: Labels of the spans, in an order that decides their colours.
        order: Labels in the order in which a confusion matrix reads best: most confused first, neighbours together.
        confusion: (C, C) or, with answers that are no label, (C, C + 1) counts in that order.
        confusions: The pairs most often mixed up.
        bins: Reliability diagram; empty where the model gives no probabilities.
        num_gained: Rows that the tuned model did better than the best alternative.
        num_lost: Rows that it did worse.
        gained: Some of the rows gained, the surest first.
        lost: Some of the rows lost, the surest mistakes first.
        samples: Rows spread evenly over the test data (generation only).
    """

    classes: list[ClassScores]
    order: list[str]
    confusion: list[list[int]]
    confusions: list[Confusion]
    bins: list[ReliabilityBin]
    num_gained: int
    num_lost: int
    gained: list[Example]
    lost: list[Example]
    samples: list[Example]
    labels: list[str] = field(default_factory=list)


def find(
    tuned: System,
    best: System | None,
    inputs: Sequence[str],
    references: Sequence[str],
    origins: Sequence[str],
    right: Truth,
    settings: Evaluate,
) -> Findings:
    """Derive the findings.

    Args:
        tuned: The tuned model.
        best: The best alternative, if any.
        inputs: N texts that went in.
        references: N right answers as a reader sees them.
        origins: N places, as ``file:line``.
        right: The same in the form that metrics read.
        settings: For the intervals.
    """
    examples = _Examples(tuned, best, inputs, references, origins, right)
    gained, lost = examples.gained(), examples.lost()
    labels = right.labels if right.answer == "label" else None
    samples = [] if labels else np.unique(np.linspace(0, len(inputs) - 1, min(SHOWN, len(inputs))).astype(int)).tolist()
    classes: list[ClassScores] = []
    order: list[str] = []
    table = np.zeros((0, 0), dtype=np.int64)
    bins: list[ReliabilityBin] = []
    if labels:
        truth, chosen = reference_numbers(references, labels), label_numbers(tuned.outputs, labels)
        places = confusion_order(confusion_matrix(truth, chosen, len(labels)))
        order = [labels[place] for place in places]
        table = confusion_matrix(truth, chosen, len(labels))[places][:, [*places, len(labels)]]
        classes = per_class(tuned.outputs, references, labels, settings)
        confidence = confidences(tuned.outputs)
        bins = reliability(confidence, truth == chosen, level=settings.confidence) if confidence is not None else []
        if not (chosen == NO_LABEL).any():
            table = table[:, :-1]
    if right.answer == "spans":
        classes = span_metrics.per_class(tuned.outputs, right, settings)
    if right.answer == "labels":
        classes = label_set_metrics.per_class(tuned.outputs, right, settings)
    return Findings(
        classes=classes,
        order=order,
        confusion=table.tolist(),
        confusions=top_confusions(table, order),
        bins=bins,
        num_gained=len(gained),
        num_lost=len(lost),
        gained=[examples.at(row) for row in gained[:SHOWN]],
        lost=[examples.at(row) for row in lost[:SHOWN]],
        samples=[examples.at(row) for row in samples],
        labels=[row.label for row in classes] if right.answer == "spans" else [],
    )


def confusion_order(table: IntArray) -> list[int]:
    """Order classes so that those often confused stand together, the most confused first.

    Greedy: begin with the class with most errors, then always take the class most often mixed up with the last one.

    Args:
        table: (C, C + 1) counts of :func:`~tunesmith.evaluation.metrics.confusion_matrix`.
    """
    square = table[:, : len(table)] - np.diag(np.diag(table))
    mixed, errors = square + square.T, square.sum(axis=0) + square.sum(axis=1)
    if len(table) <= 2:
        return list(range(len(table)))
    left = set(range(len(table)))
    order: list[int] = []
    while left:
        last = order[-1] if order else None
        nearest = max(left, key=lambda place: (0 if last is None else mixed[last, place], errors[place], -place))
        order.append(nearest)
        left.remove(nearest)
    return order


def top_confusions(table: IntArray, order: Sequence[str], limit: int = 15) -> list[Confusion]:
    """The wrong cells of a confusion matrix, the fullest first."""
    names = [*order, NO_LABEL_TITLE]
    cells = [(int(table[i, j]), i, j) for i, j in zip(*np.nonzero(table), strict=True) if i != j]
    cells.sort(key=lambda cell: (-cell[0], cell[1], cell[2]))
    return [Confusion(names[i], names[j], rows, rows / int(table[i].sum())) for rows, i, j in cells[:limit]]


class _Examples:
    """Answers and scores of two systems, row by row."""

    def __init__(
        self,
        tuned: System,
        best: System | None,
        inputs: Sequence[str],
        references: Sequence[str],
        origins: Sequence[str],
        right: Truth,
    ) -> None:
        self.inputs, self.references, self.origins = inputs, references, origins
        self.ours = _answers(tuned.outputs, right)
        self.theirs = _answers(best.outputs, right) if best else None
        self.spans = (right.references, tuned.outputs.spans, best.outputs.spans if best else None)

    def gained(self) -> list[int]:
        """Rows the tuned model did better: by its confidence (labels) or by the gap (texts)."""
        return self._ordered(sign=1)

    def lost(self) -> list[int]:
        """Rows the alternative did better: the tuned model's surest mistakes first, or the widest gap."""
        return self._ordered(sign=-1)

    def at(self, row: int) -> Example:
        """The example as a report shows it."""
        ours, theirs = self.ours, self.theirs
        references, found, alternatives = self.spans
        return Example(
            text=self.inputs[row],
            reference=self.references[row],
            ours=ours.texts[row],
            theirs=theirs.texts[row] if theirs else None,
            ours_score=None if ours.shown is None else float(ours.shown[row]),
            theirs_score=None if theirs is None or theirs.shown is None else float(theirs.shown[row]),
            origin=self.origins[row],
            spans=None if found is None else (references[row], found[row], alternatives[row] if alternatives else None),
        )

    def _ordered(self, sign: int) -> list[int]:
        if self.theirs is None:
            return []
        gaps = sign * (self.ours.quality - self.theirs.quality)
        weight = gaps if self.ours.is_text or self.ours.shown is None else self.ours.shown
        rows = np.flatnonzero(gaps > 1e-12)
        return [int(row) for row in rows[np.argsort(-weight[rows], kind="stable")]]


@dataclass(frozen=True)
class _Answers:
    """Answers of one system: texts, quality of each (N,), and the number (N,) shown beside it."""

    texts: list[str]
    quality: FloatArray
    shown: FloatArray | None
    is_text: bool


def _answers(outputs: Outputs, right: Truth) -> _Answers:
    texts = kind(right).texts(outputs, right)
    name = next(name for name in primary(right) if name in available(outputs, right))
    quality = statistics(outputs, right, only=name)[name].row_scores
    assert quality is not None  # every primary metric has them
    if right.answer == "label":
        return _Answers(texts, quality, confidences(outputs), is_text=False)
    return _Answers(texts, quality, quality if outputs.texts is not None else None, is_text=True)
