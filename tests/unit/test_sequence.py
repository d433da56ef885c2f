"""Task after task: the matrix of what is still known, worked by hand and from a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import labelled_rows, sentences, write_jsonl
from tunesmith import display, pipeline, words
from tunesmith.cli.tuning import print_run
from tunesmith.errors import RecipeError
from tunesmith.evaluation import sequence
from tunesmith.evaluation.sequence import Measured, SequenceReport
from tunesmith.recipe import Evaluate
from tunesmith.recipe_file import parse
from tunesmith.runs import Run


def capital_rows(count: int) -> list[dict[str, str]]:
    """Questions whose label is a country: another task, with other labels and another number of them."""
    countries = ("france", "spain", "italy")
    return [{"text": f"what is the capital of {countries[n % 3]} {n}", "label": countries[n % 3]} for n in range(count)]


def recipe_of(model: Path, folder: Path, **keys: Any) -> dict[str, Any]:
    first = write_jsonl(folder / "reviews.jsonl", labelled_rows(80))
    second = write_jsonl(folder / "capitals.jsonl", capital_rows(80))
    return {
        "task": "text-classification", "model": str(model), "method": "sequential", "precision": "fp32",
        "stages": [
            {"name": "reviews", "data": {"train": str(first)}},
            {"name": "capitals", "data": {"train": str(second)}},
        ],
        "training": {"epochs": 5, "learning_rate": 5e-3, "batch_size": 8},
        "evaluate": {"baselines": ["majority"], "resamples": 200}, **keys,
    }  # fmt: skip


@pytest.fixture(scope="module", params=["tiny_encoder", "tiny_decoder"])
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("sequence")
    recipe = parse(recipe_of(request.getfixturevalue(request.param), folder))
    return pipeline.run(recipe, run_dir=folder / "run")


def test_averages_are_those_of_the_papers() -> None:
    """R = [[.9], [.6, .8], [.7, .5, 1.]]: average 2.2 / 3, transfer (-.2 - .3) / 2, forgetting (.2 + .3) / 2."""
    values = {(0, 0): 0.9, (1, 0): 0.6, (1, 1): 0.8, (2, 0): 0.7, (2, 1): 0.5, (2, 2): 1.0}
    cells = {place: Measured(value, np.full(5, value), "accuracy") for place, value in values.items()}
    found = SequenceReport(["a", "b", "c"], ["accuracy"] * 3, cells, Evaluate()).averages()
    assert found["average"].value == pytest.approx(2.2 / 3)
    assert found["backward_transfer"].value == pytest.approx(-0.25)
    assert found["forgetting"].value == pytest.approx(0.25)


def test_a_surprise_is_not_averaged_with_shares() -> None:
    cells = {
        (0, 0): Measured(1.5, np.full(5, 1.5), "bits_per_byte"),
        (1, 0): Measured(1.7, np.full(5, 1.7), "bits_per_byte"),
        (1, 1): Measured(0.8, np.full(5, 0.8), "accuracy"),
    }
    found = SequenceReport(["text", "task"], ["bits_per_byte", "accuracy"], cells, Evaluate()).averages()
    assert found["average"].value == pytest.approx(0.8)
    assert "forgetting" not in found


def test_a_run_measures_each_task_after_each_stage(finished: Run) -> None:
    found = finished.summary()["sequence"]
    assert found["stages"] == ["reviews", "capitals"]
    matrix = found["matrix"]
    assert matrix[0][1] is None
    assert matrix[1][1]["value"] == finished.metrics["accuracy"].value
    assert matrix[0][0]["value"] > 0.5, "the first task was learned"
    fall = matrix[0][0]["value"] - matrix[1][0]["value"]
    assert found["forgetting"]["value"] == pytest.approx(fall)
    assert found["backward_transfer"]["value"] == pytest.approx(-fall)
    page = finished.report().read_text()
    assert "What it still knows of each task" in page and "after capitals" in page
    assert json.loads((finished.path / "report.json").read_text())["sequence"] == found


def test_the_terminal_shows_the_matrix_and_its_averages(finished: Run, capsys: pytest.CaptureFixture[str]) -> None:
    found = finished.summary()["sequence"]
    print_run(finished, as_json=False)
    said = capsys.readouterr().out.splitlines()
    [first, last] = [line for line in said if line.strip().startswith("after ")]
    assert first.split("after reviews")[1].strip() == words.interval(found["matrix"][0][0])
    assert all(words.interval(cell) in last for cell in found["matrix"][1])
    for name in ("average", "backward_transfer", "forgetting"):
        [line] = [line for line in said if display.AVERAGES[name] in line]
        assert words.interval(found[name], signed=name != "average") in line


def test_averages_stand_below_the_matrix_and_under_no_task(finished: Run) -> None:
    kept = sequence.kept_sequence(finished.path, finished.recipe.resolved())
    assert kept is not None
    section = sequence.section(kept)
    assert [row[0] for row in section.rows] == ["after reviews", "after capitals"]
    assert [what for what, _ in section.totals] == list(display.AVERAGES.values())
    page = finished.report().read_text()
    for what, value in section.totals:
        assert f"<dt>{what}</dt>" in page and value.split(" ")[0] in page


def test_general_text_is_measured_after_each_stage_by_models_that_write(finished: Run) -> None:
    general = finished.summary().get("general_text")
    if Path(finished.recipe.model).name.startswith("tiny-encoder"):
        assert general is None and "has no words" in (finished.path / "events.jsonl").read_text()
        return
    assert general["metric"] == "bits_per_byte" and general["source"] == "python-reference"
    assert [one["stage"] for one in general["stages"]] == ["reviews", "capitals"]
    for one in general["stages"]:
        assert one["change"]["value"] == pytest.approx(one["after"]["value"] - general["before"]["value"], abs=1e-9)
        assert one["change"]["value"] != 0
    assert "What it still knows of other text" in finished.report().read_text()


def test_what_was_measured_is_kept(finished: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed evaluation measures again only what is missing."""
    asked: list[tuple[int, int]] = []
    whole = sequence.model_after

    def counted(folder: Path, recipe: Any, after: int, task: int) -> Any:
        asked.append((after, task))
        return whole(folder, recipe, after, task)

    monkeypatch.setattr(sequence, "model_after", counted)
    (finished.path / "sequence" / "2-1.json").unlink()
    (finished.path / "events.jsonl").write_text("")
    shutil.rmtree(finished.path / "tokens", ignore_errors=True)
    before = finished.summary()["sequence"]
    again = pipeline.resume(finished.path)
    assert asked == [(1, 0)]
    assert again.summary()["sequence"] == before


