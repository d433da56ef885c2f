"""Prompt, tune there, or tune here: quality, money, time and tokens of each way on the same test rows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith import disk
from tunesmith.errors import UsageError
from tunesmith.evaluation import charts
from tunesmith.evaluation.curve_chart import COLOURS, MARKERS, on_its_own
from tunesmith.evaluation.run_comparison import compare_runs
from tunesmith.hosted import clock
from tunesmith.hosted.answers import AT_ONCE
from tunesmith.hosted.break_even import DAYS_A_MONTH, BreakEven, break_even
from tunesmith.hosted.table import Table, find_model, stale_warnings
from tunesmith.runs import Run

if TYPE_CHECKING:
    from tunesmith.evaluation.intervals import Interval


@dataclass(frozen=True)
class Way:
    """One way to get answers.

    Attributes:
        name: Short.
        kind: ``hosted`` or ``local``.
        tuned: Whether something was trained for it.
        metric: Name of the metric that decides.
        quality: Its value with its interval.
        fixed_usd: Dollars before the first call; ``None`` if nobody knows.
        usd_per_1000_calls: Likewise.
        prompt_tokens: A call, on average.
        written_tokens: Likewise; ``None`` where the run did not count them.
        latency: Seconds a call.
        latency_of: What these are: the median of single calls, or the mean over batches.
        shutdown: The day from which on it answers no more; ``None`` if no day is known.
    """

    name: str
    kind: str
    tuned: bool
    metric: str
    quality: dict[str, float]
    fixed_usd: float | None
    usd_per_1000_calls: float | None
    prompt_tokens: float | None
    written_tokens: float | None
    latency: float | None
    latency_of: str
    shutdown: date | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"shutdown": self.shutdown.isoformat() if self.shutdown else None}


@dataclass(frozen=True)
class HostedComparison:
    """All ways side by side.

    Attributes:
        ways: The tuned hosted model first.
        break_even: Of each tuned way against the prompt with examples (or the plain prompt).
        tokens_saved_a_call: By the shorter prompt of the tuned model.
        quality: How the runs differ row by row, as `tunesmith compare` tells it; ``None`` with one run.
        notes: What the figures do not say.
        picture: SVG of cost over the number of calls.
    """

    ways: list[Way]
    break_even: list[BreakEven]
    tokens_saved_a_call: float | None
    quality: dict[str, Any] | None
    notes: list[str]
    picture: Path | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"ways": [way.as_dict() for way in self.ways]}


def compare(
    hosted: Run,
    others: Sequence[Run],
    table: Table,
    *,
    usd_per_hour: float | None = None,
    calls_a_month: float | None = None,
    today: date | None = None,
) -> HostedComparison:
    """Put a hosted run beside local ones that were measured on the same rows.

    Args:
        hosted: A finished run with `method: hosted`.
        others: Finished runs, tuned here or quantized; also further hosted ones.
        table: For the day on which each model is shut down.
        usd_per_hour: What an hour of this machine costs; ``None`` leaves local money out.
        calls_a_month: How many calls are expected.
        today: From which on they are made.

    Raises:
        UsageError: A run is not finished, was not hosted, or was measured on other rows.
    """
    if hosted.recipe.method != "hosted":
        fix = "name a hosted run first; runs that were tuned here alone: `tunesmith compare`"
        raise UsageError("the first run must have `method: hosted`", where=str(hosted.path), fix=fix)
    today, notes = today or clock.today(), list[str]()
    ways = _hosted_ways(hosted, table, notes)
    for run in others:
        there = run.recipe.method == "hosted"
        ways += _hosted_ways(run, table, notes)[:1] if there else [_local_way(run, usd_per_hour)]
    quality = None
    if others:
        metric, rows, verdict = compare_runs([hosted, *others])
        quality = {"metric": metric, "runs": rows, "verdict": verdict}
    if usd_per_hour is None and any(way.kind == "local" for way in ways):
        notes.append("what this machine costs is not counted: `--machine-usd-per-hour` says it")
    if {way.latency_of for way in ways} == {SINGLE, BATCHES}:
        notes.append(f"seconds a call are not alike: hosted ones are the {SINGLE}, local ones the {BATCHES}")
    for run in (hosted, *others):
        notes += _stale(run, table, today) if run.recipe.hosted is not None else []
    points = _break_evens(ways, today, calls_a_month)
    prompt = _prompted(ways)
    tuned = ways[0]
    saved = None
    if prompt is not None and prompt.prompt_tokens is not None and tuned.prompt_tokens is not None:
        saved = prompt.prompt_tokens - tuned.prompt_tokens
    picture = hosted.path / "cost.svg"
    if any(way.usd_per_1000_calls is not None and way.fixed_usd is not None for way in ways):
        disk.write_text(picture, cost_chart(ways, points, _last_calls(ways, today, calls_a_month)))
    else:
        notes.append("no way has a known price, so there is no picture")
    done = HostedComparison(ways, points, saved, quality, notes, picture if picture.is_file() else None)
    disk.write_json(hosted.path / "compare.json", done.as_dict())
    return done


SINGLE, BATCHES = f"median of single calls, {AT_ONCE} at a time", "mean over batches"


def _hosted_ways(run: Run, table: Table, notes: list[str]) -> list[Way]:
    summary = run.summary()
    facts = summary["hosted"]
    if not summary["metrics"]:
        raise UsageError("the run was not measured", where=str(run.path), fix="keep test rows: `data.test`")
    measured = {"tuned": run.metrics, **run.baselines}
    ways = []
    for name, usage in facts["usage"].items():
        metric, value = _deciding(measured[name])
        calls, tuned = max(1, usage["calls"]), name == "tuned"
        ways.append(
            Way(
                name=f"{usage['model']}" if tuned else f"{facts['provider']} {name}",
                kind="hosted",
                tuned=tuned,
                metric=metric,
                quality=value.as_dict(),
                fixed_usd=facts["training_cost_usd"] if tuned else 0.0,
                usd_per_1000_calls=usage["usd_per_1000_calls"],
                prompt_tokens=usage["prompt_tokens"] / calls,
                written_tokens=usage["written_tokens"] / calls,
                latency=usage["latency"],
                latency_of=SINGLE,
                shutdown=_shutdown(run, table, run.recipe.model if tuned else usage["model"]),
            )
        )
        if usage["usd_per_1000_calls"] is None:
            notes.append(f"the price of a call of {usage['model']} is not known")
    return ways


def _shutdown(run: Run, table: Table, model: str) -> date | None:
    """The earlier of the table's day and the one that the provider itself gave when the run's job was made."""
    assert run.recipe.hosted is not None
    found = find_model(table.provider(run.recipe.hosted.provider), model)
    told = run.summary()["hosted"].get("shutdown") if model == run.recipe.model else None
    days = [found[1].shutdown if found else None, date.fromisoformat(told) if told else None]
    return min((day for day in days if day is not None), default=None)


def _stale(run: Run, table: Table, today: date) -> list[str]:
    """Warnings of prices that were seen long ago."""
    assert run.recipe.hosted is not None
    provider = table.provider(run.recipe.hosted.provider)
    found = [find_model(provider, usage["model"]) for usage in run.summary()["hosted"]["usage"].values()]
    named = [find_model(provider, run.recipe.model), *found]
    return list(stale_warnings(table, provider, today, [line[0] for line in named if line is not None]))


def _local_way(run: Run, usd_per_hour: float | None) -> Way:
    summary = run.summary()
    metric, value = _deciding(run.metrics)
    system = _tuned_system(run)
    latency = 1 / system["rows_per_second"] if system.get("rows_per_second") else None
    hourly = None if usd_per_hour is None else usd_per_hour / 3600
    return Way(
        name=run.id,
        kind="local",
        tuned=True,
        metric=metric,
        quality=value.as_dict(),
        fixed_usd=None if hourly is None else hourly * summary["tuning_seconds"],
        usd_per_1000_calls=None if hourly is None or latency is None else 1000 * hourly * latency,
        prompt_tokens=system.get("prompt_tokens_per_row"),
        written_tokens=system.get("written_tokens_per_row"),
        latency=latency,
        latency_of=BATCHES,
    )


def _deciding(metrics: dict[str, Interval]) -> tuple[str, Interval]:
    """The first metric: the one that decides."""
    name = next(iter(metrics))
    return name, metrics[name]


def _tuned_system(run: Run) -> dict[str, Any]:
    """What the report says of the tuned model's speed; nothing if there is none."""
    path = run.path / "report.json"
    if not path.is_file():
        return {}
    systems = json.loads(path.read_text(encoding="utf-8")).get("systems", [])
    return next((dict(system) for system in systems if system.get("name") == "tuned"), {})


