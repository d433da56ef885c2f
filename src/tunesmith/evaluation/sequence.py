"""Task after task: what a model still knows of each after every stage.

R[j][i] is the metric of task i on its test rows after stage j (Lopez-Paz & Ranzato 2017, "Gradient Episodic Memory",
arXiv 1706.08840, section 2). Each task keeps the head that its own stage left; below it works the model of stage j.
What was measured is kept in the run's folder, so that a killed evaluation goes on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith import disk, display, runs
from tunesmith.arrays import FloatArray
from tunesmith.data.prepare import PreparedData
from tunesmith.data.rows import Row
from tunesmith.evaluation import charts
from tunesmith.evaluation.held_out import held_out, some_rows
from tunesmith.evaluation.intervals import Interval, of_resamples, resampled
from tunesmith.evaluation.metrics import METRICS, available, primary, statistics, truth
from tunesmith.evaluation.report import Section
from tunesmith.events import Listener, Notice, Phase, nobody
from tunesmith.models.combining import COMBINATIONS, combine
from tunesmith.models.merging import merge
from tunesmith.models.model import Model, decoder_of
from tunesmith.models.precision import default_device
from tunesmith.models.saving import load_artefact
from tunesmith.prediction import answering
from tunesmith.prediction.setting import Setting
from tunesmith.recipe import Evaluate, Recipe
from tunesmith.tasks import TASKS

ROWS = 500
"""Test rows of each task at most, unless `evaluate.limit` says otherwise: n stages ask n (n + 1) / 2 times."""


@dataclass(frozen=True)
class Measured:
    """A value, and the same on each resample of the test rows.

    Attributes:
        value: On the rows as they are.
        resamples: Drawn by the same seeds for every run, so differences of runs on the same rows are paired.
        metric: Of a cell of the matrix.
        rows: Digest of the rows, in a cell.
        trials: Of a share in a cell: the number of rows (:class:`tunesmith.evaluation.intervals.Statistic`).
    """

    value: float
    resamples: FloatArray
    metric: str = ""
    rows: str = ""
    trials: int | None = None

    def interval(self, settings: Evaluate) -> Interval:
        """The value with its interval."""
        return of_resamples(self.value, self.resamples, settings.confidence, self.trials)


@dataclass(frozen=True)
class SequenceReport:
    """What a run of several tasks knows after each stage.

    Attributes:
        stages: Names of the N stages.
        metrics: Metric of each stage's task.
        cells: (j, i) -> what task i gives after stage j, i <= j.
        settings: For the intervals.
    """

    stages: list[str]
    metrics: list[str]
    cells: dict[tuple[int, int], Measured]
    settings: Evaluate

    def interval(self, stage: int, task: int) -> Interval:
        """R[stage][task] with its interval."""
        return self.cells[stage, task].interval(self.settings)

    def averages(self) -> dict[str, Interval]:
        """:meth:`measured_averages` with their intervals."""
        return {name: one.interval(self.settings) for name, one in self.measured_averages().items()}

    def measured_averages(self) -> dict[str, Measured]:
        """Over tasks whose metric is a share, better when higher (an average with bits per byte would mean nothing).

        ``average``: the mean of the last line. ``backward_transfer``: what later stages added to each earlier task,
        R[N][i] - R[i][i] (Lopez-Paz & Ranzato 2017, equations 2 and 3). ``forgetting``: how far each earlier task fell
        from the best it ever was, max R[j][i] - R[N][i] (Chaudhry et al. 2018, arXiv 1801.10112, section 3).
        """
        last = len(self.stages) - 1
        shares = [task for task in range(len(self.stages)) if METRICS[self.metrics[task]].higher_is_better]
        earlier = [task for task in shares if task < last]
        found = {}
        if shares:
            average = self._mean(lambda cell: [cell(last, task) for task in shares])
            counts = [count for task in shares if (count := self.cells[last, task].trials) is not None]
            # Where all is right (or wrong) everywhere, the rows of the smallest task say how sure that is at least.
            found["average"] = replace(average, trials=min(counts) if len(counts) == len(shares) else None)
        if earlier:
            found["backward_transfer"] = self._mean(
                lambda cell: [cell(last, task) - cell(task, task) for task in earlier]
            )
            best = {task: max(range(task, last), key=lambda stage: self.cells[stage, task].value) for task in earlier}
            found["forgetting"] = self._mean(
                lambda cell: [cell(best[task], task) - cell(last, task) for task in earlier]
            )
        return found

    def _mean(self, terms: Any) -> Measured:
        value = float(np.mean(terms(lambda stage, task: self.cells[stage, task].value)))
        return Measured(value, np.mean(terms(lambda stage, task: self.cells[stage, task].resamples), axis=0))

    def as_dict(self) -> dict[str, Any]:
        """For JSON: ``matrix[j][i]`` is ``None`` for tasks that came later."""
        size = range(len(self.stages))
        return {
            "stages": self.stages,
            "metrics": self.metrics,
            "matrix": [[self.interval(j, i).as_dict() if i <= j else None for i in size] for j in size],
            **{name: interval.as_dict() for name, interval in self.averages().items()},
        }


def measure_sequence(
    folder: Path, recipe: Recipe, stages: Sequence[PreparedData], tell: Listener
) -> SequenceReport | None:
    """Measure every stage's model on the test rows of its own and each earlier task.

    Args:
        folder: The run's; each stage left its model there.
        recipe: Resolved.
        stages: Data of each stage.
        tell: Told what is measured.

    Returns:
        ``None`` if a stage has no rows to measure on.
    """
    names = [stage.name for stage in recipe.stages]
    most = recipe.evaluate.limit or ROWS
    # The last stage's rows are the run's own, of which it was told already.
    told = [*[tell] * (len(stages) - 1), nobody]
    rows = [  # in an order that does not depend on the file's: resamples of runs are paired by it
        some_rows(sorted(held_out(data, listener, stage=name), key=lambda row: row.key), most)
        for name, data, listener in zip(names, stages, told, strict=True)
    ]
    if not all(rows):
        missing = ", ".join(name for name, found in zip(names, rows, strict=True) if not found)
        tell(Notice(level="warning", message=f"forgetting is not measured: no test rows for {missing}"))
        return None
    for after, task in _pairs(len(names)):
        kept = folder / "sequence" / f"{after + 1}-{task + 1}.json"
        if not kept.is_file():
            tell(Phase(step="evaluate", message=f"{names[task]} after stage {names[after]}"))
            model = model_after(folder, recipe, after, task)
            disk.write_json(kept, _measure(model, recipe, task, rows[task], stages[task], tell))
    return kept_sequence(folder, recipe)


def kept_sequence(folder: Path, recipe: Recipe) -> SequenceReport | None:
    """What :func:`measure_sequence` has kept in a run's folder; ``None`` if that is not all."""
    cells: dict[tuple[int, int], Measured] = {}
    for after, task in _pairs(len(recipe.stages)):
        kept = folder / "sequence" / f"{after + 1}-{task + 1}.json"
        if not kept.is_file():
            return None
        found = json.loads(kept.read_text(encoding="utf-8"))
        resamples = np.array(found["resamples"])
        trials = found.get("trials")  # not in what earlier versions kept
        cells[after, task] = Measured(found["value"], resamples, found["metric"], found.get("rows", ""), trials)
    names = [stage.name for stage in recipe.stages]
    return SequenceReport(names, [cells[i, i].metric for i in range(len(names))], cells, recipe.evaluate)


