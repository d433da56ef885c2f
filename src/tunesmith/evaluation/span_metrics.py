"""Labelled spans: which were found, and the strict precision, recall and F1 of that.

A span counts as found if first character, last character and label all agree (CoNLL's rule; ``strict`` of SemEval-2013
task 9 and of nervaluate; seqeval's). Numbers are over all spans of the test rows together (micro).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tunesmith.arrays import FloatArray
from tunesmith.data.spans import Span, inline
from tunesmith.errors import DataError
from tunesmith.evaluation.f1 import ClassScores, class_scores, macro_f1, micro_f1, micro_precision, micro_recall
from tunesmith.evaluation.intervals import Statistic
from tunesmith.prediction.outputs import Outputs, Truth
from tunesmith.recipe import Evaluate

PRIMARY = ("span_f1",)
DECIDING = ("span_f1", "span_precision", "span_recall", "span_macro_f1")
VALIDATION = "span_f1"


def statistics(outputs: Outputs, right: Truth) -> dict[str, Callable[[], Statistic]]:
    """Name -> how to compute it."""
    if outputs.spans is None:
        return {}
    counts = span_counts(outputs.spans, right.references, labels_of(right, outputs))
    quality, spans = row_f1(outputs.spans, right.references), sum(map(len, right.references))

    def of(combine: Callable[[FloatArray], FloatArray]) -> Callable[[], Statistic]:
        return lambda: Statistic(counts, combine, row_scores=quality, trials=spans)

    return {
        "span_f1": of(micro_f1),
        "span_precision": of(micro_precision),
        "span_recall": of(micro_recall),
        "span_macro_f1": of(macro_f1),
    }


def texts(outputs: Outputs, right: Truth) -> list[str]:
    """The spans as a reader lists them."""
    return [inline(spans) for spans in outputs.spans or []]


def per_class(outputs: Outputs, right: Truth, settings: Evaluate) -> list[ClassScores]:
    """Precision, recall and F1 of each label with intervals; labels that only the test rows have come last."""
    labels = labels_of(right, outputs)
    return class_scores(span_counts(outputs.spans or [], right.references, labels), labels, settings)


def labels_of(right: Truth, outputs: Outputs) -> list[str]:
    """The labels that were learned, and those that occur besides."""
    known = dict.fromkeys(right.labels or ())
    others = {span.label for spans in (*right.references, *(outputs.spans or [])) for span in spans}
    return [*known, *sorted(others - known.keys())]


def span_counts(found: Sequence[Sequence[Span]], references: Sequence[Sequence[Span]], labels: Sequence[str]) -> Any:
    """What each row adds, (N, 3L) sparse: to right spans, to predictions and to references of each label.

    Raises:
        DataError: There are not as many answers as references.
    """
    from scipy.sparse import csr_array

    if len(found) != len(references):
        raise DataError(f"there are answers to {len(found)} rows, and {len(references)} test rows")
    number = {label: n for n, label in enumerate(labels)}
    cells: Counter[tuple[int, int]] = Counter()
    for row, (ours, true) in enumerate(zip(found, references, strict=True)):
        places, wanted = {span.place for span in ours}, {span.place for span in true}
        for group, spans in enumerate((places & wanted, places, wanted)):
            cells.update((row, group * len(labels) + number[label]) for _, _, label in spans)
    at = np.array(list(cells), dtype=np.int64).reshape(-1, 2)
    values = np.array(list(cells.values()), dtype=np.float64)
    return csr_array((values, (at[:, 0], at[:, 1])), shape=(len(found), 3 * max(1, len(labels))))


def row_f1(found: Sequence[Sequence[Span]], references: Sequence[Sequence[Span]]) -> FloatArray:
    """F1 of each row by itself, (N,); 1 where there was nothing to find and nothing was found."""
    scores = []
    for ours, true in zip(found, references, strict=True):
        common = len({span.place for span in ours} & {span.place for span in true})
        scores.append(2 * common / (len(ours) + len(true)) if ours or true else 1.0)
    return np.array(scores, dtype=np.float64)
