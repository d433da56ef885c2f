"""Text of another kind than what was learned: what tuning on a corpus took away."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tunesmith.data.prepare import prepare
from tunesmith.data.rows import Row
from tunesmith.errors import TunesmithError
from tunesmith.evaluation.before_after import LANGUAGE, BeforeAfter, before_and_after
from tunesmith.evaluation.metrics import METRICS
from tunesmith.evaluation.report import Section
from tunesmith.events import Listener, Notice, Phase
from tunesmith.models.model import Model
from tunesmith.recipe import Data, Recipe

DOCUMENTS = 50
"""Documents of general text that are measured on, and how many characters of each: enough to see a loss of a few
hundredths of a bit, in a minute on two cores for a model of 135 M parameters."""
CHARACTERS = 1500


def measure_general(recipe: Recipe, base: Path, tuned: Model, tell: Listener) -> Section | None:
    """Measure general text with the tuned model and with the base; ``None`` if none is wanted, or it is not there."""
    source = recipe.evaluate.general
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
    return general_section(source, before_and_after(rows, recipe, base, tuned, tell))


def general_section(source: str, measured: BeforeAfter) -> Section:
    """For the report."""
    worse = measured.change is not None and measured.change.low > 0
    found = "It lost some of it." if worse else "No loss is shown."
    lead = (
        f"{METRICS[measured.metric].title} on {measured.documents} documents of {source}, which is no part of what was "
        f"learned: lower is better. "
        f"{found if measured.change else 'The base model cannot be measured before tuning.'}"
    )
    columns = ["Text", "Before tuning", "After tuning", "Change"]
    facts = {"source": source} | measured.as_dict()
    title = "What it still knows of other text"
    return Section("general_text", title, lead, columns, [[source, *measured.cells()]], facts)


def general_rows(source: str) -> Sequence[Row]:
    """The beginnings of some documents, chosen by their content: the same for every run.

    Raises:
        TunesmithError: There is no such text.
    """
    data = Data(train=[source], validation=0.0, test=0.0, max_rows=DOCUMENTS, drop_bad=True)
    found = prepare(Recipe(task=LANGUAGE, model="", data=data)).train
    return [Row({"text": str(row.fields["text"])[:CHARACTERS]}, row.origin) for row in found]
