"""The facts of a recipe, what the table says about them, and what each way would take."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith import words
from tunesmith.advice import providers, trials
from tunesmith.advice import rules as tables
from tunesmith.advice.rules import Facts, Rules, Value, Way
from tunesmith.advice.trials import Trial
from tunesmith.errors import UsageError
from tunesmith.events import Event, Listener, Notice, nobody
from tunesmith.hosted import clock
from tunesmith.planning import Plan, forecast, gather
from tunesmith.planning.costs import Range
from tunesmith.planning.machine import Machine
from tunesmith.recipe import PICTURES, Recipe
from tunesmith.recipe_file import parse
from tunesmith.tasks import TASKS

if TYPE_CHECKING:
    from tunesmith.data.prepare import PreparedData
    from tunesmith.data.rows import Row

TRIAL_ROWS = 300  # to measure each trial on, at most
FEWEST_HELD = 30
"""Fewer validation rows than these say too little: then a fifth of the training rows is held out for the trials."""
CHOICE_SHARE = 0.1  # of the rows of a trial, for its own choices: the best epoch, a penalty


@dataclass(frozen=True)
class Limits:
    """What the ways must keep to.

    Attributes:
        budget: US dollars for the tuning.
        latency: Seconds for one answer.
        private: The data must not leave the machine.
        teacher: Whether there is a larger model to learn from.
    """

    budget: float | None = None
    latency: float | None = None
    private: bool = False
    teacher: bool = False


@dataclass(frozen=True)
class Suggestion:
    """One way.

    Attributes:
        way: Its name in the table.
        title: What it is.
        metric: What the quality is counted in.
        quality: Estimated, or measured with its interval.
        measured_rows: Rows of the trial that measured it; ``None`` for an estimate.
        seconds: Of the tuning here; ``None`` where nothing is tuned here.
        memory_bytes: The same.
        cost: Of the tuning, in US dollars; ``None`` if no price is known.
        latency: Seconds for one answer here; ``None`` where others answer.
        ruled_out: Why it cannot be gone; ``None`` if it can.
        reasons: Why it stands where it does.
        sources: Where the estimate comes from.
        recipe: What to set in the recipe.
        better_is: 1 where more of the metric is better, -1 where less is.
    """

    way: str
    title: str
    metric: str
    quality: Range
    measured_rows: int | None
    seconds: Range | None
    memory_bytes: Range | None
    cost: Range | None
    latency: float | None
    ruled_out: str | None
    reasons: tuple[str, ...]
    sources: tuple[str, ...]
    recipe: dict[str, Any]
    better_is: int = 1

    def as_dict(self) -> dict[str, Any]:
        """For ``tunesmith advise --json``."""
        return {
            "way": self.way,
            "title": self.title,
            "metric": self.metric,
            "quality": self.quality.as_dict(4),
            "measured": self.measured_rows is not None,
            "measured_rows": self.measured_rows,
            "seconds": self.seconds and self.seconds.as_dict(1),
            "memory_bytes": self.memory_bytes and self.memory_bytes.as_dict(),
            "cost_usd": self.cost and self.cost.as_dict(4),
            "latency_seconds": self.latency,
            "possible": self.ruled_out is None,
            "ruled_out": self.ruled_out,
            "reasons": list(self.reasons),
            "sources": list(self.sources),
            "recipe": self.recipe,
        }


@dataclass(frozen=True)
class Advice:
    """The ways, best first, those that are ruled out at the end; and the facts that they were judged by."""

    ways: tuple[Suggestion, ...]
    facts: dict[str, Value | None]
    machine: str

    def as_dict(self) -> dict[str, Any]:
        """For ``tunesmith advise --json``."""
        return {"ways": [way.as_dict() for way in self.ways], "facts": self.facts, "machine": self.machine}


def advise(
    recipe: Recipe,
    machine: Machine,
    limits: Limits = Limits(),  # it cannot change
    *,
    own_rules: Path | None = None,
    trial_seconds: float | None = None,
    today: date | None = None,
    on_event: Listener = nobody,
) -> Advice:
    """Rank the ways to do a task with these data and this model.

    Args:
        recipe: Task, data and model count; its method, parameters and stages are replaced by those of the ways.
        machine: Where it would be tuned and would answer.
        limits: What the ways must keep to.
        own_rules: A table in place of the one that comes with Tunesmith.
        trial_seconds: Try the ways that can be run here, for so long.
        today: By which providers and their models are open or closed.
        on_event: Told what happens.

    Raises:
        DataError: The data have errors that would stop a run as well.
        UsageError: The table of rules, or that of prices, is malformed; or the task reads pictures.
    """
    if recipe.task in PICTURES:
        raise UsageError(
            f"the ways of the table are for texts, and the task `{recipe.task}` reads pictures",
            where="task",
            fix="measure them: `tunesmith compare RECIPE --shots 2,8,all` fits features, a head and the whole model",
        )
    rules = tables.load(own_rules)
    base, folder, data = gather(_with(recipe, {}), on_event)
    found = _facts(base, folder, data[-1], limits)
    today = today or clock.today()
    made = [
        _suggest(name, way, rules, recipe, folder, data[-1], found, machine, limits, today)
        for name, way in rules.ways.items()
    ]
    if trial_seconds is not None:
        made = _tried(made, rules, recipe, data[-1], trial_seconds, on_event)
    ranked = sorted(
        made,
        key=lambda way: (
            way.ruled_out is not None,
            way.measured_rows is None,
            -way.better_is * round(way.quality.expected, 2),
            way.seconds.expected if way.seconds else 0.0,
        ),
    )
    return Advice(tuple(ranked), dict(found), machine.name)


def _with(recipe: Recipe, changes: dict[str, Any]) -> Recipe:
    """The recipe's task, data and settings, done in another way."""
    tree = recipe.model_dump(mode="json", exclude_unset=True)
    kept = {key: value for key, value in tree.items() if key not in ("method", "parameters", "stages", "objective")}
    return parse(kept | changes)


