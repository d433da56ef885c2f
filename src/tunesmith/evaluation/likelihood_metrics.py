"""Bare text: how surprised a model is by it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tunesmith.arrays import FloatArray
from tunesmith.evaluation.intervals import Statistic
from tunesmith.prediction.outputs import Outputs, Truth
from tunesmith.prediction.reading import surprises

PRIMARY = ("bits_per_byte", "masked_loss")
DECIDING = ("bits_per_byte", "perplexity", "masked_loss", "masked_accuracy")
VALIDATION = None


def statistics(outputs: Outputs, right: Truth) -> dict[str, Callable[[], Statistic]]:
    """Name -> how to compute it. Bits per byte and perplexity are of models that predict every token of a text.

    A masked model predicts some of them, each with all others in sight: a likelihood of the text does not follow from
    that, so its loss has names of its own.
    """
    nats, tokens, correct, sizes = outputs.nats, outputs.tokens, outputs.correct, outputs.reference_bytes
    makers: dict[str, Callable[[], Statistic]] = {}
    if nats is None or tokens is None:
        return makers
    if sizes is not None:
        makers["bits_per_byte"] = lambda: ratio(nats / np.log(2.0), np.asarray(sizes, dtype=np.float64))
        makers["perplexity"] = lambda: ratio(nats, tokens, np.exp)
    else:
        makers["masked_loss"] = lambda: ratio(nats, tokens)
    if correct is not None:
        makers["masked_accuracy"] = lambda: ratio(correct, tokens, higher_is_better=True)
    return makers


def ratio(
    top_N: FloatArray,
    bottom_N: FloatArray,
    then: Callable[[FloatArray], FloatArray] = lambda values: values,
    *,
    higher_is_better: bool = False,
) -> Statistic:
    """A sum over documents divided by another: long documents count for more, as they should."""
    sign = 1.0 if higher_is_better else -1.0
    return Statistic(
        np.stack([top_N, bottom_N], axis=1),
        lambda sums: then(sums[:, 0] / np.maximum(sums[:, 1], 1.0)),
        row_scores=sign * top_N / np.maximum(bottom_N, 1.0),
    )


def texts(outputs: Outputs, right: Truth) -> list[str]:
    """The surprise at each document, in words."""
    return surprises(outputs)
