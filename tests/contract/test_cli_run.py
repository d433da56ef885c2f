"""A whole run by the command line, with a tiny model made on the spot: tune, look, use, compare, remove."""

from __future__ import annotations

import io
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tunesmith import load
from tunesmith.cli import main

PROMISED = {
    "run", "task", "method", "metrics", "baselines", "verdict", "tokens_per_second", "seconds", "peak_memory_bytes",
    "trainable_parameters", "total_parameters",
}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where the test's model, data and runs are."""

    encoder: Path
    reviews: Path
    runs: Path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path) -> Place:
    folder = tmp_path_factory.mktemp("cli")
    reviews = folder / "reviews.jsonl"
    lines = []
    for n in range(200):
        words, label = (("great", "good", "lovely"), "positive") if n % 2 else (("bad", "awful", "dull"), "negative")
        # one telling word among others, and a number that keeps the rows apart
        lines.append({"text": f"the film {'is' if n % 3 else 'was'} {words[n % 3]} and {n} of {n * 7}", "label": label})
    reviews.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return Place(tiny_encoder, reviews, folder / "runs")


def printed(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> Any:
    capsys.readouterr()
    assert main.run([*arguments, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def tuned(place: Place, method: str) -> list[str]:
    return [
        "tune", "--task", "text-classification", "--model", str(place.encoder), "--method", method,
        "--train", str(place.reviews), "--test", "0.25", "--run-dir", str(place.runs / method),
        "--set", "training.epochs=4", "--set", "training.learning_rate=1e-2", "--set", "training.batch_size=16",
        "--set", "training.dropout=0", "--set", "precision=fp32",
        "--set", "evaluate.baselines=[majority]", "--set", "evaluate.resamples=200",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def runs(place: Place) -> Path:
    """Two finished runs, ``full`` and ``features``."""
    for method in ("full", "features"):
        assert main.run(tuned(place, method)) == 0
    return place.runs


def test_tune_json_ends_with_the_promised_object(place: Place, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = tuned(place, "full")
    again[again.index("--run-dir") + 1] = str(place.runs / "again")
    summary = printed(capsys, *again)
    assert set(summary) >= PROMISED
    assert (summary["task"], summary["method"]) == ("text-classification", "full")
    for metrics in (summary["metrics"], *summary["baselines"].values()):
        assert all(m["low"] <= m["value"] <= m["high"] for m in metrics.values())
    assert "majority" in summary["baselines"] and summary["verdict"]
    assert summary["trainable_parameters"] == summary["total_parameters"] > 0
    assert printed(capsys, "runs", "show", str(runs / "full"))["metrics"] == summary["metrics"], "the seed decides"


def test_a_run_is_not_overwritten(place: Place, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = printed(capsys, *tuned(place, "full"), code=2)["error"]
    assert "tunesmith resume" in error["fix"]


def test_runs_are_listed_and_shown(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = {row["run"]: row for row in printed(capsys, "runs", "--root", str(runs))}
    assert listed["full"]["status"] == "finished" and "accuracy" in listed["full"]["metrics"]
    assert main.run(["runs", "show", str(runs / "full")]) == 0
    shown = capsys.readouterr().out
    assert "full (tuned)" in shown and "majority" in shown and str(runs / "full" / "report.html") in shown


def test_predict_answers_each_row_of_stdin_in_order(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO('the film was good and\n\n{"text": "the film was bad and"}\n' * 3))
    assert main.run(["predict", str(runs / "full"), "--batch", "4"]) == 0
    out, err = capsys.readouterr()
    answers = [json.loads(line) for line in out.splitlines()]
    assert [answer["answer"] for answer in answers] == ["positive", "negative"] * 3
    assert [answer["line"] for answer in answers] == [1, 3, 4, 6, 7, 9]
    assert "3 blank lines have no answer: stdin:2, stdin:5, stdin:8\n" in err
    assert all(abs(sum(answer["probabilities"].values()) - 1) < 1e-5 for answer in answers)


def test_a_row_without_its_field_names_its_line(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text('plain words\n\n{"txt": "a"}\n', encoding="utf-8")
    capsys.readouterr()
    assert main.run(["predict", str(runs / "full"), str(file), "--batch", "1", "--json"]) == 3
    *answers, error = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(answers) == 1
    assert error["error"]["where"] == f"{file}:3"


def test_predict_reads_a_table_by_its_columns(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "in.csv"
    file.write_text('id,text\n1,"the film was good\nand"\n2,the film was bad and\n', encoding="utf-8")
    capsys.readouterr()
    assert main.run(["predict", str(runs / "full"), str(file)]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(answer["line"], answer["answer"]) for answer in answers] == [(2, "positive"), (4, "negative")]
    file.write_text("id,words\n1,good\n", encoding="utf-8")
    assert printed(capsys, "predict", str(runs / "full"), str(file), code=3)["error"]["where"] == f"{file}:2"


def test_chat_with_a_classifier_answers_with_labels(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("the film was good and\nthe film was bad and\n/exit\nnever\n"))
    assert main.run(["chat", str(runs / "full")]) == 0
    assert capsys.readouterr().out == "positive\nnegative\n"


def test_compare_puts_runs_side_by_side(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    comparison = printed(capsys, "compare", str(runs / "full"), str(runs / "features"))
    first, second = comparison["runs"]
    assert comparison["metric"] == "accuracy" and comparison["verdict"]
    assert second["difference"]["value"] == pytest.approx(second["value"]["value"] - first["value"]["value"])
    assert main.run(["compare", str(runs / "full"), str(runs / "features")]) == 0
    assert "difference to the first" in capsys.readouterr().out


def test_one_run_is_no_comparison(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, "compare", str(runs / "full"), code=2)["error"]["code"] == "usage"


def test_eval_measures_other_data(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.jsonl"
    rows = [
        {"text": f"a plot {n} is {'good' if n % 2 else 'bad'}", "label": "positive" if n % 2 else "negative"}
        for n in range(30)
    ]
    other.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    before = printed(capsys, "runs", "show", str(runs / "full"))
    measured = printed(capsys, "eval", str(runs / "full"), "--data", str(other))
    assert 0 <= measured["metrics"]["accuracy"]["value"] <= 1
    assert printed(capsys, "runs", "show", str(runs / "full")) == before, "the run's own result stays"
    [evaluation] = (runs / "full" / "evaluations").glob("*/recipe.yaml")
    assert load(evaluation.parent).model_folder == runs / "full" / "model"


def test_what_is_wrong_with_other_files_names_no_key_of_a_recipe(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither `eval` nor `predict` has `--set`."""
    columns, bytes_ = tmp_path / "columns.csv", tmp_path / "bytes.csv"
    columns.write_text("review,stars\ngood,positive\nbad,negative\n", encoding="utf-8")
    bytes_.write_bytes("text,label\nein schöner Film,positive\n".encode("latin-1"))
    full = str(runs / "full")
    error = printed(capsys, "eval", full, "--data", str(columns), code=3)["error"]
    assert error["where"] == f"{columns}:1" and error["fix"].startswith("change the file:"), error
    assert "`text`, `label`" in error["fix"] and "data.columns" not in error["fix"]
    for command in (["eval", full, "--data", str(bytes_)], ["predict", full, str(bytes_)]):
        error = printed(capsys, *command, code=3)["error"]
        assert error["where"] == f"{bytes_}:2" and error["fix"].endswith("in UTF-8"), error
    error = printed(capsys, "eval", full, "--data", str(tmp_path / "none.csv"), code=3)["error"]
    assert error["where"] == "--data"


def test_eval_refuses_rows_that_were_trained_on(
    place: Place, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = (runs / "full" / "data.json").read_bytes()
    folder = tmp_path / "copy"
    shutil.copytree(runs / "full", folder)
    recipe = folder / "recipe.yaml"
    recipe.write_text(recipe.read_text(encoding="utf-8").replace("drop_bad: false", "drop_bad: true"), encoding="utf-8")
    few = tmp_path / "few.jsonl"
    few.write_text("".join(place.reviews.read_text(encoding="utf-8").splitlines(keepends=True)[:40]), encoding="utf-8")
    error = printed(capsys, "eval", str(folder), "--data", str(few), code=3)["error"]
    assert "trained" in error["what"] and error["where"].startswith(str(few))
    assert (folder / "data.json").read_bytes() == kept, "what is known of the run's own data stays"


def test_plan_has_the_promised_fields(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = tuned(place, "full")[1:]
    at = arguments.index("--run-dir")
    forecast = printed(capsys, "plan", *arguments[:at], *arguments[at + 2 :])
    assert set(forecast) >= {
        "trainable_parameters", "total_parameters", "tokens", "steps", "memory_bytes", "seconds", "fits", "advice",
        "parts"
    }  # fmt: skip
    assert forecast["memory_bytes"]["low"] <= forecast["memory_bytes"]["high"]
    assert forecast["steps"] > 0 and forecast["fits"] is True


def test_check_with_a_model_at_hand_counts_tokens(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    report = printed(
        capsys, "check", "--task", "text-classification", "--model", str(place.encoder),
        "--train", str(place.reviews), "--set", "data.max_length=8",
    )  # fmt: skip
    assert report["lengths"]["train"]["tokens"]["max"] > 0
    assert any("cut" in problem["message"] or "long" in problem["message"] for problem in report["problems"])


def test_rm_asks_and_then_removes(
    place: Place, runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(runs / "features", runs / "copy")
    monkeypatch.setattr(sys, "stdin", io.StringIO("n\n"))
    assert main.run(["runs", "rm", str(runs / "copy")]) == 130
    assert (runs / "copy").exists()
    assert printed(capsys, "runs", "rm", str(runs / "copy"), "--yes") == {"removed": [str(runs / "copy")]}
    assert not (runs / "copy").exists()
    assert main.run(["runs", "show", str(runs / "copy")]) == 4