def _facts(recipe: Recipe, folder: Path, data: PreparedData, limits: Limits) -> dict[str, Value | None]:
    """What the rules may ask for."""
    from tunesmith.models.load import load_config, load_tokenizer, longest_example, natural_form

    config = load_config(folder)
    kinds = {"generate": "decoder", "seq2seq": "encoder-decoder"}
    task = TASKS[recipe.task]
    counts = _label_counts(recipe, data)
    longest = max((len(task.input_text(row)) for row in data.train), default=0)
    tokenizer = load_tokenizer(folder)
    text = next((task.input_text(row) for row in data.train if len(task.input_text(row)) == longest), "")
    limit = longest_example(folder, config, recipe.data.max_length)
    return {
        "task": recipe.task,
        "answer": task.answer,
        "rows": len(data.train),
        "rows_per_label": round(sum(counts.values()) / len(counts), 1) if counts else None,
        "commonest_share": round(max(counts.values()) / sum(counts.values()), 4) if counts else None,
        "model": kinds.get(natural_form(config), "encoder"),
        "parameters": _parameters_of(folder),
        "private": limits.private,
        "teacher": limits.teacher,
        "longest_share": round(len(tokenizer(text, verbose=False)["input_ids"]) / limit, 3),
    }


def _label_counts(recipe: Recipe, data: PreparedData) -> Counter[str]:
    if TASKS[recipe.task].answer != "label":
        return Counter()
    return Counter(TASKS[recipe.task].target_text(row) for row in data.train)


def _parameters_of(folder: Path) -> int:
    """Parameters by the headers of the model's files."""
    import math

    from safetensors import safe_open

    total = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="numpy") as file:
            total += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return total


