"""Text of another kind than what was learned: what tuning on a corpus took away."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tunesmith import disk
from tunesmith.data.prepare import prepare
from tunesmith.data.rows import Row
from tunesmith.errors import TunesmithError
from tunesmith.evaluation.before_after import LANGUAGE, BeforeAfter, before_and_after, score_untuned
from tunesmith.evaluation.intervals import Interval
from tunesmith.evaluation.metrics import METRICS, available, change, measure, primary
from tunesmith.evaluation.report import Section
from tunesmith.events import Listener, Notice, Phase
from tunesmith.models.model import Model
from tunesmith.prediction.likelihood import score_documents
from tunesmith.prediction.outputs import Truth
from tunesmith.recipe import Data, Recipe
from tunesmith.tasks import TASKS

DOCUMENTS = 50
"""Documents of general text that are measured on, and how many characters of each: enough to see a loss of a few
hundredths of a bit, in a minute on two cores for a model of 135 M parameters."""
CHARACTERS = 1500
READ = 1000
"""Documents of the source that are looked at: a corpus of the web need not be read for the few that are used."""


def measure_general(recipe: Recipe, base: Path, tuned: Model, tell: Listener) -> Section | None:
    """Measure general text with the tuned model and with the base; ``None`` if none is wanted, or it is not there."""
    rows = _wanted_rows(recipe, tell)
    if not rows:
        return None
    return general_section(str(recipe.evaluate.general), before_and_after(rows, recipe, base, tuned, tell))


def measure_general_after(
    models: Iterable[tuple[str, Model]], recipe: Recipe, base: Path, kept: Path, tell: Listener
) -> Section | None:
    """The same after each of several stages, all against the base; models without a head for words are left out.

    Args:
        models: Name of a stage and its model; one is held at a time.
        recipe: Resolved.
        base: Folder of the model that the first stage began from.
        kept: File for what was measured, so that a killed evaluation goes on.
        tell: Told what is left out.
    """
    if not kept.is_file():
        rows = _wanted_rows(recipe, tell)
        if not rows:
            return None
        disk.write_json(kept, _facts_after(models, rows, recipe, base, tell))
    facts = json.loads(kept.read_text(encoding="utf-8"))
    return _section_after(facts) if facts["stages"] else None


def _facts_after(
    models: Iterable[tuple[str, Model]], rows: Sequence[Row], recipe: Recipe, base: Path, tell: Listener
) -> dict[str, Any]:
    task, settings = TASKS[LANGUAGE], recipe.evaluate
    right = Truth("likelihood", [task.reference(row) for row in rows])
    facts: dict[str, Any] = {"source": settings.general, "documents": len(rows), "stages": []}
    before, silent = None, []
    for name, model in models:
        if model.form not in ("generate", "mask"):
            silent.append(name)
            continue
        ours = score_documents(model, rows, task, tell)
        metric = facts["metric"] = next(one for one in primary(right) if one in available(ours, right))
        found = {"stage": name, "after": measure(ours, right, settings)[metric].as_dict()}
        before = before or score_untuned(rows, recipe, base, model, tell)
        if before is not None:
            facts["before"] = measure(before, right, settings)[metric].as_dict()
            found["change"] = change(ours, before, right, settings).as_dict()
        facts["stages"].append(found)
    if silent:
        message = f"general text is not measured after {', '.join(silent)}: a model with a head for labels has no words"
        tell(Notice(level="info", message=message, where="evaluate.general"))
    return facts


def _section_after(facts: dict[str, Any]) -> Section:
    name = METRICS[facts["metric"]].title
    lead = (
        f"{name} on {facts['documents']} documents of {facts['source']}, which is no part of what was learned: lower "
        "is better. Changes are from the base model, paired by document."
    )
    lines = [["the base model", Interval(**facts["before"]).format(), ""]] if "before" in facts else []
    for one in facts["stages"]:
        changed = Interval(**one["change"]).format(signed=True) if "change" in one else "–"
        lines.append([f"after {one['stage']}", Interval(**one["after"]).format(), changed])
    return Section("general_text", "What it still knows of other text", lead, ["", name, "Change"], lines, facts)


def _wanted_rows(recipe: Recipe, tell: Listener) -> Sequence[Row]:
    """The general text of a recipe; none if it wants none, learned from it, or cannot have it."""
    source = recipe.evaluate.general
    if source is None:
        return []
    if any(source in data.train for data in (recipe.data, *(stage.data for stage in recipe.stages)) if data):
        message = f"{source} was trained on, so it is no general text"
        tell(Notice(level="info", message=message, where="evaluate.general"))
        return []
    try:
        rows = general_rows(source)
    except TunesmithError as error:
        tell(Notice(level="warning", message=f"general text is not measured: {error.what}", where="evaluate.general"))
        return []
    message = f"general text: {len(rows)} documents of {source}, chosen among its first {READ:,}"
    tell(Phase(step="evaluate", message=message))
    return rows


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
    """The beginnings of some of a source's first documents, chosen by their content: the same for every run.

    Raises:
        TunesmithError: There is no such text.
    """
    data = Data(train=[source], validation=0.0, test=0.0, read_rows=READ, max_rows=DOCUMENTS, drop_bad=True)
    found = prepare(Recipe(task=LANGUAGE, model="", data=data)).train
    return [Row({"text": str(row.fields["text"])[:CHARACTERS]}, row.origin) for row in found]
