"""What a student kept of its teacher: both, the student before, and the student trained without a teacher."""

from __future__ import annotations

import statistics as descriptive
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.data.prepare import PreparedData
from tunesmith.data.rows import Row
from tunesmith.evaluation.comparison import System, primary_metric
from tunesmith.evaluation.intervals import Interval, bootstrap_difference, percentiles, resampled
from tunesmith.evaluation.metrics import METRICS, evaluated, measure, statistics
from tunesmith.evaluation.report import Section, format_size
from tunesmith.evaluation.retraining import trained_otherwise
from tunesmith.events import Listener, Notice, Phase, nobody
from tunesmith.models.cutting import base_title
from tunesmith.models.model import Model
from tunesmith.prediction import answering
from tunesmith.prediction.outputs import Truth
from tunesmith.prediction.setting import Setting
from tunesmith.recipe import Distillation, Evaluate, Recipe

TEACHER, ALONE = "teacher", "without-teacher"
LATENCY_ROWS = 50
LATENCY_SECONDS = 30.0
"""Rows answered one by one, and the time after which no further one is begun."""


@dataclass(frozen=True)
class Size:
    """What a model takes: parameters, bytes of its weights, and milliseconds for one row by itself (the median)."""

    parameters: int
    bytes: int
    milliseconds: float


@dataclass(frozen=True)
class Lesson:
    """What was measured beside the run's own model.

    Attributes:
        systems: The teacher and the student that was trained without it, as far as the recipe wants them.
        student: Of the run's model.
        teacher: Of the teacher; ``None`` if it was not measured.
    """

    systems: list[System]
    student: Size
    teacher: Size | None


@dataclass(frozen=True)
class Line:
    """One system in the table; ``gap`` is what the distilled student has more than it."""

    name: str
    title: str
    value: Interval
    gap: Interval | None
    size: Size | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        gap = None if self.gap is None else self.gap.as_dict()
        return {"value": self.value.as_dict(), "distilled_minus": gap, **(asdict(self.size) if self.size else {})}

    def cells(self) -> list[str]:
        """For the report."""
        size = self.size
        return [
            self.title,
            self.value.format(),
            "–" if self.gap is None else self.gap.format(signed=True),
            f"{size.parameters:,}" if size else "–",
            format_size(size.bytes) if size else "–",
            f"{size.milliseconds:.1f} ms" if size else "–",
        ]


@dataclass(frozen=True)
class Results:
    """The same in figures; intervals are paired by row.

    Attributes:
        metric: The one that decides.
        lines: Teacher, student before, student without the teacher, and the distilled one, as far as measured.
        kept: Share of the teacher's lead over the student as it was before that the student has now.
        closed: Share of the teacher's lead over the student trained without it that the teacher closed.
    """

    metric: str
    lines: list[Line]
    kept: Interval | None = None
    closed: Interval | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        shares = {"kept": self.kept, "closed": self.closed}
        return {"metric": self.metric, "systems": {line.name: line.as_dict() for line in self.lines}} | {
            name: None if share is None else share.as_dict() for name, share in shares.items()
        }


def measure_lesson(
    folder: Path,
    recipe: Recipe,
    student: Model,
    stages: Sequence[PreparedData],
    rows: Sequence[Row],
    right: Truth,
    setting: Setting,
    tell: Listener,
) -> Lesson | None:
    """Measure the teacher, and train and measure the student without it, as far as the recipe wants them.

    Args:
        folder: The run's.
        recipe: Resolved.
        student: The run's model.
        stages: Data of every stage; empty where a run is only measured again.
        rows: To measure on.
        right: Their right answers.
        setting: What all systems share.
        tell: Told everything that happens.

    Returns:
        ``None`` for a run without a teacher.
    """
    taught = [stage for stage in recipe.stages if stage.objective == "distill"]
    if not taught or not stages:
        return None
    assert taught[-1].training is not None
    wanted = {baseline.kind for baseline in recipe.evaluate.baselines}
    systems, models = [], {"student": student}
    if TEACHER in wanted:
        system, teacher = _teacher(recipe, taught[-1].training.distillation, student, rows, right, setting, tell)
        systems += [system] if system else []
        models |= {TEACHER: teacher} if teacher else {}
    sizes = _sizes(models, rows, setting)
    models.clear()
    if ALONE in wanted:
        systems.append(_alone(folder, recipe, stages, rows, right, setting, tell))
    return Lesson(systems, sizes["student"], sizes.get(TEACHER))


def _teacher(
    recipe: Recipe,
    own: Distillation,
    student: Model,
    rows: Sequence[Row],
    right: Truth,
    setting: Setting,
    tell: Listener,
) -> tuple[System | None, Model | None]:
    from tunesmith.objectives.teacher import load_teacher, load_writer

    name = own.teacher or recipe.model
    if own.is_server:
        tell(Notice(level="info", message=f"the teacher at {name} is not measured: it would be asked every test row"))
        return None, None
    tell(Phase(step="evaluate", message=f"the teacher {name}"))
    teacher = load_teacher(name, student) if own.needs_scores else load_writer(name, student.dtype, student.device)
    prompt = teacher.system_prompt if teacher.system_prompt is not None else setting.system_prompt
    outputs = answering.answer(teacher.model, rows, replace(setting, system_prompt=prompt))
    metrics = measure(outputs, right, recipe.evaluate)
    tell(evaluated(TEACHER, outputs, metrics))
    what = "what the student learned from: larger, and no rival"
    system = System(
        TEACHER, f"{name}, the teacher", what, outputs, metrics, teacher.model.total_parameters, is_ceiling=True
    )
    return system, teacher.model