def _prompted(ways: Sequence[Way]) -> Way | None:
    """What tuning replaces: the prompt with examples, else the plain one."""
    untuned = [way for way in ways if not way.tuned]
    return next((way for way in untuned if "few-shot" in way.name), untuned[0] if untuned else None)


def _break_evens(ways: Sequence[Way], today: date, calls_a_month: float | None) -> list[BreakEven]:
    other = _prompted(ways)
    if other is None or other.usd_per_1000_calls is None:
        return []
    return [
        break_even(
            way.name,
            other.name,
            fixed=way.fixed_usd,
            call=way.usd_per_1000_calls / 1000,
            other_call=other.usd_per_1000_calls / 1000,
            shutdown=way.shutdown,
            today=today,
            calls_a_month=calls_a_month,
        )
        for way in ways
        if way.tuned and way.fixed_usd is not None and way.usd_per_1000_calls is not None
    ]


def _last_calls(ways: Sequence[Way], today: date, calls_a_month: float | None) -> dict[str, float]:
    """Of each tuned way that will be shut down: how many calls there will be until then."""
    if calls_a_month is None:
        return {}
    days = {way.name: (way.shutdown - today).days for way in ways if way.tuned and way.shutdown is not None}
    return {name: max(0.0, left * calls_a_month / DAYS_A_MONTH) for name, left in days.items()}