def compare_sequences(found: Sequence[SequenceReport]) -> list[dict[str, Any]]:
    """Averages of runs that learned the same tasks in turn, and how they differ from those of the first.

    Returns:
        For each of :meth:`SequenceReport.averages` that all have: ``name``, ``values`` (an interval a run) and
        ``differences`` (paired, ``None`` for the first). Empty if they were not measured alike: on the same rows, by
        the same metrics, with the same resamples.
    """
    first, *others = found
    measured = [_measured_by(one) for one in found]
    if not all(rows for rows, *_ in measured[0]) or any(how != measured[0] for how in measured):
        return []
    averages = [one.measured_averages() for one in found]
    shown = []
    for name in averages[0]:
        begun = averages[0][name]
        differences: list[dict[str, float] | None] = [None]
        for one, other in zip(averages[1:], others, strict=True):
            change = Measured(one[name].value - begun.value, one[name].resamples - begun.resamples)
            differences.append(change.interval(other.settings).as_dict())
        values = [one[name].interval(first.settings).as_dict() for one in averages]
        shown.append({"name": name, "values": values, "differences": differences})
    return shown


def _measured_by(one: SequenceReport) -> list[tuple[str, str, int, int]]:
    """Of each task: rows, metric, resamples and their seed."""
    cells = (one.cells[task, task] for task in range(len(one.stages)))
    return [(cell.rows, cell.metric, len(cell.resamples), one.settings.seed) for cell in cells]


