"""Which way to go: the table of rules, the trials, and the ranking."""

from __future__ import annotations

import csv
import dataclasses
import random
import re
from datetime import date
from pathlib import Path

import pytest

from tunesmith import advice
from tunesmith.advice import rules, trials
from tunesmith.advice.trials import Trial
from tunesmith.errors import DataError, NotFoundError, UsageError
from tunesmith.planning import machine
from tunesmith.planning.machine import Machine
from tunesmith.recipe import Recipe
from tunesmith.recipe_file import parse

HERE = Machine("test", "cpu", 1e11, 1e11, 1e10, 1e8, 10**10, price=1.0)


def test_the_table_covers_every_way_and_every_task():
    table = rules.load()
    assert list(table.ways) == ["prompt", "few-shot", "features", "lora", "full", "distilled", "hosted"]
    for name, way in table.ways.items():
        assert way.sources and way.quality[-1].when == {}, f"{name}: the last guess must hold for all"
        assert bool(way.recipe) == (name not in ("prompt", "hosted"))


@pytest.mark.parametrize(
    ("conditions", "facts", "expected"),
    [
        ({}, {}, True),
        ({"rows": {"at_least": 10}}, {"rows": 10}, True),
        ({"rows": {"at_least": 10, "below": 20}}, {"rows": 20}, False),
        ({"task": ["a", "b"]}, {"task": "b"}, True),
        ({"private": False}, {"private": True}, False),
        ({"rows_per_label": {"below": 5}}, {"rows_per_label": None}, False),
        ({"rows": {"at_least": 1}, "task": "a"}, {"rows": 1, "task": "b"}, False),
    ],
)
def test_conditions(conditions, facts, expected):
    assert rules.holds(conditions, facts) is expected


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("share: [0.0, 0.3]", "share: [0.3, 0.0]"), "lower one first"),
        (("parameters: {below: 1.0e9}", "weather: {below: 1.0e9}"), "weather"),
        (("sources: [gpt3]", "sources: [gpt9]"), "gpt9"),
        (("trains: false", "trains: perhaps"), "trains"),
        (("version: 1", "version: ["), "no YAML"),
    ],
)
def test_a_wrong_table_of_rules_says_what_is_wrong(tmp_path, change, said):
    shipped = (Path(rules.__file__).parent / "ways.yaml").read_text(encoding="utf-8")
    path = tmp_path / "own.yaml"
    path.write_text(shipped.replace(*change, 1), encoding="utf-8")
    with pytest.raises(UsageError, match=said):
        rules.load(path)
    with pytest.raises(NotFoundError):
        rules.load(tmp_path / "nowhere.yaml")


def test_times_are_read():
    assert [trials.seconds_of(text) for text in ("90", "90s", "10m", "1.5 h")] == [90, 90, 600, 5400]
    for text in ("", "soon", "-5m", "0"):
        with pytest.raises(UsageError, match="no time"):
            trials.seconds_of(text)


class Bench:
    """Trials that cost a second for each ten rows, on a clock of their own."""

    def __init__(self, values: dict[str, float]) -> None:
        self.values, self.now = values, 0.0
        self.made: list[tuple[str, int]] = []

    def run(self, way: str, rows: int) -> Trial:
        if way == "broken":
            raise DataError("no")
        self.made.append((way, rows))
        self.now += rows / 10
        value = self.values[way]
        return Trial(way, rows, "accuracy", value, value - 0.1, value + 0.1, rows / 10)


def test_the_better_half_goes_on_with_more_rows():
    bench = Bench({"a": 0.5, "b": 0.8, "c": 0.7, "d": 0.9})
    found = trials.halving(["a", "b", "c", "d"], 900, 1e9, bench.run, clock=lambda: bench.now)
    assert bench.made == [*((way, 100) for way in "abcd"), ("d", 300), ("b", 300), ("d", 900)]
    assert {way: trial.rows for way, trial in found.items()} == {"a": 100, "b": 300, "c": 100, "d": 900}


def test_no_trial_is_begun_that_would_end_too_late():
    bench = Bench({"a": 0.5, "b": 0.8})
    found = trials.halving(["a", "b"], 900, 60.0, bench.run, clock=lambda: bench.now)
    assert bench.made == [("a", 100), ("b", 100)] and bench.now <= 60  # 300 rows would take 30 s, until 50 of 40
    assert set(found) == {"a", "b"}
    bench = Bench({"a": 0.5, "b": 0.8})
    assert set(trials.halving(["a", "b"], 900, 5.0, bench.run, clock=lambda: bench.now)) == {"a"}