def cost_chart(ways: Sequence[Way], points: Sequence[BreakEven], last: Mapping[str, float]) -> str:
    """Dollars over the number of calls, a line a way; where a tuned model is shut down, a dotted line in its colour.

    Args:
        ways: Those without a known price are left out.
        points: Marked on the lines.
        last: Of ways that will be shut down: calls until then, if they are known.
    """
    known = [(way, way.fixed_usd or 0.0, way.usd_per_1000_calls) for way in ways if way.fixed_usd is not None]
    drawn = [(way, fixed, call / 1000) for way, fixed, call in known if call is not None]
    reached = [point.calls for point in points if point.calls]
    most = max([1e5, *(10 * calls for calls in reached), *(2 * count for count in last.values())])
    calls = np.geomspace(10, most, 200)
    with charts.new_figure(8.0, 4.6) as figure:
        axes = figure.add_subplot()
        for number, (way, fixed, call) in enumerate(drawn):
            colour = COLOURS[number % len(COLOURS)]
            axes.plot(calls, np.maximum(1e-6, fixed + calls * call), color=colour, label=way.name, lw=1.8)
            mine = [point.calls for point in points if point.way == way.name and point.calls]
            axes.plot(mine, [fixed + n * call for n in mine], MARKERS[number % len(MARKERS)], color=colour, ms=7)
            if last.get(way.name):
                axes.axvline(last[way.name], color=colour if len(last) > 1 else charts.MUTED, linestyle=":")
                place = (3, -4 - 12 * list(last).index(way.name))
                axes.annotate("shut down", (last[way.name], 1), place, xycoords=("data", "axes fraction"), **_NEAR)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("calls")
        axes.set_ylabel("dollars, training included")
        axes.legend(loc="upper left", fontsize=9)
        text = "; ".join(point.verdict for point in points) or "no break-even is known"
        return on_its_own(charts.as_svg(figure, "cost", f"Cost over the number of calls. {text}."))


_NEAR: dict[str, Any] = {"textcoords": "offset points", "fontsize": 8.5, "va": "top"}
