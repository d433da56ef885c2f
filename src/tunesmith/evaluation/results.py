"""What the evaluation of a run leaves: the answers row by row, the report, and the summary that scripts read."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith import environment, lineage, runs
from tunesmith.data.prepare import PreparedData
from tunesmith.data.rows import Row
from tunesmith.data.shown import ShownExample
from tunesmith.evaluation import report
from tunesmith.evaluation.comparison import Comparison, System
from tunesmith.evaluation.intervals import Interval
from tunesmith.evaluation.metrics import kind
from tunesmith.evaluation.stored import stored
from tunesmith.events import Step, Validated
from tunesmith.prediction.outputs import Truth
from tunesmith.recipe import Recipe
from tunesmith.tasks import TASKS

if TYPE_CHECKING:
    from tunesmith.training.outcome import Tuning


@dataclass(frozen=True)
class Results:
    """What was measured of a run.

    Attributes:
        rows: The rows that all systems answered.
        right: Their right answers.
        tuned: The tuned model.
        others: All systems that it stands beside.
        comparisons: With those of them that could be had instead.
        verdict: In one sentence.
        seconds: Part -> wall-clock time, as :func:`time_taken` gives it.
        job_seconds: What the provider's job took by the provider's clock, if one tuned the model.
    """

    rows: Sequence[Row]
    right: Truth
    tuned: System
    others: Sequence[System]
    comparisons: Sequence[Comparison]
    verdict: str
    seconds: dict[str, float]
    job_seconds: float | None = None


def write_results(
    folder: Path,
    recipe: Recipe,
    data: PreparedData,
    trained: Tuning,
    results: Results,
    sections: Sequence[report.Section],
    learned_from: Sequence[ShownExample] = (),
) -> dict[str, Any]:
    """Write ``predictions.jsonl``, ``report.json`` and ``report.html``.

    Args:
        folder: The run's.
        recipe: Resolved.
        data: What the last stage learned from.
        trained: What that took.
        results: What was measured.
        sections: What the report of this run has besides; their data become part of the summary.
        learned_from: Some training rows as the model saw them.

    Returns:
        The summary. Whoever has no more to write puts it into the folder: it says that the run is finished.
    """
    runs.write_answers(folder, stored(TASKS[recipe.task], results.rows, results.tuned.outputs, results.right))
    report.write_report(folder, _content(folder, recipe, data, trained.facts, results, sections, learned_from))
    baselines = {other.name: other.metrics for other in results.others}
    summary = summarise(
        folder, recipe, trained, results.verdict, sum(results.seconds.values()), results.tuned.metrics, baselines
    )
    return summary | {section.name: section.data for section in sections}


def time_taken(folder: Path, training: float | None, evaluation: float) -> dict[str, float]:
    """Part -> wall-clock time; together they are what all processes that worked on the run took so far.

    It is for the process that is at work on the run: one that measures it again has :func:`time_taken_before`.

    Args:
        folder: The run's.
        training: Seconds of the updates and fits; ``None`` if a provider did them.
        evaluation: Seconds of this evaluation.
    """
    rest = runs.worked_seconds(folder, until=time.time()) - (training or 0.0) - evaluation
    tuned = {} if training is None else {"tune": training}
    return {"rest": max(0.0, rest), **tuned, "evaluate": evaluation}


def time_taken_before(folder: Path, summary: Mapping[str, Any]) -> dict[str, float]:
    """Part -> wall-clock time of a run without its evaluation, as its report has them, or else its summary.

    Args:
        folder: The run's.
        summary: The run's.
    """
    path = folder / "report.json"
    if path.is_file():
        found: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))["cost"]["seconds"]
        return {part: seconds for part, seconds in found.items() if part != "evaluate"}
    tuned = summary.get("tuning_seconds", 0.0)
    return {"rest": max(0.0, summary["seconds"] - tuned), "tune": tuned}  # it was not measured


def summarise(
    folder: Path,
    recipe: Recipe,
    trained: Tuning,
    verdict: str,
    seconds: float,
    metrics: Mapping[str, Interval],
    baselines: Mapping[str, Mapping[str, Interval]],
) -> dict[str, Any]:
    """The object that scripts read: its keys are stable."""
    return {
        "run": str(folder),
        "task": recipe.task,
        "method": recipe.method,
        "metrics": {name: interval.as_dict() for name, interval in metrics.items()},
        "baselines": {system: {n: i.as_dict() for n, i in found.items()} for system, found in baselines.items()},
        "verdict": verdict,
        "tokens_per_second": trained.facts["tokens_per_second"],
        "seconds": seconds,
        "tuning_seconds": trained.seconds,
        "peak_memory_bytes": trained.facts["peak_memory_bytes"],
        "trainable_parameters": trained.facts["trainable_parameters"],
        "total_parameters": trained.facts["total_parameters"],
        "tokens": trained.facts["tokens"],
    } | ({"lineage": behind} if (behind := lineage.ancestors(recipe.model)) else {})


def _content(
    folder: Path,
    recipe: Recipe,
    data: PreparedData,
    facts: dict[str, Any],
    results: Results,
    sections: Sequence[report.Section],
    learned_from: Sequence[ShownExample],
) -> report.ReportContent:
    """All that the report of a run is made of."""
    task = TASKS[recipe.task]
    steps, validations = curves(folder)
    return report.ReportContent(
        run=folder.resolve().name,
        task=recipe.task,
        model=recipe.model,
        method=recipe.method,
        created=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        verdict=results.verdict,
        settings=recipe.evaluate,
        tuned=results.tuned,
        others=results.others,
        comparisons=results.comparisons,
        inputs=[task.input_text(row) for row in results.rows],
        references=[task.target_text(row) for row in results.rows],
        origins=[str(row.origin) for row in results.rows],
        right=results.right,
        steps=steps,
        validations=validations,
        validation_metric=kind(results.right).VALIDATION,
        data=_data_summary(recipe, data),
        cost=report.Cost(
            seconds=results.seconds,
            tokens=facts["tokens"],
            tokens_per_second=facts["tokens_per_second"],
            peak_memory_bytes=facts["peak_memory_bytes"],
            job_seconds=results.job_seconds,
        ),
        reproduction=report.Reproduction(
            recipe_yaml=recipe.to_yaml(),
            command="tunesmith tune recipe.yaml",
            seed=recipe.training.seed,
            versions=environment.versions(),
            machine=environment.machine(),
            data_fingerprint=data.fingerprint,
        ),
        sections=sections,
        learned_from=learned_from,
    )


def curves(folder: Path) -> tuple[list[Step], list[Validated]]:
    """Steps and validations from the run's own log; a step done twice (after a kill) counts once."""
    steps: dict[tuple[str, int], Step] = {}
    validations: dict[tuple[str, int], Validated] = {}
    for event in runs.read_events(folder):
        kind = event.pop("type")
        if kind == "step":
            steps[event["stage"], event["step"]] = Step(**event)
        elif kind == "validated":
            validations[event["stage"], event["step"]] = Validated(**event)
    return list(steps.values()), list(validations.values())


