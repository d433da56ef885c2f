"""Judges of pairs of answers: the systems they have to beat, and how they do by the difference in length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tunesmith.arrays import FloatArray
from tunesmith.data.rows import Row
from tunesmith.evaluation.intervals import Interval, bootstrap, mean
from tunesmith.models.heads import pooling_of
from tunesmith.models.model import Model
from tunesmith.prediction.outputs import Outputs
from tunesmith.prediction.preferences import by_features, judge, longer
from tunesmith.prediction.setting import Setting
from tunesmith.recipe import Evaluate
from tunesmith.tasks.preference import conversations, text_of

ALIKE = 0.2
"""Two answers are about as long if they differ by at most this share of the longer one's characters."""

Found = tuple[str, str, str, Outputs, int]
"""Name, title and description of a system, its outputs, and its parameters."""


@dataclass(frozen=True)
class LengthBand:
    """Pairs whose better answer is shorter, about as long, or longer than the worse one: how many are told apart."""

    what: str
    pairs: int
    accuracy: Interval

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {"what": self.what, "pairs": self.pairs, "accuracy": self.accuracy.as_dict()}


def by_length(rows: Sequence[Row], outputs: Outputs, settings: Evaluate) -> list[LengthBand]:
    """Pair accuracy by the difference in length: a judge that goes by length is right in one band and wrong in another.

    Bands without pairs are left out.
    """
    assert outputs.gaps is not None
    sizes = np.asarray([[len(text_of(turns)) for turns in conversations(row, None)] for row in rows])
    share = (sizes[:, 0] - sizes[:, 1]) / np.maximum(1, sizes.max(axis=1))
    hits = (outputs.gaps > 0) + 0.5 * (outputs.gaps == 0)
    bands = {
        "the better one is shorter": share < -ALIKE,
        "about as long": np.abs(share) <= ALIKE,
        "the better one is longer": share > ALIKE,
    }
    return [
        LengthBand(what, int(inside.sum()), _accuracy(hits[inside], settings))
        for what, inside in bands.items()
        if inside.any()
    ]


def _accuracy(hits: FloatArray, settings: Evaluate) -> Interval:
    return bootstrap(
        mean(hits, proportion=not bool((hits == 0.5).any())),
        resamples=settings.resamples,
        confidence=settings.confidence,
        seed=settings.seed,
    )


def baselines(
    kinds: set[str], model: Model | None, train: Sequence[Row], rows: Sequence[Row], setting: Setting
) -> Iterator[Found]:
    """The systems that a tuned judge has to beat.

    Args:
        kinds: Of the recipe's baselines.
        model: The untuned base model, if it can embed or write.
        train: To fit on.
        rows: The test rows.
        setting: What all systems share.
    """
    if "majority" in kinds:
        yield "longer", "The longer answer", "always prefers the longer answer", longer(rows), 0
    if model is None:
        return
    size = model.total_parameters
    if "base" in kinds and model.form == "generate":
        what = "the untuned model prefers the answer whose tokens it finds likelier"
        yield "base", f"{model.name}, untuned", what, judge(model, rows, setting), size
    if "features" in kinds and model.form == "classify" and pooling_of(model.folder):
        what = "logistic regression on the untuned model's vectors of both answers"
        yield "features", f"{model.name}, frozen features", what, by_features(model, train, rows, setting), size
