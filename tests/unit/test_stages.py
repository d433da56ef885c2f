"""Several stages in one run: each begins where the one before it ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import labelled_rows
from tunesmith import disk, pipeline, tune
from tunesmith.data.rows import Origin, Row
from tunesmith.models import inference
from tunesmith.models.saving import load_artefact
from tunesmith.prediction.answering import encode_rows
from tunesmith.recipe import Recipe
from tunesmith.recipe_file import parse
from tunesmith.runs import Run, read_events
from tunesmith.tasks import TASKS


def test_full_training_starts_from_the_head_of_a_fit(tiny_encoder: Path, tmp_path: Path) -> None:
    """With a rate of almost nothing the second stage answers as the fit does: its head was not made anew."""
    keys = {"task": "text-classification", "model": str(tiny_encoder), "evaluate": {"baselines": []}}
    rows = labelled_rows(120)
    fit = tune(rows, method="features", run_dir=tmp_path / "fit", on_event=lambda event: None, precision="fp32", **keys)
    both = tune(
        rows,
        method="full",
        run_dir=tmp_path / "both",
        on_event=lambda event: None,
        precision="fp32",
        training={"max_steps": 2, "learning_rate": 1e-9},
        stages=[
            {"name": "probe", "parameters": {"kind": "none"}},
            {"name": "tune", "parameters": {"kind": "full"}},
        ],
        **keys,
    )
    asked = [Row(row, Origin("asked", n)) for n, row in enumerate(labelled_rows(10, seed=3), 1)]
    found = []
    for run in (fit, both):
        model, _ = load_artefact(run.model_folder)
        found.append(inference.class_probabilities(model, encode_rows(model, asked, TASKS["text-classification"])))
    np.testing.assert_allclose(found[0], found[1], atol=1e-4)
    assert [event["stage"] for event in read_events(both.path) if event["type"] == "stage_started"] == ["tune"]
    assert both.summary()["tuning_seconds"] > 0 and fit.summary()["peak_memory_bytes"] > 0
    [updated] = [event for event in read_events(both.path) if event["type"] == "stage_finished"]
    assert both.summary()["peak_memory_bytes"] >= updated["peak_memory_bytes"]


def test_the_figures_are_of_all_stages_and_of_all_processes(tiny_encoder: Path, reviews: Path, tmp_path: Path) -> None:
    """Killed after its training and gone on with: nothing is trained again, and nothing is forgotten that it took."""
    run = pipeline.run(two_stages(tiny_encoder, reviews), run_dir=tmp_path / "run")
    events, before = list(read_events(run.path)), run.summary()
    ended = [event for event in events if event["type"] == "stage_finished"]
    assert [event["stage"] for event in ended] == ["one", "two"]
    assert before["tokens"] == sum(event["tokens"] for event in ended)
    assert before["tuning_seconds"] == pytest.approx(sum(event["seconds"] for event in ended))
    assert before["tokens_per_second"] == pytest.approx(before["tokens"] / before["tuning_seconds"])
    assert before["peak_memory_bytes"] == max(event["peak_memory_bytes"] for event in ended)
    assert within(events, before["seconds"])
    assert before["seconds"] > before["tuning_seconds"]

    kill(run)
    after = pipeline.resume(run.path).summary()
    assert (after["tokens"], after["tuning_seconds"]) == (before["tokens"], before["tuning_seconds"])
    assert after["peak_memory_bytes"] >= before["peak_memory_bytes"]
    killed, resumed = events[:-1], list(read_events(run.path))[len(events) - 1 :]
    assert within(resumed, after["seconds"] - (killed[-1]["time"] - killed[0]["time"]))


def test_a_stage_of_older_code_took_what_the_events_say(tiny_encoder: Path, reviews: Path, tmp_path: Path) -> None:
    """It left no figures of its own. What a rival of the same stages took while measuring is not its time."""
    run = pipeline.run(two_stages(tiny_encoder, reviews), run_dir=tmp_path / "run")
    before = run.summary()
    kill(run)
    [of_rival] = [e for e in read_events(run.path) if e["type"] == "stage_finished" and e["stage"] == "one"]
    disk.append_line(run.path / "events.jsonl", of_rival | {"seconds": 1e6})
    (run.path / "stages" / "1-one" / "taken.json").unlink()
    after = pipeline.resume(run.path).summary()
    assert (after["tokens"], after["tuning_seconds"]) == (before["tokens"], before["tuning_seconds"])


def test_measuring_again_replaces_the_time_of_the_evaluation_alone(
    tiny_encoder: Path, reviews: Path, tmp_path: Path
) -> None:
    """Also days after a kill between the summary and the last word; and a later resume does not count these days."""
    run = pipeline.run(two_stages(tiny_encoder, reviews), run_dir=tmp_path / "run")
    report = json.loads((run.path / "report.json").read_text(encoding="utf-8"))
    report["cost"]["seconds"] = {"rest": 60.0, "tune": 300.0, "evaluate": 40.0}
    disk.write_json(run.path / "report.json", report)
    log = run.path / "events.jsonl"
    killed = list(read_events(run.path))[:-1]
    log.unlink()
    for event in killed:
        disk.append_line(log, event | {"time": event["time"] - 3 * 24 * 3600})
    assert run.status == "stopped"
    pipeline.evaluate(run)
    seconds = json.loads((run.path / "report.json").read_text(encoding="utf-8"))["cost"]["seconds"]
    assert (seconds["rest"], seconds["tune"]) == (60.0, 300.0) and seconds["evaluate"] != 40.0
    assert run.summary()["seconds"] == sum(seconds.values())
    assert run.status == "stopped" and pipeline.resume(run.path).summary()["seconds"] < 3600


def within(events: list[dict[str, Any]], seconds: float) -> bool:
    """Whether that is the time of a process until it wrote its figures: after it measured, and before it ended."""
    measured = max(event["time"] for event in events if event["type"] == "evaluated")
    return bool(measured <= events[0]["time"] + seconds + 1e-6 <= events[-1]["time"])


def two_stages(model: Path, data: Path) -> Recipe:
    return parse(
        {
            "task": "text-classification",
            "model": str(model),
            "method": "full",
            "data": {"train": str(data)},
            "training": {"max_steps": 3, "batch_size": 8},
            "stages": [{"name": "one"}, {"name": "two", "training": {"max_steps": 2, "batch_size": 4}}],
            "evaluate": {"baselines": [], "resamples": 100},
        }
    )


def kill(run: Run) -> None:
    """Leave what a kill just before the last word would have left."""
    (run.path / "summary.json").unlink()
    log = run.path / "events.jsonl"
    lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
    assert '"run_finished"' in lines[-1]
    log.write_text("".join(lines[:-1]), encoding="utf-8")
