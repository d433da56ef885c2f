"""Written answers: how near they are to the reference, and how likely the model found it."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from tunesmith.arrays import FloatArray
from tunesmith.evaluation import text_scores
from tunesmith.evaluation.intervals import Statistic, mean
from tunesmith.prediction.outputs import Outputs, Truth

PRIMARY = ("judge", "reward", "rougeL", "bits_per_byte")
"""What was learned from a reward is measured by it, or better by a judge that was not learned from."""
DECIDING = (*PRIMARY, "rouge1", "rouge2", "rougeLsum", "chrf", "exact_match", "repetition")
VALIDATION = None


def statistics(outputs: Outputs, right: Truth) -> dict[str, Callable[[], Statistic]]:
    """Name -> how to compute it, for every metric that the outputs allow.

    A reference is a text, or a list of several texts that are all right.
    """
    references = [[one] if isinstance(one, str) else list(one) for one in right.references]
    makers: dict[str, Callable[[], Statistic]] = {}
    texts, nats, sizes = outputs.texts, outputs.nats, outputs.reference_bytes
    for name, worth in (("judge", outputs.judged), ("reward", outputs.rewards)):
        if worth is not None:
            makers[name] = functools.partial(mean, worth)
    if texts is not None:
        makers["exact_match"] = lambda: text_scores.exact_match(texts, references)
        lines = any("\n" in one.strip() for several in references for one in several)
        for name in ("rouge1", "rouge2", "rougeL", *(["rougeLsum"] if lines else [])):
            makers[name] = functools.partial(text_scores.rouge, texts, references, name)
        makers["chrf"] = lambda: text_scores.chrf(texts, references)
        makers["length_ratio"] = lambda: text_scores.length_ratio(texts, references)
        makers["repetition"] = lambda: text_scores.repetition(texts)
    if nats is not None and sizes is not None:
        makers["bits_per_byte"] = lambda: _bits_per_byte(nats, np.asarray(sizes, dtype=np.float64))
    return makers


def _bits_per_byte(nats: FloatArray, sizes: FloatArray) -> Statistic:
    """Total surprise in bits over total bytes: comparable between tokenizers, which perplexity per token is not."""
    return Statistic(
        np.stack([nats, sizes], axis=1),
        lambda sums: sums[:, 0] / np.log(2.0) / np.maximum(sums[:, 1], 1.0),
        row_scores=-nats,
    )


def texts(outputs: Outputs, right: Truth) -> list[str]:
    """The answers themselves."""
    return outputs.texts if outputs.texts is not None else ["(no text was generated)"] * outputs.rows