def test_early_rungs_leave_the_later_ones_their_time():
    """Ways take 10 s of few rows and 90 s of all: in 300 s ten of twelve are tried, so that the best sees all."""
    names = [f"way{n}" for n in range(12)]
    bench = Bench({name: n / 12 for n, name in enumerate(names)})
    found = trials.halving(names, 900, 300.0, bench.run, clock=lambda: bench.now)
    assert [count for _, count in bench.made].count(100) == 10 and bench.now <= 300  # the first rung's share is 100 s
    assert [count for _, count in bench.made].count(300) == 3  # 30 s each of what is left until 200 s
    assert bench.made[-1] == ("way9", 900) and found["way9"].rows == 900


def test_a_plan_says_what_is_too_slow_to_be_tried():
    bench = Bench({"quick": 0.5, "slow": 0.8})
    plans = {"quick": 90.0, "slow": 1e5}
    found = trials.halving(["quick", "slow"], 900, 300.0, bench.run, planned=plans, clock=lambda: bench.now)
    assert set(found) == {"quick"} and found["quick"].rows == 900


def test_a_way_that_fails_does_not_stop_the_others():
    bench = Bench({"a": 0.5})
    assert set(trials.halving(["broken", "a"], 100, 1e9, bench.run, clock=lambda: bench.now)) == {"a"}


def test_less_can_be_better():
    bench = Bench({"a": 0.5, "b": 0.8})

    def run(way: str, rows: int) -> Trial:
        return dataclasses.replace(bench.run(way, rows), better_is=-1)

    assert trials.halving(["a", "b"], 180, 1e9, run, clock=lambda: bench.now)["a"].rows == 180


def test_the_last_rung_is_all_rows():
    assert trials.rungs(9000) == [1000, 3000, 9000]
    assert trials.rungs(200) == [67, 200]
    assert trials.rungs(30) == [30]


@pytest.fixture
def reviews(tmp_path: Path, tiny_encoder: Path) -> Recipe:
    source = random.Random(0)
    path = tmp_path / "reviews.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for number in range(160):
            good = number % 2 == 0
            words = source.choices(["good", "fine", "great"] if good else ["bad", "poor", "dull"], k=4)
            writer.writerow([" ".join([*words, "film", str(number)]), "yes" if good else "no"])
    return parse(
        {
            "task": "text-classification",
            "model": str(tiny_encoder),
            "data": {"train": str(path)},
            "training": {"epochs": 1},
        }
    )


@pytest.fixture(autouse=True)
def known_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    rates = {"fp32": 1e11, "bf16": 1e11, "copy": 1e10, "draws": 1e8}
    monkeypatch.setattr(machine, "speed", lambda device: dict(rates))


def test_pictures_are_refused_before_anything_is_read():
    recipe = parse({"task": "image-classification", "model": "nothing", "data": {"train": "nowhere"}})
    with pytest.raises(UsageError, match="reads pictures") as refused:
        advice.advise(recipe, HERE)
    assert refused.value.where == "task" and "tunesmith compare" in refused.value.fix


def test_ways_are_ranked_and_what_cannot_be_is_last(reviews):
    found = advice.advise(reviews, HERE, advice.Limits(private=True))
    ways = {way.way: way for way in found.ways}
    assert found.facts["model"] == "encoder" and found.facts["rows_per_label"] > 50
    assert ways["prompt"].ruled_out == "an encoder has no prompt"
    assert "leave" in str(ways["hosted"].ruled_out) and "--teacher" in str(ways["distilled"].ruled_out)
    possible = [way for way in found.ways if way.ruled_out is None]
    assert found.ways[: len(possible)] == tuple(possible) and len(possible) == 4
    middles = [way.quality.expected for way in possible]
    assert middles == sorted(middles, reverse=True)
    for way in possible:
        assert 0.5 <= way.quality.low < way.quality.high <= 1.0 and way.metric == "accuracy"  # no worse than guessing
        assert way.seconds and way.memory_bytes and way.cost and way.latency and way.sources and way.reasons