def models_in_turn(folder: Path, recipe: Recipe) -> Iterator[tuple[str, Model]]:
    """Name of each stage and the model that it left, one at a time."""
    for number, stage in enumerate(recipe.stages):
        yield stage.name, model_after(folder, recipe, number, number)


def _pairs(count: int) -> Iterator[tuple[int, int]]:
    return ((after, task) for after in range(count) for task in range(after + 1))


def _measure(
    model: Model, recipe: Recipe, number: int, rows: Sequence[Row], data: PreparedData, tell: Listener
) -> dict[str, Any]:
    view, settings = recipe.of_stage(recipe.stages[number]), recipe.evaluate
    task = TASKS[view.task]
    # As the run measures its own task, but a metric that the recipe asks for is the last task's.
    chosen = settings if number == len(recipe.stages) - 1 else settings.model_copy(update={"metric": None})
    right = truth(task, [task.reference(row) for row in rows], data.labels, chosen)
    setting = Setting(task, data.labels, recipe.system_prompt, settings.generation, settings.seed, tell)
    outputs = answering.answer(model, rows, setting)
    metric = next(name for name in primary(right) if name in available(outputs, right))
    statistic = statistics(outputs, right, only=metric)[metric]
    # One seed a task: its rows are drawn alike after every stage, so differences are paired, and tasks are independent.
    (values,) = resampled([statistic], resamples=settings.resamples, seed=settings.seed + number)
    digest = hashlib.sha256("\n".join(row.key for row in rows).encode()).hexdigest()[:16]
    found = {"metric": metric, "value": statistic.value, "resamples": values.tolist(), "rows": digest}
    return found | {"trials": statistic.trials}


def stage_model(folder: Path, recipe: Recipe, number: int) -> Path:
    """Where a stage (from 0) left its model."""
    chain, last = recipe.sequence.adapters == "chain", number == len(recipe.stages) - 1
    return folder / "model" if chain and last else runs.stage_result(folder, recipe, number)


def model_after(folder: Path, recipe: Recipe, after: int, task: int) -> Model:
    """The model of one stage with the head of an earlier task.

    With an adapter for each task this is the task's own, or those of all stages so far put together.
    """
    how = recipe.sequence.adapters
    if how != "chain":
        own, _ = load_artefact(stage_model(folder, recipe, task), device=default_device())
        if how in COMBINATIONS and after:
            parts = [stage_model(folder, recipe, number) for number in range(after + 1)]
            combine(own, parts, how, recipe.training.seed)
        return own
    later, _ = load_artefact(stage_model(folder, recipe, after), device=default_device())
    if after == task:
        return later
    model, _ = load_artefact(stage_model(folder, recipe, task), device=default_device())
    if model.form == later.form == "generate":  # whoever writes has no head of a task
        return later
    graft(model, later)
    return model


def graft(model: Model, other: Model) -> None:
    """Give ``model`` the body of ``other``: all weights below the head. It must be merged itself.

    A pooling layer that only stock classifiers have belongs to the head's side and stays.
    """
    if other.has_adapters:
        merge(other)
    body, given = decoder_of(model.transformer()), decoder_of(other.transformer())
    theirs = {name: tensor for name, tensor in given.state_dict().items() if name in body.state_dict()}
    left = sorted(set(body.state_dict()) - set(theirs))
    assert all(name.startswith("pooler.") for name in left), left
    body.load_state_dict(theirs, strict=False)


def section(found: SequenceReport) -> Section:
    """For the report: the matrix, as a heat map too, and its averages."""
    size = range(len(found.stages))
    rows = [
        [f"after {name}", *(str(found.interval(j, i)) if i <= j else "" for i in size)]
        for j, name in enumerate(found.stages)
    ]
    totals = [(display.AVERAGES[name], one.format(signed=name != "average")) for name, one in found.averages().items()]
    columns = [
        "",
        *(f"{name}: {METRICS[metric].title}" for name, metric in zip(found.stages, found.metrics, strict=True)),
    ]
    lead = (
        "Each line is the model after a stage, each column a task, measured on that task's own test rows with the head "
        "that its stage left. Down a column one sees what was forgotten."
    )
    values = [[found.cells[j, i].value if i <= j else None for i in size] for j in size]
    chart = charts.sequence_chart(values, found.stages)
    title = "What it still knows of each task"
    return Section("sequence", title, lead, columns, rows, found.as_dict(), chart, totals=totals)