def _suggest(
    name: str,
    way: Way,
    rules: Rules,
    recipe: Recipe,
    folder: Path,
    data: PreparedData,
    facts: Facts,
    machine: Machine,
    limits: Limits,
    today: date,
) -> Suggestion:
    """What the table and the plan say about one way."""
    ruled_out = way.ruled_out(facts)
    guess = way.guess(facts)
    changes = way.recipe_for.get(str(facts["model"]), way.recipe)
    made: Plan | None = None
    if ruled_out is None and way.runs:
        made = _planned(_with(recipe, changes), folder, data, machine)
    cost = made.cost if made else None
    there = providers.offers(recipe, len(data.train), _rough_tokens(recipe, data), today) if way.hosted else None
    if way.hosted:
        ruled_out = ruled_out or (providers.NOBODY if there is None else None)
    if there is not None:
        cost, changes = there.cost, {**changes, **there.recipe}
    shown = int(changes.get("parameters", {}).get("examples", 8)) if facts["model"] == "decoder" else 0
    latency = None
    if not way.hosted and ruled_out is None:
        latency = _latency(recipe, data, facts, machine, shown if name == "few-shot" else 0)
    suggestion = Suggestion(
        way=name,
        title=way.title,
        metric="accuracy" if facts["answer"] == "label" else "share of the way to the best",
        quality=_quality(guess.share, facts),
        measured_rows=None,
        seconds=made.seconds if made else None,
        memory_bytes=made.memory_bytes if made else None,
        cost=cost,
        latency=latency,
        ruled_out=ruled_out,
        reasons=(way.pro, guess.because, *(there.reasons if there else ())),
        sources=tuple(rules.sources[source] for source in way.sources),
        recipe=changes,
    )
    return dataclasses.replace(suggestion, ruled_out=ruled_out or _over(suggestion, made, limits, machine))


def _planned(recipe: Recipe, folder: Path, data: PreparedData, machine: Machine) -> Plan:
    recipe = recipe.resolved()
    return forecast(recipe, folder, [data] * len(recipe.stages), machine=machine, remedies=False)


def _over(way: Suggestion, made: Plan | None, limits: Limits, machine: Machine) -> str | None:
    """Which limit a way goes beyond."""
    if made is not None and not made.fits:
        return f"it takes up to {words.size(made.memory_bytes.high)}, and {words.size(machine.memory_bytes)} are there"
    if limits.budget is not None and way.cost is not None and way.cost.low > limits.budget:
        return f"it costs {way.cost.low:.2f} $ or more, and the budget is {limits.budget:.2f} $"
    if limits.latency is not None and way.latency is not None and way.latency > limits.latency:
        return f"an answer takes about {way.latency * 1000:,.0f} ms, and {limits.latency * 1000:,.0f} are allowed"
    return None


def _quality(share: Sequence[float], facts: Facts) -> Range:
    """Shares of the way from the commonest label to no errors, as accuracy; shares of other answers as they are."""
    guess = float(facts["commonest_share"] or 0.0) if facts["answer"] == "label" else 0.0
    low, high = (guess + part * (1 - guess) for part in share)
    return Range(low, (low + high) / 2, high)


def _rough_tokens(recipe: Recipe, data: PreparedData) -> float:
    """Tokens of an epoch at a provider, at four characters each (OpenAI's rule of thumb for English)."""
    task = TASKS[recipe.task]
    return sum(len(task.input_text(row)) + len(task.target_text(row)) for row in data.train) / 4


