"""What outputs say: labels, scores, surprises; out of probabilities where there are some, else of what was written."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from tunesmith.arrays import BoolArray, FloatArray, IntArray
from tunesmith.errors import DataError
from tunesmith.prediction.outputs import Outputs, Truth

NO_LABEL = -1
"""Number of the label of a written answer that is none of the labels. It is always wrong."""

_LIMIT = re.compile(r"([;\n]|,(?=\s))")
_NUMBER = re.compile(r"[-+\u2212]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")


def label_numbers(outputs: Outputs, labels: Sequence[str]) -> IntArray:
    """Index of the label that was chosen for each row, (N,); :data:`NO_LABEL` where an answer names no label.

    Probabilities decide where there are some (the first of equals wins), else the generated text, compared without
    letter case, surrounding white space and punctuation.
    """
    if outputs.probabilities is not None:
        if outputs.thresholds is not None and len(labels) == 2:
            return np.asarray(outputs.probabilities[:, 1] >= outputs.thresholds[1], dtype=np.int64)
        return np.asarray(outputs.probabilities.argmax(axis=1), dtype=np.int64)
    if outputs.texts is None:
        raise DataError("these outputs hold neither probabilities nor texts, so no labels")
    number_of = _by_name(labels)
    chosen = [number_of(text) for text in outputs.texts]
    return np.array(chosen, dtype=np.int64)


def label_sets(outputs: Outputs, labels: Sequence[str]) -> BoolArray:
    """Whether each label was given to each row, (N, C): by probability and threshold, else by the text's words."""
    if outputs.probabilities is not None:
        thresholds = np.full(len(labels), 0.5) if outputs.thresholds is None else outputs.thresholds
        return np.asarray(outputs.probabilities >= thresholds)
    number_of = _by_name(labels)
    most = max((len(_LIMIT.split(label)) for label in labels), default=1)
    result = np.zeros((len(outputs.texts or []), len(labels)), dtype=bool)
    for row, text in enumerate(outputs.texts or []):
        result[row, list(_listed(text, most, number_of))] = True
    return result


def _by_name(labels: Sequence[str]) -> Callable[[str], int]:
    """The number of the label that a text is, or is but for case, white space and punctuation; else `NO_LABEL`."""
    exact = {label: number for number, label in enumerate(labels)}
    bare = {_bare(label): number for number, label in reversed(list(enumerate(labels))) if _bare(label)}
    return lambda text: exact.get(text.strip(), bare.get(_bare(text), NO_LABEL))


def _listed(text: str, most: int, number_of: Callable[[str], int]) -> Iterator[int]:
    """The labels in a list of them: between limits, of which a label of up to ``most`` pieces may hold some itself."""
    pieces = _LIMIT.split(text)  # what stands between limits, and the limits
    start = 0
    while start < len(pieces):
        ends = range(min(len(pieces), start + most), start, -2)  # the longest label first
        found = ((end, number_of("".join(pieces[start:end]))) for end in ends)
        end, number = next((one for one in found if one[1] != NO_LABEL), (start + 1, NO_LABEL))
        if number != NO_LABEL:
            yield number
        start = end + 1


def true_label_sets(right: Truth) -> BoolArray:
    """Whether each label applies to each row, (N, C).

    Raises:
        DataError: A label of a row is none of the known ones.
    """
    labels = right.labels
    if not labels:
        raise DataError("a multi-label task needs its labels")
    numbers = {label: number for number, label in enumerate(labels)}
    result = np.zeros((len(right.references), len(labels)), dtype=bool)
    for row, reference in enumerate(right.references):
        for label in reference:
            if label not in numbers:
                raise DataError(
                    f"the label {label!r} of test row {row + 1} is not among the {len(labels)} known labels",
                    fix="mend the label, or give the training data examples of it",
                )
            result[row, numbers[label]] = True
    return result


def scores(outputs: Outputs) -> FloatArray:
    """The score given to each row, (N,); of written answers the first number in them (see :func:`written_scores`)."""
    return outputs.scores if outputs.scores is not None else written_scores(outputs.texts or [])


def written_scores(texts: Sequence[str]) -> FloatArray:
    """The first number in each text, (N,); where there is none, the mean of the others: saying nothing gains nothing.

    0 if no text holds a number.
    """
    found = [_NUMBER.search(text) for text in texts]
    numbers = np.array([float(match.group().replace("\u2212", "-")) if match else np.nan for match in found])
    if np.isnan(numbers).all():
        return np.zeros(len(texts))
    return np.where(np.isnan(numbers), np.nanmean(numbers), numbers)


def surprises(outputs: Outputs) -> list[str]:
    """The surprise at each document, in words."""
    assert outputs.nats is not None and outputs.tokens is not None
    if outputs.reference_bytes is not None:
        bits = outputs.nats / np.log(2.0) / np.maximum(np.asarray(outputs.reference_bytes), 1.0)
        return [f"{value:.3f} bits per byte" for value in bits.tolist()]
    losses = outputs.nats / np.maximum(outputs.tokens, 1.0)
    return [f"{value:.3f} nats per masked token" for value in losses.tolist()]


def _bare(text: str) -> str:
    return text.strip().strip("\"'`.,:;!*() \n\t").casefold()