def _data_summary(recipe: Recipe, data: PreparedData) -> report.DataSummary:
    found = data.report
    files = [
        report.DataFile(name, part, count, _size(name))
        for part, names, rows in (
            ("train", recipe.data.train, data.train),
            ("validation", recipe.data.validation, data.validation),
            ("test", recipe.data.test, data.test),
        )
        if isinstance(names, list)
        for name, count in zip(names, _rows_of(names, rows, found.rows.get(part, 0)), strict=True)
    ]
    balance: dict[str, dict[str, int]] = {}
    for part, counts in found.classes.items():
        for label, count in counts.items():
            balance.setdefault(label, {})[part] = count
    return report.DataSummary(
        files=files,
        rows=found.rows,
        balance=balance,
        warnings=[
            report.DataWarning(p.message, [str(origin) for origin in p.where], p.count, p.fix, p.severity)
            for p in found.problems
        ],
        notes=found.notes,
    )


def _rows_of(names: Sequence[str], rows: Sequence[Row], total: int) -> Sequence[int | None]:
    """Rows of each file of a part; ``None`` where that is not told: of patterns, and of more rows than memory holds."""
    if len(names) == 1:
        return [total]
    counted = Counter(row.origin.file for row in rows) if isinstance(rows, list) else Counter()
    places = [str(Path(name)) for name in names]
    found = [sum(n for file, n in counted.items() if file == one or file.startswith(f"{one}/")) for one in places]
    return found if sum(found) == total else [None] * len(names)


def _size(name: str) -> int | None:
    path = Path(name)
    return path.stat().st_size if path.is_file() else None
