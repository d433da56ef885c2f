"""Learning from preferences through the whole pipeline, on tiny models."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest

import tunesmith
from conftest import write_jsonl
from tunesmith import pipeline
from tunesmith.cli import main
from tunesmith.prediction.predicting import Prediction
from tunesmith.recipe_file import parse


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    good, bad = ["great", "lovely", "fine"], ["awful", "dull", "bad"]
    rows = [
        {
            "prompt": f"what is the film {n} and the plot {n % 7}",
            "chosen": f"the film is {good[n % 3]} {n % 5}",
            "rejected": f"the film is {bad[n % 3]} {n % 4}",
        }
        for n in range(120)
    ]
    return write_jsonl(tmp_path / "pairs.jsonl", rows)


def tune(pairs: Path, folder: Path, model: Path, **more: Any) -> tunesmith.Run:
    tree = {"task": "preference", "model": str(model), "data": {"train": str(pairs)}, "precision": "fp32", **more}
    return pipeline.run(parse(tree), run_dir=folder)


@pytest.mark.parametrize("fixture", ["tiny_encoder", "tiny_decoder"])
def test_a_reward_model_learns_which_answer_is_better(
    fixture: str, request: pytest.FixtureRequest, pairs: Path, tmp_path: Path
) -> None:
    settings = {"epochs": 4, "learning_rate": 4e-3}
    run = tune(pairs, tmp_path / "run", request.getfixturevalue(fixture), method="reward", training=settings)
    assert run.metrics["pair_accuracy"].value > 0.9
    assert run.baselines["longer"]["pair_accuracy"].value < 0.9
    again = tunesmith.load(run.path)
    good, bad = again.predict([{"chosen": "the film is great"}, {"chosen": "the film is awful"}])
    assert float(good.answer) > float(bad.answer)


@pytest.mark.parametrize("loss", ["sigmoid", "simpo", "orpo", "ipo"])
def test_a_model_comes_to_prefer_the_better_answer(loss: str, tiny_decoder: Path, pairs: Path, tmp_path: Path) -> None:
    training = {"epochs": 3, "learning_rate": 3e-3, "preference": {"loss": loss}}
    run = tune(pairs, tmp_path / "run", tiny_decoder, method="preference", training=training)
    base = run.baselines["base"]["pair_accuracy"].value
    assert run.metrics["pair_accuracy"].value > max(0.9, base)


def test_a_model_comes_to_write_what_was_liked(
    tiny_decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["great", "lovely", "awful", "dull"]
    rows = [
        {"prompt": f"what is the film {n}", "completion": f"the film is {words[n % 4]}", "label": n % 4 < 2}
        for n in range(80)
    ]
    data = {"train": str(write_jsonl(tmp_path / "thumbs.jsonl", rows)), "test": 0.4}
    tree = {"task": "feedback", "model": str(tiny_decoder), "method": "preference", "data": data, "precision": "fp32"}
    training = {"epochs": 3, "learning_rate": 3e-3}
    run = pipeline.run(parse(tree | {"training": training}), run_dir=tmp_path / "run")
    assert run.recipe.stages[0].objective == "kto"
    assert run.metrics["liking"].low > run.baselines["base"]["liking"].high
    assert isinstance(run.predict(["what is the film"], max_new_tokens=3)[0].answer, str)
    asked: list[Any] = []
    monkeypatch.setattr(tunesmith.Run, "predict", lambda self, rows: asked.append(rows) or [Prediction("good")])
    monkeypatch.setattr(sys, "stdin", io.StringIO("what\nand now\n"))
    assert main.run(["chat", str(run.path), "--system", "be kind"]) == 0
    [[second]] = asked[1:]
    assert [turn["content"] for turn in second["messages"]][:4] == ["be kind", "what", "good", "and now"]