def test_limits_rule_out(reviews):
    found = advice.advise(reviews, HERE, advice.Limits(budget=0.0, latency=1e-9), today=date(2026, 11, 27))
    assert all(way.ruled_out for way in found.ways)
    said = {way.way: str(way.ruled_out) for way in found.ways}
    assert "budget" in said["hosted"] and "budget" in said["full"]
    small = dataclasses.replace(HERE, memory_bytes=10)
    assert all(
        "and 10 bytes are there" in str(w.ruled_out) for w in advice.advise(reviews, small).ways if w.way == "full"
    )


def test_a_provider_costs_what_the_table_of_prices_says_today(reviews, tmp_path, monkeypatch):
    """Models that are shut down do not count, nor providers without jobs; the next step is a command that runs."""
    import shlex

    from tunesmith.cli.main import run

    def hosted(day):
        return next(way for way in advice.advise(reviews, HERE, today=day).ways if way.way == "hosted")

    now = hosted(date(2026, 11, 27))
    assert now.ruled_out is None and now.recipe["model"] == "gpt-4o-mini"  # gpt-4.1-nano went in October
    assert now.recipe == {"method": "hosted", "model": "gpt-4o-mini", "hosted": {"provider": "openai"}}
    assert now.cost.high / now.cost.low == pytest.approx(25 / 3)
    reasons = " ".join(now.reasons)
    assert "shut down on 2027-01-14" in reasons and "last seen on 2025-12-31" in reasons
    command = shlex.split(re.search("next: `(.*)`", reasons)[1])
    with monkeypatch.context() as patch:  # the command asks what day it is
        open_for_ever = "jobs_until: 2999-01-01, models: {gpt-4o-mini: {shutdown: 2999-01-01}}"
        (tmp_path / "open.yaml").write_text(f"providers: {{openai: {{{open_for_ever}}}}}\n")
        patch.setenv("TUNESMITH_PRICES", str(tmp_path / "open.yaml"))
        assert command[:3] == ["tunesmith", "hosted", "estimate"] and run(command[1:]) == 0
    closed = hosted(date(2027, 1, 6))
    assert "TUNESMITH_PRICES" in closed.ruled_out and closed.cost is None and closed.recipe == {}
    own = tmp_path / "prices.yaml"
    own.write_text("providers: {nebius: {models: {llama-8b: {training: 2, seen: 2027-01-01, source: invoice}}}}\n")
    monkeypatch.setenv("TUNESMITH_PRICES", str(own))
    later = hosted(date(2027, 1, 6))
    assert later.recipe["model"] == "llama-8b" and later.cost.low == later.cost.high > 0
    assert "--provider nebius" in later.reasons[-1]


def test_trials_replace_guesses_by_measurements(reviews, monkeypatch):
    """All are measured on the same rows, which none learned from and which are no test rows; warnings come once."""
    from tunesmith import pipeline
    from tunesmith.data.prepare import prepare
    from tunesmith.events import Notice

    measured_on, learned_from = [], []
    whole = pipeline.run

    def spy(recipe, **given):
        for part in given["data"]:
            measured_on.append({row.key for row in part.test})
            learned_from.append({row.key for row in (*part.train, *part.validation)})
        return whole(recipe, **given)

    monkeypatch.setattr(pipeline, "run", spy)
    monkeypatch.setattr(trials, "FEWEST_ROWS", 30)
    heard = []
    found = advice.advise(reviews, HERE, trial_seconds=600.0, on_event=heard.append)
    measured = [way for way in found.ways if way.measured_rows]
    assert len(measured) >= 2 and found.ways[: len(measured)] == tuple(measured)
    assert all(way.quality.low <= way.quality.expected <= way.quality.high for way in measured)
    data = prepare(reviews)
    assert any(way.measured_rows and way.measured_rows > 0.75 * len(data.train) for way in measured)
    assert measured_on and all(rows == measured_on[0] for rows in measured_on) and len(measured_on[0]) >= 20
    assert not measured_on[0] & {row.key for row in data.test} and not measured_on[0] & set().union(*learned_from)
    smaller, larger = sorted(learned_from, key=len)[0], sorted(learned_from, key=len)[-1]
    assert smaller < larger  # each rung has the rows of the one before
    warned = [event.message for event in heard if isinstance(event, Notice) and event.level == "warning"]
    assert len([text for text in warned if "rows to test on" in text]) == 1 and len(warned) == len(set(warned))
