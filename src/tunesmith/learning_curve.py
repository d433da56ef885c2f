"""How good each way to learn gets with how many labels: the same test rows, drawn examples and seeds for all.

Every point is made of whole runs, kept below the curve's folder: an interrupted curve goes on where it stopped.
"""

from __future__ import annotations

import difflib
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith import disk, runs
from tunesmith.errors import DataError, UsageError
from tunesmith.events import Listener, Notice, nobody
from tunesmith.recipe import PICTURES, Data, Evaluate, Recipe
from tunesmith.recipe_file import parse
from tunesmith.runs import Run
from tunesmith.tasks import TASKS

if TYPE_CHECKING:
    import numpy as np

    from tunesmith.evaluation.intervals import Interval

WAYS: dict[str, dict[str, Any]] = {
    "features": {"method": "features"},
    "few-shot": {"method": "few-shot"},
    "in-context": {"method": "few-shot", "parameters": {"kind": "in-context"}},
    "transfer": {"method": "transfer"},
    "peft": {"method": "peft"},
    "full": {"method": "full"},
}
"""Name of a line -> what it sets in the recipe. ``NAME@MODEL`` is the same with another model."""

DEFAULT_WAYS = {
    "classify": ("features", "few-shot", "peft", "full"),
    "generate": ("features", "in-context", "peft", "full"),
    "seq2seq": ("peft", "full"),
    "picture": ("features", "transfer", "full"),
}
"""What the model was made for -> the lines if none are named: vectors of a model that writes are not made for comparing
texts, and an encoder has no prompt that examples could stand in."""
DEFAULT_SHOTS = ("1", "2", "4", "8", "16", "32", "all")

FEWEST_UPDATES = 150
"""Small sets are gone through more often, until there were so many updates: most failures of training on few examples
are too few of them (Mosbach et al. 2021, arXiv 2006.04884)."""

TARGET_SHARE = 0.95
"""The default target: this share of the best value of the curve."""


@dataclass(frozen=True)
class Point:
    """One way with one number of examples.

    Attributes:
        way: Name of the line.
        shots: Examples of each label; ``None`` for all there are.
        labels: Labelled rows used, those for validation included.
        values: Accuracy of each seed.
        value: Their mean.
        low: Lower limit, over the choice of examples and of test rows.
        high: Upper limit.
        seconds: Mean time of tuning.
    """

    way: str
    shots: int | None
    labels: int
    values: list[float]
    value: float
    low: float
    high: float
    seconds: float


@dataclass(frozen=True)
class Curve:
    """The learning curve of several ways.

    Attributes:
        points: By way, then by labels.
        target: Accuracy that is asked for.
        needed: Way -> the fewest labels measured whose mean reaches the target; ``None`` if none does.
        verdict: In one sentence.
        folder: Where ``curve.json``, ``curve.svg`` and the runs are.
    """

    points: list[Point]
    target: float
    needed: dict[str, int | None]
    verdict: str
    folder: Path

    def as_dict(self) -> dict[str, Any]:
        """For ``curve.json`` and ``--json``."""
        return {
            "metric": "accuracy",
            "points": [asdict(point) for point in self.points],
            "target": self.target,
            "labels_needed": self.needed,
            "verdict": self.verdict,
            "folder": str(self.folder),
        }


def learning_curve(
    recipe: Recipe,
    folder: Path,
    *,
    shots: Sequence[str] = DEFAULT_SHOTS,
    ways: Sequence[str] | None = None,
    seeds: int = 3,
    target: float | None = None,
    on_event: Listener = nobody,
) -> Curve:
    """Measure each way with each number of examples and seed, and draw the curve.

    Args:
        recipe: Task, model, data and settings; its method, parameters and stages are replaced by those of the ways.
        folder: For the result and the runs, whose models are not kept.
        shots: Numbers of examples of each label, and ``all``.
        ways: Names of :data:`WAYS`, or ``NAME@MODEL``; default: those of :data:`DEFAULT_WAYS` that suit the model.
        seeds: How often examples are drawn. All rows, of which there is one choice, are learned once.
        target: The accuracy that is asked for; default: :data:`TARGET_SHARE` of the best.
        on_event: Told everything that happens.

    Raises:
        UsageError: An unknown way, one that its model cannot go, or a task without labels. All is refused before the
            first run.
        DataError: A label has fewer rows than the largest number of shots.
    """
    from tunesmith.evaluation.curve_chart import curve_chart

    counts = _checked(recipe, shots, ways or (), seeds)
    ways = ways or _usual_ways(recipe, on_event)
    _refuse_impossible(recipe, ways, on_event)
    largest = max((count for count in counts if count is not None), default=None)
    if largest is not None:
        _refuse_too_many(recipe, largest)
    folder.mkdir(parents=True, exist_ok=True)
    points = []
    for way in ways:
        for count in counts:
            drawn = range(seeds) if count is not None else range(1)
            done = [_run(recipe, folder / "runs", way, count, seed, on_event) for seed in drawn]
            points.append(_point(way, count, done, recipe.evaluate))
            on_event(Notice(level="info", message=f"{way}, {points[-1].labels} labels: accuracy {_text(points[-1])}"))
    target = target if target is not None else TARGET_SHARE * max(point.value for point in points)
    needed = {way: labels_needed([p for p in points if p.way == way], target) for way in ways}
    curve = Curve(points, target, needed, _verdict(points, needed, target), folder)
    disk.write_json(folder / "curve.json", curve.as_dict())
    disk.write_text(folder / "curve.svg", curve_chart(points, target, recipe.evaluate.confidence))
    return curve


