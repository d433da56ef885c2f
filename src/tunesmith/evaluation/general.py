"""Text of another kind than what was learned: what tuning on a corpus took away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tunesmith.data.prepare import prepare
from tunesmith.data.rows import Row
from tunesmith.errors import TunesmithError
from tunesmith.evaluation.intervals import Interval
from tunesmith.evaluation.likelihood import score_documents
from tunesmith.evaluation.metrics import METRICS, available, change, measure, primary
from tunesmith.evaluation.outputs import Truth
from tunesmith.evaluation.report import Section
from tunesmith.events import Listener, Notice, Phase
from tunesmith.models.load import load_model
from tunesmith.models.model import Model
from tunesmith.recipe import Data, Evaluate, Recipe
from tunesmith.tasks import TASKS

DOCUMENTS = 50
"""Documents of general text that are measured on, and how many characters of each: enough to see a loss of a few
hundredths of a bit, in a minute on two cores for a model of 135 M parameters."""
CHARACTERS = 1500

LANGUAGE = "language-modeling"


@dataclass(frozen=True)
class GeneralText:
    """Surprise at general text before and after tuning; only after it where the base cannot be measured.

    ``change`` is after minus before, paired by document.
    """

    source: str
    documents: int
    metric: str
    after: Interval
    before: Interval | None = None
    change: Interval | None = None

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        values = {"before": self.before, "after": self.after, "change": self.change}
        named = {name: interval.as_dict() for name, interval in values.items() if interval is not None}
        return {"source": self.source, "documents": self.documents, "metric": self.metric, **named}

    def section(self) -> Section:
        """For the report."""
        metric = METRICS[self.metric]
        cells = [self.before, self.after, self.change]
        row = ["–" if cell is None else cell.format(signed=cell is self.change) for cell in cells]
        worse = self.change is not None and self.change.low > 0
        found = "It lost some of it." if worse else "No loss is shown."
        lead = (
            f"{metric.title} on {self.documents} documents of {self.source}, which is no part of what was learned: "
            f"lower is better. {found if self.change else 'The base model cannot be measured before tuning.'}"
        )
        columns = ["Text", "Before tuning", "After tuning", "Change"]
        return Section(
            "general_text", "What it still knows of other text", lead, columns, [[self.source, *row]], self.as_dict()
        )


def measure_general(recipe: Recipe, base: Path, tuned: Model, settings: Evaluate, tell: Listener) -> GeneralText | None:
    """Measure general text with the tuned model and with the base; ``None`` if none is wanted, or it is not there."""
    source = settings.general
    if source is None:
        return None
    if source in recipe.data.train:
        tell(
            Notice(level="info", message=f"{source} was trained on, so it is no general text", where="evaluate.general")
        )
        return None
    try:
        rows = general_rows(source)
    except TunesmithError as error:
        tell(Notice(level="warning", message=f"general text is not measured: {error.what}", where="evaluate.general"))
        return None
    tell(Phase(step="evaluate", message=f"general text: {len(rows)} documents of {source}"))
    task, right = TASKS[LANGUAGE], Truth("likelihood", [row.fields["text"] for row in rows])
    ours = score_documents(tuned, rows, task, tell)
    metric = next(name for name in primary(right) if name in available(ours, right))
    after = measure(ours, right, settings)[metric]
    untuned = load_model(
        base, name=recipe.model, form=tuned.form, dtype=tuned.dtype, device=tuned.device, max_length=tuned.max_length
    )
    if tuned.form == "mask" and untuned.head_names:
        return GeneralText(source, len(rows), metric, after)
    theirs = score_documents(untuned, rows, task, tell)
    return GeneralText(
        source,
        len(rows),
        metric,
        after,
        measure(theirs, right, settings)[metric],
        change(ours, theirs, right, settings),
    )


def general_rows(source: str) -> Sequence[Row]:
    """The beginnings of some documents, chosen by their content: the same for every run.

    Raises:
        TunesmithError: There is no such text.
    """
    data = Data(train=[source], validation=0.0, test=0.0, max_rows=DOCUMENTS, drop_bad=True)
    found = prepare(Recipe(task=LANGUAGE, model="", data=data)).train
    return [Row({"text": str(row.fields["text"])[:CHARACTERS]}, row.origin) for row in found]
