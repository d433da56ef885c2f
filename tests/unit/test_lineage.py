"""A finished run as the base model of another recipe: transfer from task to task, and where a model came from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import labelled_rows, sentences, write_jsonl
from tunesmith import catalog, lineage, pipeline
from tunesmith.errors import UsageError
from tunesmith.models.load import load_model
from tunesmith.models.saving import load_artefact
from tunesmith.recipe_file import parse
from tunesmith.runs import Run

FAST: dict[str, Any] = {
    "precision": "fp32",
    "evaluate": {"baselines": ["majority"], "resamples": 200, "general": None},
    "training": {"epochs": 2, "learning_rate": 1e-2, "batch_size": 8},
}


@pytest.fixture(scope="module")
def taught(tiny_decoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A decoder with an adapter that read a corpus."""
    folder = tmp_path_factory.mktemp("taught")
    corpus = write_jsonl(folder / "corpus.jsonl", [{"text": text} for text in sentences(80)])
    recipe = {
        "task": "language-modeling", "model": str(tiny_decoder), "method": "self-supervised",
        "data": {"train": str(corpus)}, "parameters": {"kind": "lora", "rank": 4}, **FAST,
    }  # fmt: skip
    return pipeline.run(parse(recipe), run_dir=folder / "first")


def test_a_run_begins_where_another_ended(taught: Run, tmp_path: Path) -> None:
    reviews = write_jsonl(tmp_path / "reviews.jsonl", labelled_rows(80))
    recipe = {
        "task": "text-classification", "model": str(taught.path), "method": "peft",
        "data": {"train": str(reviews)}, **FAST,
    }  # fmt: skip
    run = pipeline.run(parse(recipe), run_dir=tmp_path / "second")
    (parent,) = run.summary()["lineage"]
    assert (parent["run"], parent["task"]) == ("first", "language-modeling")
    assert json.loads((run.path / "environment.json").read_text())["lineage"] == [parent]
    assert "Where it came from" in run.report().read_text()
    assert "first (language-modeling, self-supervised) → this model" in (run.model_folder / "README.md").read_text()
    assert run.predict(["the film was great"])[0].answer in ("positive", "negative")
    assert [step["run"] for step in lineage.ancestors(str(run.path))] == ["first", "second"]


def test_what_is_begun_from_is_the_merged_model(taught: Run) -> None:
    merged = catalog.model_folder(str(taught.path))
    assert merged == taught.path / "merged"
    one = load_model(merged, name="merged")
    other, notes = load_artefact(taught.model_folder)
    assert notes.adapter
    ids = torch.tensor([one.tokenizer("the film was great")["input_ids"]])
    networks: list[Any] = [one.network, other.network]
    with torch.no_grad():
        torch.testing.assert_close(networks[0](ids).logits, networks[1](ids).logits, rtol=1e-4, atol=1e-4)


def test_a_run_without_a_model_is_no_base(taught: Run, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text((taught.path / "recipe.yaml").read_text())
    with pytest.raises(UsageError, match="no model yet"):
        catalog.model_folder(str(tmp_path))
    recipe = {"task": "chat", "model": str(tmp_path), "data": {"train": "a.jsonl"}}
    with pytest.raises(UsageError, match="has not finished"):
        pipeline.run(parse(recipe), run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_head_of_another_task_is_not_taken(tiny_bert: Path, tmp_path: Path) -> None:
    """Neither one of another size, nor one of the same size for other labels; one for the same labels is."""
    first = load_model(tiny_bert, name="bert", form="classify", labels=["a", "b"])
    network: Any = first.network
    network.save_pretrained(tmp_path)
    first.tokenizer.save_pretrained(tmp_path)
    for labels, kept in ((["a", "b"], True), (["x", "y"], False), (["x", "y", "z"], False)):
        again: Any = load_model(tmp_path, name="again", form="classify", labels=labels, seed=1).network
        assert again.classifier.out_features == len(labels)
        same = again.classifier.weight.shape == network.classifier.weight.shape and torch.equal(
            again.classifier.weight, network.classifier.weight
        )
        assert same is kept