def test_one_task_is_no_sequence() -> None:
    with pytest.raises(RecipeError, match="two `stages`"):
        parse({"task": "text-classification", "model": "m", "method": "sequential", "data": {"train": "a.csv"}})


@pytest.mark.parametrize("remedy", [{"replay": 0.5}, {"hold": "ewc"}], ids=["replay", "ewc"])
def test_tasks_of_different_kinds_share_one_body(remedy: dict[str, Any], tiny_encoder: Path, tmp_path: Path) -> None:
    """Masked words, then labels, then tags: three heads, each of which is found again when its task is measured."""
    corpus = write_jsonl(tmp_path / "corpus.jsonl", [{"text": text} for text in sentences(60)])
    reviews = write_jsonl(tmp_path / "reviews.jsonl", labelled_rows(60))
    places = tmp_path / "places.conll"
    tagged = [
        "\n".join(f"{word} {'B-LOC' if word == row['label'] else 'O'}" for word in row["text"].split())
        for row in capital_rows(60)
    ]
    places.write_text("\n\n".join(tagged) + "\n")
    recipe = recipe_of(tiny_encoder, tmp_path, sequence=remedy) | {
        "stages": [
            {"name": "text", "objective": "masked-lm", "data": {"train": str(corpus)}},
            {"name": "reviews", "data": {"train": str(reviews)}},
            {"name": "places", "task": "token-classification", "data": {"train": str(places), "format": "conll"}},
        ],
        "training": {"epochs": 2, "learning_rate": 3e-3, "batch_size": 8},
    }
    found = pipeline.run(parse(recipe), run_dir=tmp_path / "run").summary()["sequence"]
    assert found["metrics"] == ["masked_loss", "accuracy", "span_f1"]
    assert all(len([cell for cell in line if cell]) == n for n, line in enumerate(found["matrix"], 1))
    # A head that was not found again would be a random one, and guess among 400 words: ln 400 = 5.99.
    assert found["matrix"][2][0]["value"] < 5.5


def test_a_task_without_a_mistake_is_not_known_for_certain() -> None:
    """All of 10 rows right: the exact limit of a proportion, 0.025 ** (1 / 10), not a bootstrap without spread."""
    sure = Measured(1.0, np.ones(200), "accuracy", "", 10)
    other = Measured(1.0, np.ones(200), "accuracy", "", 40)
    found = SequenceReport(["a", "b"], ["accuracy"] * 2, {(0, 0): sure, (1, 0): sure, (1, 1): other}, Evaluate())
    assert found.interval(1, 0).low == pytest.approx(0.025**0.1)
    assert found.interval(1, 1).low == pytest.approx(0.025 ** (1 / 40))
    assert found.averages()["average"].low == pytest.approx(0.025**0.1)
