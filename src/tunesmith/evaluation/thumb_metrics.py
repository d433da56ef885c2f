"""Single answers that were liked or not: whether a model finds the liked ones likelier."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tunesmith.arrays import FloatArray
from tunesmith.evaluation.intervals import Statistic
from tunesmith.prediction.outputs import Outputs, Truth

PRIMARY = ("liking",)
DECIDING = ("liking",)
VALIDATION = "agreement"


def statistics(outputs: Outputs, right: Truth) -> dict[str, Callable[[], Statistic]]:
    """Name -> how to compute it; ``right.references`` says of each row whether the answer was liked."""
    scores = outputs.scores
    if scores is None:
        return {}
    return {"liking": lambda: _difference(scores, np.asarray(right.references, dtype=bool))}


def _difference(scores: FloatArray, liked: np.ndarray) -> Statistic:
    """Mean score of the liked answers minus that of the others; 0, which shows nothing, where one kind is missing."""
    sides = np.stack([liked, ~liked], axis=1).astype(np.float64)

    def combine(sums: FloatArray) -> FloatArray:
        means = sums[:, :2] / np.maximum(sums[:, 2:], 1.0)
        return np.where(sums[:, 2:].all(axis=1), means[:, 0] - means[:, 1], 0.0)

    contributions = np.concatenate([sides * scores[:, None], sides], axis=1)
    return Statistic(contributions, combine, row_scores=np.where(liked, scores, -scores))


def texts(outputs: Outputs, right: Truth) -> list[str]:
    """How likely the model finds each answer."""
    scores = outputs.scores if outputs.scores is not None else np.zeros(outputs.rows)
    return [f"{score:.3f} nats a token" for score in scores]