def _alone(
    folder: Path,
    recipe: Recipe,
    stages: Sequence[PreparedData],
    rows: Sequence[Row],
    right: Truth,
    setting: Setting,
    tell: Listener,
) -> System:
    """The same stages with the same data, seed and settings, but the right answers alone."""
    plain = [
        stage.model_copy(update={"objective": None}) if stage.objective == "distill" else stage
        for stage in recipe.stages
    ]
    alone = recipe.model_copy(update={"stages": plain})
    tell(Phase(step="evaluate", message="the student without a teacher: training it on the right answers alone"))
    named = (
        ALONE,
        f"{base_title(recipe)}, trained without the teacher",
        "the same student, data, seed and settings; it learns the right answers alone",
    )
    return trained_otherwise(folder, alone, stages, named, rows, right, setting, tell)


def _sizes(models: dict[str, Model], rows: Sequence[Row], setting: Setting) -> dict[str, Size]:
    """Sizes of models; each answers some rows one by one, in turns, so that a busy machine slows all alike."""
    quiet = replace(setting, on_event=nobody)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    began = time.perf_counter()
    for number, row in enumerate(rows[: LATENCY_ROWS + 1]):
        for name, model in models.items():
            started = time.perf_counter()
            answering.answer(model, [row], quiet, score_references=False)
            if number or len(rows) == 1:  # the first one warms up
                seconds[name].append(time.perf_counter() - started)
        if number and time.perf_counter() - began > LATENCY_SECONDS:
            break
    return {name: Size(*_weights(model), 1e3 * descriptive.median(seconds[name])) for name, model in models.items()}


def _weights(model: Model) -> tuple[int, int]:
    """Parameters, and their bytes as they are in memory."""
    return model.total_parameters, sum(p.numel() * p.element_size() for p in model.network.parameters())


# --- the report ---------------------------------------------------------------------------


def results(lesson: Lesson, tuned: System, others: Sequence[System], right: Truth, settings: Evaluate) -> Results:
    """Compare the student with its teacher, with what it was, and with what it would be without the teacher."""
    named = {system.name: system for system in others}
    wanted = [named[name] for name in (TEACHER, "base", ALONE) if name in named]
    metric = primary_metric([tuned, *wanted], right).name
    found = {system.name: statistics(system.outputs, right, only=metric)[metric] for system in (tuned, *wanted)}
    ours = found[tuned.name]
    titles = {TEACHER: "teacher", "base": "student before", ALONE: "student without the teacher"}
    sizes = {TEACHER: lesson.teacher}
    lines = []
    for system in wanted:
        gap, _ = bootstrap_difference(
            ours,
            found[system.name],
            resamples=settings.resamples,
            confidence=settings.confidence,
            seed=settings.seed,
        )
        size = sizes.get(system.name, lesson.student)
        lines.append(Line(system.name, titles[system.name], system.metrics[metric], gap, size))
    lines.append(Line("distilled", "student distilled", tuned.metrics[metric], None, lesson.student))

    def share(floor: str) -> Interval | None:
        """How much of the way from a floor to the teacher was gone; ``None`` where the teacher's lead is not shown."""
        if floor not in found or TEACHER not in found:
            return None
        way = [found[name] for name in (tuned.name, floor, TEACHER)]
        student, low, high = resampled(way, resamples=settings.resamples, seed=settings.seed)
        lead = percentiles((high - low) * (1 if METRICS[metric].higher_is_better else -1), settings.confidence)
        if lead[0] <= 0:
            return None
        value = (way[0].value - way[1].value) / (way[2].value - way[1].value)
        with np.errstate(divide="ignore", invalid="ignore"):  # rare resamples in which the teacher leads by nothing
            limits = percentiles(np.nan_to_num((student - low) / (high - low)), settings.confidence)
        return Interval(value, min(limits[0], value), max(limits[1], value))

    return Results(metric, lines, share("base"), share(ALONE))


def section(found: Results) -> Section:
    """For the report."""
    metric = METRICS[found.metric]
    rows = [line.cells() for line in found.lines]
    shares = [
        ("of the teacher's lead over the student before, the student has now", found.kept),
        ("of the teacher's lead over the student without it, teaching closed", found.closed),
    ]
    rows += [[title, share.format(), *[""] * 4] for title, share in shares if share is not None]
    lead = (
        "All answer the same test rows; differences and shares are paired by row. The time for one row is the median "
        "of rows asked one by one, teacher and student in turns."
    )
    columns = ["System", metric.title, "Distilled minus it", "Parameters", "Weights", "Time for one row"]
    return Section("distillation", "What the student kept of its teacher", lead, columns, rows, found.as_dict())
