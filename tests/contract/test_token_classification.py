"""Entity recognition from files to predictions, as a user goes through it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tiny
from conftest import write_jsonl
from tunesmith import compare, load, tune
from tunesmith.cli.main import run as command
from tunesmith.errors import DataError
from tunesmith.runs import Run, read_answers

SETTINGS: dict[str, Any] = {
    "training": {"epochs": 6, "learning_rate": 5e-3, "batch_size": 16, "compile": "off"},
    "precision": "fp32",
    "evaluate": {"resamples": 100},
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("data") / "spans.jsonl", tiny.tagged_rows(160))


@pytest.fixture(scope="module")
def tuned(tiny_bert: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, tiny.Events]:
    events = tiny.Events()
    folder = tmp_path_factory.mktemp("run") / "tuned"
    keys = {"task": "token-classification", "model": str(tiny_bert), "run_dir": folder, "on_event": events}
    return tune(rows, **keys, **SETTINGS), events


def test_it_learns_and_is_measured(tuned: tuple[Run, tiny.Events]) -> None:
    run, events = tuned
    summary = run.summary()
    assert run.metrics["span_f1"].value > 0.9
    assert {"span_f1", "span_precision", "span_recall", "span_macro_f1"} == set(summary["metrics"])
    assert set(summary["baselines"]) == {"dictionary"}
    validated = [event.metrics for event in events if event.as_dict()["type"] == "validated"]
    assert all({"loss", "span_f1", "token_accuracy"} == set(metrics) for metrics in validated)
    report = json.loads((run.path / "report.json").read_text(encoding="utf-8"))
    assert [row["label"] for row in report["classes"]] == ["city", "good"]
    page = (run.path / "report.html").read_text(encoding="utf-8")
    assert '<mark class="hue0"' in page and "True spans" in page
    assert "AutoModelForTokenClassification" in (run.path / "model" / "README.md").read_text(encoding="utf-8")


def test_predictions_have_places_labels_and_scores(tuned: tuple[Run, tiny.Events]) -> None:
    run, _ = tuned
    plain, tokens, empty = run.predict(["the film was lovely", {"tokens": ["a", "film", "with", "madrid"]}, ""])
    assert plain.text == "the film was lovely"
    assert [(s["start"], s["end"], s["label"], s["text"]) for s in plain.spans or []] == [(13, 19, "good", "lovely")]
    assert 0.5 < (plain.spans or [])[0]["score"] <= 1
    assert plain.answer == "lovely (good)"
    assert tokens.text == "a film with madrid" and tokens.spans is not None
    assert empty.spans == []
    numbered = {"tokens": ["a", "film", "with", "madrid"], "tags": [0, 0, 0, 3]}  # what is there is not looked at
    assert run.predict([numbered])[0].answer == tokens.answer
    with pytest.raises(DataError, match="`tokens` or `text`"):
        run.predict([{"sentence": "the film"}])


def test_a_text_longer_than_the_model_is_tagged_to_its_end(tuned: tuple[Run, tiny.Events]) -> None:
    run, _ = tuned
    text = "the film was very " * 60 + "lovely"
    [found] = run.predict([text])
    assert (len(text) - 6, len(text)) in {(span["start"], span["end"]) for span in found.spans or []}


def test_the_command_prints_an_object_a_row(tuned: tuple[Run, tiny.Events], tmp_path: Path, capsys: Any) -> None:
    run, _ = tuned
    asked = tmp_path / "asked.txt"
    asked.write_text("the film was lovely\na film\n", encoding="utf-8")
    assert command(["predict", str(run.path), str(asked)]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["line"] for line in lines] == [1, 2]
    assert [line["text"] for line in lines] == ["the film was lovely", "a film"]
    assert lines[0]["spans"][0]["label"] == "good"


def test_marks_in_a_terminal_and_on_a_page() -> None:
    from rich.console import Console

    from tunesmith.data.spans import Span
    from tunesmith.evaluation.marks import in_terminal, on_page

    text, spans = "<b> Paris & Rome", [Span(4, 9, "city", "Paris", 0.9), Span(12, 16, "town", "Rome", 0.8)]
    labels: list[str] = []
    screen = Console(force_terminal=True, color_system="standard", width=80, record=True)
    screen.print(in_terminal(text, spans, labels))
    assert labels == ["city", "town"]
    assert "<b> Paris city 0.90 & Rome town 0.80" in screen.export_text()
    page = on_page(text, spans, ["city"])
    assert page.startswith('&lt;b&gt; <mark class="hue0" title="0.90">Paris<span> city</span></mark> &amp; ')
    assert 'class="hue1"' in page  # a label that was never learned has a colour of its own
    assert on_page("x" * 500, [Span(495, 499, "city")], ["city"]).endswith(" … (cut)")


def test_runs_are_compared_by_their_spans(
    tuned: tuple[Run, tiny.Events], tiny_bert: Path, rows: Path, tmp_path: Path
) -> None:
    run, _ = tuned
    keys = {**SETTINGS, "training": {"max_steps": 1}, "evaluate": {"baselines": [], "resamples": 100}}
    folder = tmp_path / "short"
    task, model = "token-classification", str(tiny_bert)
    short = tune(rows, task=task, model=model, run_dir=folder, on_event=lambda event: None, **keys)
    found = compare(run, short)
    assert found.metric == "span_f1"
    assert found.rows[1]["outcome"] == "worse than the first"
    stored = read_answers(load(run.path))
    assert all(answer.spans is not None and answer.reference_spans is not None for answer in stored)


def test_a_generating_model_is_asked_or_learns_to_write_spans(tiny_decoder: Path, rows: Path, tmp_path: Path) -> None:
    evaluate = {"limit": 10, "resamples": 100, "generation": {"max_new_tokens": 4}}
    keys: dict[str, Any] = {"task": "token-classification", "model": str(tiny_decoder), "method": "full"}
    keys |= {"training": {"max_steps": 2, "compile": "off"}, "evaluate": evaluate, "precision": "fp32"}
    keys["on_event"] = lambda event: None
    tagged = tune(rows, run_dir=tmp_path / "tagged", **keys)
    assert {"dictionary", "base", "few-shot-5-random", "few-shot-5-nearest"} == set(tagged.summary()["baselines"])
    written = tune(rows, run_dir=tmp_path / "written", objective="supervised", **keys)
    assert set(written.metrics) == set(tagged.metrics)
    [found] = written.predict(["the film was lovely"])
    assert found.spans is not None


def test_check_counts_labels(rows: Path, tiny_bert: Path, capsys: Any) -> None:
    flags = ["check", "--task", "token-classification", "--model", str(tiny_bert), "--train", str(rows), "--json"]
    assert command(flags) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report["classes"]["train"]) == {"city", "good"}
    assert report["lengths"]["train"]["tokens"]["max"] > 5
