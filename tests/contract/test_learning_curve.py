"""The learning curve: from the command line on a tiny model, and its arithmetic."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from conftest import labelled_rows, write_jsonl
from tunesmith import learning_curve
from tunesmith.cli import main
from tunesmith.events import nobody
from tunesmith.learning_curve import Point, labels_needed, over_seeds
from tunesmith.recipe import Evaluate
from tunesmith.recipe_file import load


@pytest.fixture
def recipe(tmp_path: Path, tiny_encoder: Path) -> Path:
    tree = {
        "task": "text-classification",
        "model": str(tiny_encoder),
        "data": {"train": str(write_jsonl(tmp_path / "reviews.jsonl", labelled_rows(80))), "test": 0.3},
        "precision": "fp32",
        "training": {"learning_rate": 3e-3, "epochs": 1, "max_steps": 5, "batch_size": 4},
        "evaluate": {"resamples": 200},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(tree), encoding="utf-8")
    return path


def curve(recipe: Path, folder: Path, capsys: pytest.CaptureFixture[str], *more: str, code: int = 0) -> dict:
    capsys.readouterr()
    arguments = ["compare", str(recipe), "--run-dir", str(folder), "--seeds", "2", *more, "--json"]
    assert main.run(arguments) == code
    return json.loads(capsys.readouterr().out)


def test_each_way_is_measured_with_each_number_and_a_second_call_does_nothing_again(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("--shots", "2,all", "--methods", "features,full")
    found = curve(recipe, tmp_path / "curve", capsys, *asked)
    assert [(p["way"], p["shots"], len(p["values"])) for p in found["points"]] == [
        ("features", 2, 2), ("features", None, 1), ("full", 2, 2), ("full", None, 1),
    ]  # fmt: skip
    assert found["points"][0]["labels"] == 4 < found["points"][1]["labels"]
    assert all(p["low"] <= p["value"] <= p["high"] for p in found["points"])
    assert found["target"] == pytest.approx(0.95 * max(p["value"] for p in found["points"]))
    assert set(found["labels_needed"]) == {"features", "full"} and found["verdict"]
    picture = ElementTree.parse(tmp_path / "curve" / "curve.svg").getroot()
    assert picture.tag.endswith("svg") and "var(--" not in (tmp_path / "curve" / "curve.svg").read_text()
    monkeypatch.setattr("tunesmith.training.stages.tune_stages", None)  # would fail, were it called
    assert curve(recipe, tmp_path / "curve", capsys, *asked) == found
    text = recipe.read_text(encoding="utf-8").replace("0.003", "0.004")
    recipe.write_text(text, encoding="utf-8")
    error = curve(recipe, tmp_path / "curve", capsys, *asked, code=2)["error"]
    assert "another recipe" in error["what"]


def test_validation_data_of_their_own_count_as_labels(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = json.loads(recipe.read_text(encoding="utf-8"))
    held = [{**row, "text": f"{row['text']} held back"} for row in labelled_rows(12)]
    tree["data"]["validation"] = [str(write_jsonl(tmp_path / "held.jsonl", held))]
    recipe.write_text(json.dumps(tree), encoding="utf-8")
    found = curve(recipe, tmp_path / "curve", capsys, "--shots", "2,4", "--methods", "features")
    assert [point["labels"] for point in found["points"]] == [4 + 12, 8 + 12]


@pytest.mark.parametrize(
    ("more", "code", "says"),
    [
        (("--shots", "2,60"), 3, "'negative' has"),
        (("--shots", "0"), 2, "no number of examples"),
        (("--shots", "2", "--methods", "fewshot"), 2, "no way 'fewshot'"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_anything_runs(
    more: tuple[str, ...], code: int, says: str, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = curve(recipe, tmp_path / "curve", capsys, *more, code=code)["error"]
    assert says in error["what"] and error["fix"]
    assert not (tmp_path / "curve" / "runs").exists()


@pytest.mark.parametrize(
    ("model", "ways", "says"),
    [
        ("tiny_encoder", "features,in-context", "the way `in-context`"),
        ("tiny_decoder", "features,few-shot", "the way `few-shot`"),
        ("tiny_t5", "peft,features", "the way `features`"),
    ],
)
def test_a_way_that_the_model_cannot_go_is_refused_before_the_first_run(
    model: str,
    ways: str,
    says: str,
    recipe: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    tree = json.loads(recipe.read_text(encoding="utf-8")) | {"model": str(request.getfixturevalue(model))}
    recipe.write_text(json.dumps(tree), encoding="utf-8")
    error = curve(recipe, tmp_path / "curve", capsys, "--shots", "2", "--methods", ways, code=2)["error"]
    assert says in error["what"] and "--methods" in error["fix"] and "@MODEL" in error["fix"]
    assert not (tmp_path / "curve").exists()


@pytest.mark.parametrize("model", ["tiny_encoder", "tiny_decoder", "tiny_t5"])
def test_the_lines_of_themselves_suit_the_model(model: str, recipe: Path, request: pytest.FixtureRequest) -> None:
    asked = load(recipe, overrides=[f"model={request.getfixturevalue(model)}"])
    ways = learning_curve._usual_ways(asked, nobody)
    assert ("few-shot" in ways) is (model == "tiny_encoder") and ("in-context" in ways) is (model == "tiny_decoder")
    learning_curve._refuse_impossible(asked, ways, nobody)


def test_few_examples_are_gone_through_often_enough(recipe: Path) -> None:
    from tunesmith.recipe_file import load

    bare = load(recipe, overrides=["training.max_steps=null"])
    bare = bare.model_copy(update={"training": bare.training.model_validate({"batch_size": 4})})
    asked = learning_curve._with(bare, "full", 2, 0)
    assert learning_curve._with_enough_updates(asked, bare).training.epochs == learning_curve.FEWEST_UPDATES


def test_limits_cover_rows_and_seeds() -> None:
    """With equal rows, only the seeds differ: the standard error of the mean of 4 seeds of values 0 and 1 is 0.25."""
    right = np.repeat([[0.0], [1.0], [0.0], [1.0]], 50, axis=1)
    found = over_seeds(right, Evaluate(resamples=2000))
    assert found.value == 0.5
    assert (found.low, found.high) == (0.0, 1.0)
    rows = np.tile([0.0, 1.0], (3, 200))
    alone = over_seeds(rows, Evaluate(resamples=2000))
    half = 1.96 * 0.5 / np.sqrt(400)
    assert alone.low == pytest.approx(0.5 - half, abs=0.01) and alone.high == pytest.approx(0.5 + half, abs=0.01)


def test_the_fewest_labels_that_reach_a_target() -> None:
    points = [Point("a", k, 2 * k, [v], v, v, v, 0.0) for k, v in ((1, 0.5), (2, 0.8), (4, 0.7), (8, 0.9))]
    assert [labels_needed(points, target) for target in (0.4, 0.75, 0.85, 0.95)] == [2, 4, 16, None]
