"""Several labels a text, scores and grades from data to predictions, on tiny models: read, tuned, saved, loaded."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from conftest import write_jsonl
from tiny import Events
from tunesmith import pipeline
from tunesmith.data.prepare import prepare
from tunesmith.errors import DataError, RecipeError, UsageError
from tunesmith.events import Notice
from tunesmith.recipe_file import parse
from tunesmith.runs import Run

KEYS = {"good": ["great", "lovely"], "bad": ["awful", "dull"], "long": ["question", "answer"]}
WORTH = {"great": 2.0, "lovely": 1.0, "awful": -2.0, "dull": -1.0}
FILLER = ["the", "a", "film", "movie", "plot", "scene", "very", "quite"]


def labelled(count: int = 120) -> list[dict[str, Any]]:
    source = random.Random(0)
    rows = []
    for number in range(count):
        labels = [label for label in KEYS if source.random() < 0.45]
        words = source.choices(FILLER, k=source.randint(3, 6)) + [source.choice(KEYS[label]) for label in labels]
        source.shuffle(words)
        rows.append({"text": " ".join([*words, str(number)]), "labels": labels})
    return rows


def scored(count: int = 120) -> list[dict[str, Any]]:
    source = random.Random(1)
    rows = []
    for number in range(count):
        keys = source.choices(list(WORTH), k=1)
        words = source.choices(FILLER, k=4) + keys
        source.shuffle(words)
        rows.append({"text": " ".join([*words, str(number)]), "rating": 50 + 10 * WORTH[keys[0]]})
    return rows


def tuned(folder: Path, model: Path, rows: list[dict[str, Any]], events: Events, **recipe: Any) -> Run:
    data = {"train": str(write_jsonl(folder / "rows.jsonl", rows)), "test": 0.2}
    training = {"epochs": 6, "batch_size": 8, "learning_rate": 3e-3, "dropout": 0, **recipe.pop("training", {})}
    evaluate = {"baselines": ["majority", "features"], "resamples": 100}
    wanted = {"model": str(model), "data": data, "training": training, "evaluate": evaluate, **recipe}
    return pipeline.run(parse(wanted), run_dir=folder / "run", on_event=events)


def test_several_labels_a_text(tmp_path: Path, tiny_encoder: Path) -> None:
    events = Events()
    run = tuned(tmp_path, tiny_encoder, labelled(), events, task="multi-label-classification")
    assert run.metrics["micro_f1"].value > run.summary()["baselines"]["majority"]["micro_f1"]["value"]
    assert any("thresholds tuned on" in notice.message for notice in events.of(Notice))
    notes = json.loads((run.path / "model" / "tunesmith.json").read_text(encoding="utf-8"))
    assert len(notes["thresholds"]) == 3 and notes["form"] == "multi-label"
    [found] = run.predict(["great film question"])
    assert found.probabilities is not None and list(found.probabilities) == ["bad", "good", "long"]
    above = [
        n for n, cut in zip(found.probabilities, notes["thresholds"], strict=True) if found.probabilities[n] >= cut
    ]
    assert found.labels == above and found.answer == ("; ".join(above) or "none")
    report = json.loads((run.path / "report.json").read_text(encoding="utf-8"))
    assert [row["label"] for row in report["classes"]] == ["bad", "good", "long"]
    assert len(report["learned_from"]) == 3
    again = pipeline.evaluate(run)
    assert again.metrics["micro_f1"] == run.metrics["micro_f1"]


def test_stock_transformers_load_what_was_learned(tmp_path: Path, tiny_bert: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    run = tuned(
        tmp_path, tiny_bert, labelled(), Events(), task="multi-label-classification", method="full", precision="fp32"
    )  # fmt: skip
    stock = AutoModelForSequenceClassification.from_pretrained(run.path / "model").eval()
    assert stock.config.problem_type == "multi_label_classification"
    assert stock.config.id2label == {0: "bad", 1: "good", 2: "long"}
    tokens = AutoTokenizer.from_pretrained(run.path / "model")("great film question", return_tensors="pt")
    [found] = run.predict(["great film question"])
    theirs = torch.sigmoid(stock(**tokens).logits)[0].tolist()
    assert found.probabilities is not None and list(found.probabilities.values()) == pytest.approx(theirs, abs=1e-5)


@pytest.mark.parametrize("objective", ["mse", "huber"])
def test_scores_come_out_as_the_data_have_them(objective: str, tmp_path: Path, tiny_bert: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    run = tuned(tmp_path, tiny_bert, scored(), Events(), task="text-regression", objective=objective)
    assert run.metrics["r2"].value > 0.5 and run.metrics["rmse"].value < 12
    stock = AutoModelForSequenceClassification.from_pretrained(run.path / "model").eval()
    assert stock.config.problem_type == "regression"
    tokens = AutoTokenizer.from_pretrained(run.path / "model")("great film", return_tensors="pt")
    [found] = run.predict(["great film"])
    with torch.no_grad():
        assert found.score == pytest.approx(float(stock(**tokens).logits), abs=1e-3)


def test_grades_are_answered_with_grades(tmp_path: Path, tiny_encoder: Path) -> None:
    rows = [{**row, "rating": (row["rating"] - 30) / 10} for row in scored()]  # 0, 1, 3, 4
    run = tuned(tmp_path, tiny_encoder, rows, Events(), task="text-regression", objective="ordinal")
    scores = {prediction.score for prediction in run.predict([row["text"] for row in rows])}
    assert scores <= {0.0, 1.0, 3.0, 4.0} and len(scores) > 1
    assert run.metrics["spearman"].value > 0.5


@pytest.mark.parametrize(("task", "rows"), [("multi-label-classification", labelled()), ("text-regression", scored())])
def test_frozen_features_do_it_too(task: str, rows: list[dict[str, Any]], tmp_path: Path, tiny_encoder: Path) -> None:
    run = tuned(tmp_path, tiny_encoder, rows, Events(), task=task, method="features")
    metric = next(iter(run.metrics))
    assert run.metrics[metric].value > run.summary()["baselines"]["majority"][metric]["value"]
    assert len(run.predict(["great film"])) == 1


@pytest.mark.parametrize("kind", ["head", "words"])
def test_a_threshold_for_two_classes(kind: str, tmp_path: Path, request: pytest.FixtureRequest, reviews: Path) -> None:
    """Of a head's probabilities, and of those that a model which writes gives the labels."""
    model = request.getfixturevalue("tiny_encoder" if kind == "head" else "tiny_decoder")
    own = {"class_weights": "balanced"} if kind == "head" else {}
    recipe = {
        "task": "text-classification", "model": str(model), "data": {"train": str(reviews)},
        "training": {"epochs": 1, "threshold": 0.999, **own},
        "evaluate": {"baselines": ["majority"], "resamples": 100},
    } | ({"objective": "focal"} if kind == "head" else {})  # fmt: skip
    run = pipeline.run(parse(recipe), run_dir=tmp_path / "run")
    assert {prediction.answer for prediction in run.predict(["great", "awful"])} == {"negative"}