def _latency(recipe: Recipe, data: PreparedData, facts: Facts, machine: Machine, shown: int) -> float:
    """Seconds for one answer: reading is bound by arithmetic or fetching the weights, each word written by the latter.

    The formula is the usual lower bound, 2 P operations a token and P weights fetched a pass, so answers take longer.
    """
    task = TASKS[recipe.task]
    rows = max(1, len(data.train))
    read = sum(len(task.input_text(row)) for row in data.train) / rows / 4 * (1 + shown)
    written = sum(len(task.target_text(row)) for row in data.train) / rows / 4 if facts["model"] != "encoder" else 0.0
    parameters = float(facts["parameters"] or 0)
    wide, rate = (2, machine.bf16) if machine.bf16 > machine.fp32 else (4, machine.fp32)
    fetched = parameters * wide / machine.copy
    return max(2 * parameters * read / rate, fetched) + max(0.0, written - 1) * fetched


def _tried(
    made: Sequence[Suggestion], rules: Rules, recipe: Recipe, data: PreparedData, seconds: float, tell: Listener
) -> list[Suggestion]:
    """Replace estimates by measurements, where there was time for them."""
    ways = [way for way in made if way.ruled_out is None and rules.ways[way.way].runs]
    ways.sort(key=lambda way: way.seconds.expected if way.seconds else 0.0)
    by_name = {way.way: way for way in ways}
    learn, held = _held_out(data)

    def run(name: str, count: int) -> Trial:
        return _trial(by_name[name], recipe, data, learn[:count], held, tell)

    planned = {way.way: way.seconds.expected for way in ways if way.seconds}
    found = trials.halving([way.way for way in ways], len(learn), seconds, run, tell, planned=planned)
    return [_measured(way, found.get(way.way)) for way in made]


def _held_out(data: PreparedData) -> tuple[list[Row], list[Row]]:
    """Rows to learn from, in an order of which each trial takes the beginning, and rows to measure all trials on.

    These are the validation rows, or where there are few a fifth of the training rows; never the test rows, which are
    for the run that follows.
    """
    learn = sorted(data.train, key=lambda row: row.key)
    if len(data.validation) >= FEWEST_HELD:
        return learn, list(data.validation)
    count = min(TRIAL_ROWS, len(learn) // 5)
    return learn[count:], learn[:count]


def _trial(
    way: Suggestion, recipe: Recipe, data: PreparedData, rows: Sequence[Row], held: Sequence[Row], tell: Listener
) -> Trial:
    """A whole run on some of the rows, in a folder that is thrown away; the data were checked before."""
    from tunesmith import pipeline
    from tunesmith.evaluation.metrics import METRICS

    tree = _with(recipe, way.recipe).model_dump(mode="json", exclude_unset=True)
    limit = min(TRIAL_ROWS, recipe.evaluate.limit or TRIAL_ROWS)
    tree["evaluate"] = {**tree.get("evaluate", {}), "baselines": [], "limit": limit}
    asked = parse(tree)
    choose = round(CHOICE_SHARE * len(rows))
    part = dataclasses.replace(data, train=rows[choose:], validation=rows[:choose], test=held)
    started = time.monotonic()

    def only_warnings(event: Event) -> None:
        if isinstance(event, Notice) and event.level == "warning":
            tell(event)

    with tempfile.TemporaryDirectory(prefix="tunesmith-trial-") as place:
        parts = [part] * len(asked.resolved().stages)
        summary = pipeline.run(asked, run_dir=Path(place) / "run", on_event=only_warnings, data=parts).summary()
    name, measured = next(iter(summary["metrics"].items()))
    return Trial(
        way=way.way,
        rows=len(rows),
        metric=name,
        value=measured["value"],
        low=measured["low"],
        high=measured["high"],
        seconds=time.monotonic() - started,
        better_is=1 if METRICS[name].higher_is_better else -1,
    )


def _measured(way: Suggestion, trial: Trial | None) -> Suggestion:
    if trial is None:
        return way
    return dataclasses.replace(
        way,
        metric=trial.metric,
        quality=Range(trial.low, trial.value, trial.high),
        measured_rows=trial.rows,
        better_is=trial.better_is,
        reasons=(f"measured with {trial.rows:,} rows in {words.duration(trial.seconds)}", *way.reasons),
    )
