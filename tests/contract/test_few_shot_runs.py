"""Learning from few examples through the whole pipeline, on tiny models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import tunesmith
from tunesmith import pipeline, runs
from tunesmith.errors import UsageError
from tunesmith.recipe_file import parse


def tune(model: Path, data: Path, folder: Path, **more: Any) -> tunesmith.Run:
    tree = {
        "task": "text-classification",
        "model": str(model),
        "method": "few-shot",
        "data": {"train": str(data), "test": 0.3, "shots": 8},
        "precision": "fp32",
        "evaluate": {"baselines": ["majority", "features"], "resamples": 200},
        **more,
    }
    return pipeline.run(parse(tree), run_dir=folder)


def test_an_encoder_learns_from_eight_a_label_and_gets_a_head(
    tiny_encoder: Path, reviews: Path, tmp_path: Path
) -> None:
    settings = {"learning_rate": 3e-3, "contrastive": {"rounds": 30}}
    run = tune(tiny_encoder, reviews, tmp_path / "run", training=settings)
    assert run.metrics["accuracy"].value > run.baselines["features"]["accuracy"].value
    assert run.metrics["accuracy"].value > 0.8
    [good, bad] = tunesmith.load(run.path).predict(["a lovely film great", "the dull scene was awful"])
    assert (good.answer, bad.answer) == ("positive", "negative")
    before = load_file(tiny_encoder / "model.safetensors")
    after = load_file(run.model_folder / "model.safetensors")
    assert any(not before[name].equal(after[name]) for name in before.keys() & after.keys())


def test_examples_in_the_prompt_go_with_the_model(tiny_decoder: Path, reviews: Path, tmp_path: Path) -> None:
    shown = {"kind": "in-context", "examples": 4}
    run = tune(tiny_decoder, reviews, tmp_path / "run", parameters=shown)
    assert run.summary()["trainable_parameters"] == 0
    assert run.summary()["peak_memory_bytes"] > 0
    assert (run.model_folder / "in_context.json").is_file()
    answers = tunesmith.load(run.path).predict(["a lovely film great"])
    uncalibrated = tune(tiny_decoder, reviews, tmp_path / "other", parameters={**shown, "calibrate": False})
    others = tunesmith.load(uncalibrated.path).predict(["a lovely film great"])
    assert answers[0].probabilities != others[0].probabilities
    bare = run.baselines
    assert "majority" in bare


def test_an_encoder_has_no_prompt_and_a_writer_no_vectors(
    tiny_encoder: Path, tiny_decoder: Path, reviews: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="no prompt"):
        tune(tiny_encoder, reviews, tmp_path / "a", parameters="in-context")
    with pytest.raises(UsageError, match="in-context"):
        tune(tiny_decoder, reviews, tmp_path / "b")


@pytest.mark.parametrize("fixture", ["tiny_encoder", "tiny_decoder"])
def test_prompts_with_other_numbers_of_examples_are_other_baselines(
    fixture: str, request: pytest.FixtureRequest, reviews: Path, tmp_path: Path
) -> None:
    tree = {
        "task": "text-classification", "model": str(request.getfixturevalue(fixture)), "data": {"train": str(reviews)},
        "training": {"max_steps": 1}, "precision": "fp32",
        "evaluate": {"baselines": [{"few-shot": 1}, {"few-shot": 2}, {"few-shot": 1}], "resamples": 100, "limit": 10},
    }  # fmt: skip
    names = set(pipeline.run(parse(tree), run_dir=tmp_path / "run").baselines)
    ways = [""] if fixture == "tiny_encoder" else ["-random", "-nearest"]
    assert names == {f"few-shot-{k}{way}" for k in (1, 2) for way in ways}


def test_the_time_of_tuning_is_that_of_both_stages(tiny_encoder: Path, reviews: Path, tmp_path: Path) -> None:
    from tunesmith.runs import read_events

    run = tune(tiny_encoder, reviews, tmp_path / "run", evaluate={"baselines": ["majority"], "resamples": 200})
    [contrast] = [event for event in read_events(run.path) if event["type"] == "stage_finished"]
    summary = run.summary()
    assert summary["tuning_seconds"] > contrast["seconds"] > 0
    assert summary["tokens"] == contrast["tokens"] > 0
    assert summary["peak_memory_bytes"] >= contrast["peak_memory_bytes"] > 0


def test_one_example_of_each_label_is_enough_to_finish(tiny_encoder: Path, reviews: Path, tmp_path: Path) -> None:
    """There are no pairs of one label then, and no mean of their cosines, which once broke the report off."""
    tree = {
        "task": "text-classification",
        "model": str(tiny_encoder),
        "method": "few-shot",
        "data": {"train": str(reviews), "test": 0.3, "shots": 1},
        "evaluate": {"baselines": [], "resamples": 100},
    }
    run = pipeline.run(parse(tree), run_dir=tmp_path / "run")
    steps = [event for event in runs.read_events(run.path) if event["type"] == "step"]
    assert steps and all(set(step["metrics"]) == {"other"} for step in steps)
    assert (run.path / "report.html").is_file()
