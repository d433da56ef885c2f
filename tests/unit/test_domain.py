"""Two stages, the language of a corpus and then a task, and what each gave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from conftest import labelled_rows, sentences, write_jsonl
from tunesmith import display, pipeline, words
from tunesmith.cli.tuning import print_run
from tunesmith.errors import RecipeError
from tunesmith.recipe_file import parse

SHORT: dict[str, Any] = {"task": "text-classification", "model": "m", "method": "domain"}


def test_the_short_form_spells_out_two_stages() -> None:
    recipe = parse({**SHORT, "data": {"train": "a.csv", "corpus": "texts/"}}).resolved()
    first, second = recipe.stages
    assert (first.task, first.name, second.task) == ("language-modeling", "domain", None)
    assert first.data is not None and first.data.train == ["texts/"]
    assert [b.kind for b in recipe.evaluate.baselines][-1] == "without-domain"
    assert recipe.resolved() == recipe


def test_bad_rows_are_left_out_of_the_corpus_and_of_preferences_too() -> None:
    data = {"train": "a.csv", "drop_bad": True}
    first, _ = parse({**SHORT, "data": data | {"corpus": "texts/"}}).resolved().stages
    rlhf = {"task": "chat", "model": "m", "method": "rlhf", "data": data | {"preferences": "pairs.jsonl"}}
    _, judge, _ = parse(rlhf).resolved().stages
    assert first.data is not None and judge.data is not None
    assert first.data.drop_bad and judge.data.drop_bad


def test_the_language_stage_trains_more_than_a_head() -> None:
    values = {"data": {"train": "a.csv", "corpus": "texts/"}, "parameters": {"kind": "head"}}
    first, second = parse({**SHORT, **values}).resolved().stages
    assert first.parameters is not None and second.parameters is not None
    assert (first.parameters.kind, second.parameters.kind) == ("full", "head")


def test_an_objective_at_the_top_is_the_tasks() -> None:
    values = {"data": {"train": "a.csv", "corpus": "texts/"}, "objective": "classify"}
    first, second = parse({**SHORT, **values}).resolved().stages
    assert (first.objective, second.objective) == (None, "classify")


def test_a_stage_with_a_language_objective_learns_from_bare_text() -> None:
    stages = [{"name": "corpus", "objective": "masked-lm", "data": {"train": "texts/"}}, {"name": "task"}]
    first, second = parse({**SHORT, "data": {"train": "a.csv"}, "stages": stages}).resolved().stages
    assert (first.task, second.task) == ("language-modeling", None)


@pytest.mark.parametrize(
    "values",
    [
        {"data": {"train": "a.csv"}},
        {"method": "full", "data": {"train": "a.csv", "corpus": "texts/"}},
        {"method": "full", "evaluate": {"baselines": ["without-domain"]}},
    ],
    ids=["no corpus", "a corpus that nobody reads", "no stage to leave out"],
)
def test_what_makes_no_sense_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="domain"):
        parse({**SHORT, **values})


def test_a_run_says_what_each_stage_gave(
    tiny_decoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = write_jsonl(tmp_path / "corpus.jsonl", [{"text": text} for text in sentences(150)])
    reviews = write_jsonl(tmp_path / "reviews.jsonl", labelled_rows(80))
    recipe = {
        "task": "text-classification", "model": str(tiny_decoder), "method": "domain", "precision": "fp32",
        "data": {"train": str(reviews), "corpus": str(corpus)},
        "evaluate": {"baselines": ["majority", "without-domain"], "resamples": 200},
        "training": {"epochs": 3, "learning_rate": 3e-3, "batch_size": 8},
    }  # fmt: skip
    run = pipeline.run(parse(recipe), run_dir=tmp_path / "run")
    assert set(run.baselines) == {"majority", "without-domain"}
    (gain,) = run.summary()["stages"]
    assert (gain["stage"], gain["metric"]) == ("domain", "bits_per_byte")
    assert gain["change"]["high"] < 0, "the corpus was learned"
    report = json.loads((run.path / "report.json").read_text())
    assert report["stages"] == [gain]
    assert "What each stage gave" in run.report().read_text()
    [table] = display.of_stages(run.summary())
    assert [row[0] for row in table.rows] == [
        f"domain: bits_per_byte of {gain['documents']} held-out documents",
        "the task: accuracy, from the plain base and from them",
    ]
    assert table.rows[0][-1] == words.interval(gain["change"], signed=True)
    print_run(run, as_json=False)
    assert str(table.rows[0][-1]) in capsys.readouterr().out
    alone = json.loads((run.path / "without-domain" / "stages" / "1-without-domain" / "training.json").read_text())
    assert alone == json.loads((run.path / "stages" / "2-task" / "training.json").read_text())