def labels_needed(points: Sequence[Point], target: float) -> int | None:
    """The fewest labels of one way whose mean reaches the target."""
    return min((point.labels for point in points if point.value >= target), default=None)


def _checked(recipe: Recipe, shots: Sequence[str], ways: Sequence[str], seeds: int) -> list[int | None]:
    """The numbers of shots in order, ``None`` (all) last."""
    if TASKS[recipe.task].answer != "label":
        raise UsageError(
            f"a learning curve counts labels, which the task `{recipe.task}` has not",
            where="task",
            fix="use `task: text-classification`",
        )
    for way in ways:
        name = way.partition("@")[0]
        if name not in WAYS:
            close = difflib.get_close_matches(name, WAYS, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise UsageError(f"there is no way {name!r} to learn", where="--methods", fix=f"{hint}{', '.join(WAYS)}")
    wrong = [item for item in shots if item != "all" and not (item.isdigit() and int(item))]
    if wrong or not shots or seeds < 1:
        raise UsageError(
            f"{wrong[0]!r} is no number of examples" if wrong else "a curve needs numbers of examples and a seed",
            where="--shots",
            fix="give numbers from 1 on, and `all`: --shots 1,2,4,8,all",
        )
    numbers: list[int | None] = list(sorted({int(item) for item in shots if item != "all"}))
    return [*numbers, None] if "all" in shots else numbers


def _usual_ways(recipe: Recipe, on_event: Listener) -> Sequence[str]:
    """The lines that suit the recipe's model."""
    if recipe.task in PICTURES:
        return DEFAULT_WAYS["picture"]
    from tunesmith import catalog
    from tunesmith.models.load import load_config, natural_form

    return DEFAULT_WAYS[natural_form(load_config(catalog.model_folder(recipe.model, on_event=on_event)))]


def _refuse_impossible(recipe: Recipe, ways: Sequence[str], on_event: Listener) -> None:
    """Find out before the first run that a model cannot go a way.

    Raises:
        UsageError: The first such way, with what suits its model.
    """
    from tunesmith import catalog
    from tunesmith.models.forms import form_of

    for way in ways:
        try:
            asked = _with(recipe, way, 1, 0).resolved()
            folder = catalog.model_folder(asked.model, on_event=on_event)
            for stage in asked.stages:
                form_of(asked, stage, folder)
        except UsageError as error:
            suitable = _usual_ways(recipe, on_event)
            if way in suitable:  # then it is the model that does not suit the task
                raise
            other = f"{way.partition('@')[0]}@MODEL"
            fix = f"for {recipe.model} use --methods {','.join(suitable)}, or another model: {other}"
            raise UsageError(f"the way `{way}`: {error.what}", where="--methods", fix=fix) from error


def _refuse_too_many(recipe: Recipe, largest: int) -> None:
    """Find out before the first run that there are not so many examples of a label."""
    from tunesmith.data.prepare import prepare

    prepare(_with(recipe, "full", largest, 0))


def _with(recipe: Recipe, way: str, shots: int | None, seed: int) -> Recipe:
    """The recipe of one run of the curve."""
    name, _, model = way.partition("@")
    data: Data = recipe.data.model_copy(update={"shots": shots, "shots_seed": seed})
    training = recipe.training.model_dump(mode="json", exclude_unset=True) | {"seed": seed}
    evaluate = recipe.evaluate.model_dump(mode="json", exclude_unset=True) | {"baselines": []}
    return parse(
        {
            "task": recipe.task,
            "model": model or recipe.model,
            "data": data.model_dump(mode="json"),
            "training": training,
            "evaluate": evaluate,
            "precision": recipe.precision,
            "system_prompt": recipe.system_prompt,
            **WAYS[name],
        }
    )


def _run(recipe: Recipe, root: Path, way: str, shots: int | None, seed: int, on_event: Listener) -> Run:
    """One run, or what is left of it, or nothing if it was done before."""
    from tunesmith import pipeline

    asked = _with_enough_updates(_with(recipe, way, shots, seed), recipe)
    name = f"{way.replace('/', '-').replace('@', '-at-')}-{shots or 'all'}-seed{seed}"
    folder = root / name
    if not (folder / "recipe.yaml").exists():
        done = pipeline.run(asked, run_dir=folder, on_event=on_event)
    else:
        done = runs.open_run(folder)
        if done.recipe != asked.resolved():
            raise UsageError(
                "this run of the curve was made with another recipe",
                where=str(folder),
                fix="name another folder by --run-dir, or remove this one",
            )
        done = pipeline.resume(folder, on_event=on_event)
    for part in ("stages", "model"):  # a hundred models that nobody asked for
        shutil.rmtree(folder / part, ignore_errors=True)
    return done


def _with_enough_updates(asked: Recipe, recipe: Recipe) -> Recipe:
    """The recipe with more epochs where few examples would give few updates, unless epochs were asked for."""
    trains = asked.method in ("transfer", "peft", "full")
    if not trains or asked.data.shots is None or {"epochs", "max_steps"} & recipe.training.model_fields_set:
        return asked
    from tunesmith.data.prepare import prepare
    from tunesmith.training.defaults import BATCH_SIZE

    rows = len(prepare(asked).train)
    batch = recipe.training.batch_size or max(4, min(BATCH_SIZE["classify"], rows // 20))
    epochs = max(recipe.training.epochs, float(math.ceil(FEWEST_UPDATES * batch / rows)))
    return asked.model_copy(update={"training": asked.training.model_copy(update={"epochs": epochs})})


def _point(way: str, shots: int | None, done: Sequence[Run], settings: Evaluate) -> Point:
    import numpy as np

    found = []
    for run in done:
        stored = sorted(runs.read_answers(run), key=lambda answer: (answer.key, answer.reference))
        found.append({"rows": [answer.key for answer in stored], "right": [a.answer == a.reference for a in stored]})
    if any(other["rows"] != found[0]["rows"] for other in found):
        raise DataError("the runs of the curve were measured on different rows", where=str(done[0].path))
    right_SN = np.asarray([one["right"] for one in found], dtype=np.float64)
    interval = over_seeds(right_SN, settings)
    used = json.loads((done[0].path / "data.json").read_text(encoding="utf-8"))["rows"]
    return Point(
        way=way,
        shots=shots,
        labels=int(used["train"]) + int(used.get("validation", 0)),
        values=right_SN.mean(axis=1).tolist(),
        value=interval.value,
        low=interval.low,
        high=interval.high,
        seconds=float(np.mean([run.summary()["tuning_seconds"] for run in done])),
    )


def over_seeds(right_SN: np.ndarray, settings: Evaluate) -> Interval:
    """The mean of S seeds on N rows; the limits are over both: seeds and rows are drawn anew (percentile bootstrap).

    Efron & Tibshirani 1993, chapter 8: each source of chance is resampled as it came about.
    """
    import numpy as np

    from tunesmith.evaluation.intervals import Interval

    seeds, rows = right_SN.shape
    random = np.random.default_rng(settings.seed)
    counts_BN = random.multinomial(rows, np.full(rows, 1 / rows), size=settings.resamples)
    means_BS = counts_BN @ right_SN.T / rows
    drawn_BS = random.integers(0, seeds, size=(settings.resamples, seeds))
    means_B = np.take_along_axis(means_BS, drawn_BS, axis=1).mean(axis=1)
    tail = (1 - settings.confidence) / 2
    low, high = np.quantile(means_B, [tail, 1 - tail])
    return Interval(float(right_SN.mean()), float(low), float(high))


def _text(point: Point) -> str:
    spread = f"; seeds {min(point.values):.3f} to {max(point.values):.3f}" if len(point.values) > 1 else ""
    return f"{point.value:.3f} [{point.low:.3f}, {point.high:.3f}]{spread}"


def _verdict(points: Sequence[Point], needed: dict[str, int | None], target: float) -> str:
    reached = sorted((labels, way) for way, labels in needed.items() if labels is not None)
    most = max(point.labels for point in points)
    if not reached:
        return f"No way reaches accuracy {target:.3f} with {most:,} labels."
    first = f"{reached[0][1]} reaches accuracy {target:.3f} with {reached[0][0]:,} labels"
    others = [f"{way} needs {labels:,}" for labels, way in reached[1:]]
    never = [f"{way} does not reach it with {most:,}" for way, labels in needed.items() if labels is None]
    return "; ".join([first, *others, *never]) + "."
