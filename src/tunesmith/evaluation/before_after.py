"""A model's surprise at documents before and after a stage of tuning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tunesmith.data.rows import Row
from tunesmith.evaluation.intervals import Interval
from tunesmith.evaluation.metrics import available, change, measure, primary
from tunesmith.events import Listener
from tunesmith.models.load import load_model
from tunesmith.models.model import Model
from tunesmith.prediction.likelihood import score_documents
from tunesmith.prediction.outputs import Outputs, Truth
from tunesmith.recipe import Recipe
from tunesmith.tasks import TASKS

LANGUAGE = "language-modeling"


@dataclass(frozen=True)
class BeforeAfter:
    """Documents measured with two models; lower is better.

    Attributes:
        documents: How many.
        metric: ``bits_per_byte`` or ``masked_loss``.
        after: With the tuned model.
        before: With the model that tuning began from; ``None`` if that has no head that predicts words.
        change: After minus before, paired by document.
    """

    documents: int
    metric: str
    after: Interval
    before: Interval | None = None
    change: Interval | None = None

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        values = {"before": self.before, "after": self.after, "change": self.change}
        named = {name: interval.as_dict() for name, interval in values.items() if interval is not None}
        return {"documents": self.documents, "metric": self.metric, **named}

    def cells(self) -> list[str]:
        """Before, after and change, for a table."""
        return [
            "–" if self.before is None else self.before.format(),
            self.after.format(),
            "–" if self.change is None else self.change.format(signed=True),
        ]


def before_and_after(rows: Sequence[Row], recipe: Recipe, base: Path, tuned: Model, tell: Listener) -> BeforeAfter:
    """Measure documents with a tuned model and, in the same form, with the model that it was made from.

    Args:
        rows: With the fields of ``language-modeling``.
        recipe: Names the base model, and says how intervals are made.
        base: Folder of the model before tuning.
        tuned: The model after it.
        tell: Told about progress.
    """
    task, settings = TASKS[LANGUAGE], recipe.evaluate
    right = Truth("likelihood", [task.reference(row) for row in rows])
    ours = score_documents(tuned, rows, task, tell)
    metric = next(name for name in primary(right) if name in available(ours, right))
    after = measure(ours, right, settings)[metric]
    theirs = score_untuned(rows, recipe, base, tuned, tell)
    if theirs is None:
        return BeforeAfter(len(rows), metric, after)
    before = measure(theirs, right, settings)[metric]
    return BeforeAfter(len(rows), metric, after, before, change(ours, theirs, right, settings))


def score_untuned(rows: Sequence[Row], recipe: Recipe, base: Path, tuned: Model, tell: Listener) -> Outputs | None:
    """What the model that tuning began from makes of documents; ``None`` if its head would be random numbers."""
    untuned = load_model(
        base, name=recipe.model, form=tuned.form, dtype=tuned.dtype, device=tuned.device, max_length=tuned.max_length
    )
    if tuned.form == "mask" and untuned.head_names:
        return None
    return score_documents(untuned, rows, TASKS[LANGUAGE], tell)
