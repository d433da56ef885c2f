"""`method: features` with other heads and other layers, from a recipe to answers of the saved model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tunesmith
from conftest import labelled_rows, write_jsonl
from tunesmith import pipeline
from tunesmith.errors import RecipeError
from tunesmith.models.saving import load_artefact
from tunesmith.recipe_file import parse


def run(model: Path, folder: Path, **parameters: Any) -> tunesmith.Run:
    folder.mkdir(exist_ok=True)
    data = write_jsonl(folder / "rows.jsonl", labelled_rows(120))
    tree = {
        "task": "text-classification",
        "model": str(model),
        "method": "features",
        "data": {"train": str(data), "validation": 0.1, "test": 0.2},
        "parameters": {"kind": "none", **parameters},
        "evaluate": {"baselines": [], "resamples": 200},
    }
    return pipeline.run(parse(tree), run_dir=folder / "run")


@pytest.mark.parametrize("head", ["svm", "knn", "boosting"])
def test_a_head_is_chosen_saved_and_asked(head: str, tiny_encoder: Path, tmp_path: Path) -> None:
    found = run(tiny_encoder, tmp_path, head=head)
    said = (found.path / "events.jsonl").read_text(encoding="utf-8")
    assert "cross-validated accuracy" in said
    model, _ = load_artefact(found.model_folder)
    assert type(model.network.classifier).__name__ == {"knn": "Neighbours", "boosting": "Trees"}.get(head, "Linear")
    answers = tunesmith.load(found.path).predict([row["text"] for row in labelled_rows(120)])
    right = [answer.answer == row["label"] for answer, row in zip(answers, labelled_rows(120), strict=True)]
    assert sum(right) > 80  # most of them were learned from
    assert (found.model_folder / "2_Dense").is_dir() == (head == "svm")
    assert not [path for path in found.model_folder.rglob("*") if path.suffix in (".pkl", ".joblib", ".skops")]


def test_the_layers_above_the_one_that_is_named_are_cut_off(tiny_encoder: Path, tmp_path: Path) -> None:
    found = run(tiny_encoder, tmp_path, layer=0)
    assert json.loads((found.model_folder / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"] == 1
    [answer] = tunesmith.load(found.path).predict(["a great film"])
    assert answer.answer in ("positive", "negative")
    with pytest.raises(RecipeError, match=r"2 layers, 0 to 1"):
        run(tiny_encoder, tmp_path / "other", layer=2)


def test_vectors_are_computed_once(tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tunesmith.models import vectors

    run(tiny_encoder, tmp_path / "one", head="svm")
    monkeypatch.setattr(vectors, "embeddings", None)  # every vector that a fit needs is in the cache by now
    assert run(tiny_encoder, tmp_path / "two", head="svm").metrics["accuracy"].value >= 0


@pytest.mark.parametrize(
    ("task", "parameters", "message"),
    [
        ("text-regression", {"head": "knn"}, "gives one label a text"),
        ("image-classification", {"layer": 2}, "for models of text"),
    ],
)
def test_what_does_not_go_together_is_refused(task: str, parameters: dict[str, Any], message: str) -> None:
    tree = {"task": task, "model": "minilm-l6", "method": "features", "data": {"train": "rows.csv"}}
    with pytest.raises(RecipeError, match=message):
        parse(tree | {"parameters": {"kind": "none", **parameters}})


def test_a_head_that_is_no_layer_cannot_be_gone_on_from() -> None:
    stages = [{"name": "probe", "parameters": {"kind": "none", "head": "best"}}, {"name": "all", "parameters": "full"}]
    tree = {"task": "text-classification", "model": "minilm-l6", "data": {"train": "rows.csv"}, "stages": stages}
    with pytest.raises(RecipeError, match="the next stage needs"):
        parse(tree)