# --- reading --------------------------------------------------------------------------------------------------------


def labels_read(folder: Path, text: str, name: str, **data: Any) -> tuple[list[list[str]], list[str]]:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    events = Events()
    settings = {"train": str(path), "validation": 0, "test": 0, **data}
    recipe = parse({"task": "multi-label-classification", "model": "none", "data": settings})
    found = prepare(recipe, on_event=events, stop_on_errors=False)
    codes = [problem.code for problem in found.report.errors if problem.code != "no-rows"]
    return [row.fields["labels"] for row in found.train], codes


def test_labels_in_all_their_shapes(tmp_path: Path) -> None:
    wanted = [["a", "b"], [], ["b"]]
    lists = '{"text": "x1", "labels": ["b", "a", "b"]}\n{"text": "x2", "labels": []}\n{"text": "x3", "labels": ["b"]}\n'
    assert labels_read(tmp_path, lists, "a.jsonl") == (wanted, [])
    for mark in ";|,":
        table = f'text,labels\nx1,"b{mark} a"\nx2,\nx3,b\n'
        assert labels_read(tmp_path, table, "b.csv") == (wanted, [])
    assert labels_read(tmp_path, "text,labels\nx1,b/a\nx2,\nx3,b\n", "c.csv", label_separator="/") == (wanted, [])
    columns = {"labels": ["a", "b"]}
    assert labels_read(tmp_path, "text,a,b\nx1,1,1\nx2,0,0\nx3,0,1\n", "d.csv", columns=columns) == (wanted, [])
    numbers = '{"text": "x1", "labels": [0, 1]}\n{"text": "x2", "labels": []}\n{"text": "x3", "labels": [1]}\n'
    assert labels_read(tmp_path, numbers, "e.jsonl", label_names=["a", "b"]) == (wanted, [])


def test_labels_that_are_none_are_named(tmp_path: Path) -> None:
    assert labels_read(tmp_path, "text,a,b\nx1,1,maybe\n", "a.csv", columns={"labels": ["a", "b"]})[1] == ["bad-labels"]
    assert labels_read(tmp_path, '{"text": "x", "labels": 3}\n', "b.jsonl")[1] == ["bad-labels"]
    assert labels_read(tmp_path, '{"text": "x", "labels": [5]}\n', "c.jsonl", label_names=["a"])[1] == ["bad-labels"]
    assert labels_read(tmp_path, "text,a\nx1,1\n", "d.csv", columns={"labels": ["a", "b"]})[1] == ["columns"]


@pytest.mark.parametrize("value", ["nan", "high", "3,5", True])
def test_a_score_that_is_none_is_named_with_its_line(value: Any, tmp_path: Path) -> None:
    rows = [*scored(30)[:4], {"text": "x", "rating": value}, *scored(30)[4:]]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    with pytest.raises(DataError, match="is no number") as caught:
        prepare(parse({"task": "text-regression", "model": "none", "data": {"train": str(path)}}))
    assert caught.value.where == f"{path}:5"


def test_choices_that_do_not_fit_are_refused() -> None:
    base = {"model": "none", "data": {"train": "a.csv"}}
    with pytest.raises(RecipeError, match="needs scores"):
        parse({**base, "task": "text-classification", "objective": "mse"})
    with pytest.raises(RecipeError, match="knows no `class_weights`"):
        parse({**base, "task": "text-regression", "objective": "mse", "training": {"class_weights": "balanced"}})


def test_class_weights_of_labels_that_there_are_not(tmp_path: Path, tiny_encoder: Path, reviews: Path) -> None:
    recipe = {
        "task": "text-classification", "model": str(tiny_encoder), "data": {"train": str(reviews)},
        "training": {"epochs": 1, "class_weights": {"postive": 2.0}},
    }  # fmt: skip
    with pytest.raises(RecipeError, match="'postive', which is no label"):
        pipeline.run(parse(recipe), run_dir=tmp_path / "run")


def test_class_weights_need_a_head(tmp_path: Path, tiny_decoder: Path, reviews: Path) -> None:
    recipe = {
        "task": "text-classification", "model": str(tiny_decoder), "data": {"train": str(reviews)},
        "training": {"class_weights": "balanced"},
    }  # fmt: skip
    with pytest.raises(UsageError, match="need a head"):
        pipeline.run(parse(recipe), run_dir=tmp_path / "run")
