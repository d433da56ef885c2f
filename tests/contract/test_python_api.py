"""What `import tunesmith` promises: data in every form, runs, predictions, comparisons, and errors that help."""

from __future__ import annotations

import html
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

import tiny
import tunesmith
from conftest import labelled_rows, write_jsonl
from tunesmith import events as kinds
from tunesmith import pipeline, recipe_file
from tunesmith.cli import main as cli
from tunesmith.errors import DataError, NotFoundError, RecipeError, TunesmithError, UsageError

QUICK: dict[str, Any] = {
    "training": {"epochs": 6, "batch_size": 16, "learning_rate": 1e-2, "dropout": 0.0, "compile": "off"},
    "evaluate": {"baselines": ["majority"], "resamples": 200},
    "precision": "fp32",
}


def tune(data: Any, model: Path, folder: Path, **keys: Any) -> tunesmith.Run:
    arguments = {"task": "text-classification", "model": str(model), "method": "full", **QUICK, **keys}
    return tunesmith.tune(data, run_dir=folder, **arguments)


def as_frame(rows: list[dict[str, str]]) -> Any:
    return pytest.importorskip("pandas").DataFrame(rows)


def as_dataset(rows: list[dict[str, str]]) -> Any:
    from datasets import Dataset

    return Dataset.from_list(rows)


@pytest.fixture(scope="module")
def runs(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tunesmith.Run]:
    """The same rows, given as a list, a frame, a data set and a file."""
    folder = tmp_path_factory.mktemp("runs")
    rows = labelled_rows(160)
    forms = {
        "list": rows,
        "frame": as_frame(rows),
        "dataset": as_dataset(rows),
        "file": write_jsonl(folder / "rows.jsonl", rows),
    }
    return {name: tune(form, tiny_encoder, folder / name) for name, form in forms.items()}


def test_the_form_of_the_data_does_not_matter(runs: dict[str, tunesmith.Run]) -> None:
    hashes = {name: tiny.sha256s(run.model_folder) for name, run in runs.items()}
    assert all(found == hashes["file"] for found in hashes.values())
    assert all(run.metrics == runs["file"].metrics for run in runs.values())


def test_metrics_have_intervals(runs: dict[str, tunesmith.Run]) -> None:
    accuracy = runs["list"].metrics["accuracy"]
    assert 0 <= accuracy.low <= accuracy.value <= accuracy.high <= 1
    assert accuracy.value > runs["list"].baselines["majority"]["accuracy"].high
    assert runs["list"].verdict and runs["list"].status == "finished"


def test_the_folder_is_laid_out_as_promised(runs: dict[str, tunesmith.Run]) -> None:
    run = runs["list"]
    names = {path.name for path in run.path.iterdir()}
    assert {"recipe.yaml", "environment.json", "events.jsonl", "metrics.jsonl", "stages", "model"} <= names
    assert {"report.html", "report.json", "summary.json", "predictions.jsonl"} <= names
    last = max((run.path / "stages" / "1-tune" / "checkpoints").iterdir())
    wanted = {"model.safetensors", "optimizer.safetensors", "trainer.json", "MANIFEST.json"}
    assert wanted == {path.name for path in last.iterdir()}
    assert not [path for path in run.path.rglob("*") if path.suffix in (".pkl", ".pt", ".pth", ".bin")]
    assert not [name for name in names if name.startswith(".") and name != ".lock"]  # no leftovers of staging


def test_every_event_is_one_of_the_typed_ones(runs: dict[str, tunesmith.Run]) -> None:
    lines = [json.loads(line) for line in (runs["list"].path / "events.jsonl").read_text().splitlines()]
    classes = [c for c in vars(kinds).values() if isinstance(c, type) and issubclass(c, kinds.Event)]
    by_name = {object.__new__(c).type: c for c in classes}
    for line in lines:
        name = line.pop("type")
        by_name[name](**line)  # the fields are those of the class, no more and no less
        line["type"] = name
    names = [line["type"] for line in lines]
    assert names[0] == "run_started" and names[-1] == "run_finished"
    assert {"phase", "stage_started", "step", "validated", "checkpoint_saved", "stage_finished", "evaluated"} <= set(
        names
    )
    steps = [line["step"] for line in lines if line["type"] == "step"]
    assert steps == list(range(1, len(steps) + 1))
    assert [line["time"] for line in lines] == sorted(line["time"] for line in lines)


def test_a_listener_hears_what_is_written(tiny_encoder: Path, tmp_path: Path) -> None:
    heard = tiny.Events()
    run = tune(labelled_rows(80), tiny_encoder, tmp_path / "run", on_event=heard)
    written = [json.loads(line)["type"] for line in (run.path / "events.jsonl").read_text().splitlines()]
    assert [event.type for event in heard if not isinstance(event, kinds.Progress)] == written


def test_predictions(runs: dict[str, tunesmith.Run]) -> None:
    run = tunesmith.load(runs["list"].path)
    good, bad = run.predict(["the film is great", {"text": "the film is awful"}])
    assert (good.answer, bad.answer) == ("positive", "negative")
    assert good.probabilities is not None and set(good.probabilities) == {"negative", "positive"}
    assert sum(good.probabilities.values()) == pytest.approx(1) and good.probability == max(good.probabilities.values())
    assert run.predict([]) == []


def test_predictions_of_a_frame_are_those_of_its_rows(runs: dict[str, tunesmith.Run]) -> None:
    pandas = pytest.importorskip("pandas")
    run, texts = runs["list"], ["the film was good and", "the film was bad and", "dull"]
    frame = pandas.DataFrame({"stars": [1, 2, 3], "text": texts})
    assert [one.answer for one in run.predict(frame)] == [one.answer for one in run.predict(texts)]
    for empty in (None, float("nan"), {"text": None}, {"text": float("nan")}):
        with pytest.raises(DataError) as raised:
            run.predict(["good", empty])
        assert raised.value.where == "input:2"


def test_predictions_equal_those_of_the_evaluation(runs: dict[str, tunesmith.Run]) -> None:
    """What the report measured is what the saved model answers."""
    run = runs["list"]
    stored = [json.loads(line) for line in (run.path / "predictions.jsonl").read_text().splitlines()]
    found = run.predict([line["input"] for line in stored])
    assert [p.answer for p in found] == [line["answer"] for line in stored]
    for prediction, line in zip(found, stored, strict=True):
        assert prediction.probabilities is not None
        assert list(prediction.probabilities.values()) == pytest.approx(line["probabilities"], rel=1e-6)


def test_one_text_is_no_list_of_rows(runs: dict[str, tunesmith.Run]) -> None:
    """Else each of its letters would get an answer."""
    with pytest.raises(UsageError, match="list"):
        runs["list"].predict("A warm, funny film.")


def test_a_row_without_its_field_is_named(runs: dict[str, tunesmith.Run]) -> None:
    with pytest.raises(DataError, match="`text`") as caught:
        runs["list"].predict(["fine", {"txt": "oops"}])
    assert caught.value.where == "input:2" and "txt" in str(caught.value.fix)


def test_comparing(runs: dict[str, tunesmith.Run]) -> None:
    found = tunesmith.compare(runs["list"], runs["frame"].path)
    assert found.metric == "accuracy" and len(found.rows) == 2 and found.verdict
    assert found.rows[1]["difference"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert found.rows[1]["outcome"] == "no difference shown"
    with pytest.raises(UsageError, match="two runs or more"):
        tunesmith.compare(runs["list"])


def test_runs_on_other_rows_are_not_compared(
    runs: dict[str, tunesmith.Run], tiny_encoder: Path, tmp_path: Path
) -> None:
    """Unless both were measured on the same rows since, as the error says."""
    first = tunesmith.load(shutil.copytree(runs["list"].path, tmp_path / "first"))
    other = tune(labelled_rows(80, seed=4), tiny_encoder, tmp_path / "other")
    with pytest.raises(UsageError, match="different test rows") as caught:
        tunesmith.compare(first, other)
    file = write_jsonl(tmp_path / "file.jsonl", [{**row, "text": f"{row['text']}!"} for row in labelled_rows(30, 7)])
    commands = re.findall(r"`tunesmith (eval [^`]*)`", caught.value.fix or "")
    for command in commands:
        assert cli.run([str(file) if word == "FILE" else word for word in command.split()]) == 0
    assert len(commands) == 2
    found = tunesmith.compare(first, other)
    [one], [another] = first.evaluations(), other.evaluations()
    assert one.id in found.rows[0]["name"] and another.id in found.rows[1]["name"]
    assert str(one.path) in found.verdict and found.rows[0]["value"]["value"] == one.metrics["accuracy"].value
    assert tunesmith.compare(one, other).rows == found.rows


def test_a_row_more_is_another_set_of_rows(runs: dict[str, tunesmith.Run], tmp_path: Path) -> None:
    twice = tmp_path / "twice"
    shutil.copytree(runs["list"].path, twice)
    answers = twice / "predictions.jsonl"
    lines = answers.read_text(encoding="utf-8").splitlines()
    answers.write_text("\n".join([*lines, lines[0]]) + "\n", encoding="utf-8")
    with pytest.raises(UsageError, match="different test rows"):
        tunesmith.compare(runs["list"], twice)


def test_a_notebook_shows_the_verdict(runs: dict[str, tunesmith.Run]) -> None:
    shown = runs["list"]._repr_html_()
    assert html.escape(runs["list"].verdict) in shown and str(runs["list"].report()) in shown
    assert repr(runs["list"]) == f"Run({str(runs['list'].path)!r}, finished)"


def test_a_notebook_shows_what_a_terminal_does(
    runs: dict[str, tunesmith.Run], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs["list"]
    compared = tunesmith.compare(run, runs["frame"])
    plan = tunesmith.plan(run.recipe)
    monkeypatch.setattr("tunesmith.planning.plan", lambda *args, **keys: plan)  # the free memory changes meanwhile
    for command, shown in (
        (["runs", "show", str(run.path)], run._repr_html_()),
        (["compare", str(run.path), str(runs["frame"].path)], compared._repr_html_()),
        (["plan", str(run.path / "recipe.yaml")], plan._repr_html_()),
    ):
        assert cli.run(command) == 0
        cells = re.findall(r"<t[dh] [^>]*>(.*?)</t[dh]>", shown)
        assert len(cells) > 5 and shown.startswith("<")
        printed = capsys.readouterr().out
        for cell in cells:
            assert html.unescape(cell) in printed, command


def test_a_verdict_cannot_write_html(runs: dict[str, tunesmith.Run], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunesmith.Run, "verdict", property(lambda self: "<script>alert(1)</script>"))
    assert "<script>" not in runs["list"]._repr_html_()


def test_a_generating_model(tiny_decoder: Path, tmp_path: Path) -> None:
    keys = {"evaluate": {"baselines": ["base"], "resamples": 200, "generation": {"max_new_tokens": 8}}}
    run = tunesmith.tune(
        [*tiny.question_rows(80)], task="text-generation", model=str(tiny_decoder), method="peft",
        run_dir=tmp_path / "run", precision="fp32", training={"max_steps": 10, "batch_size": 8}, **keys,
    )  # fmt: skip
    assert {"rougeL", "chrf", "exact_match", "bits_per_byte"} <= set(run.metrics)
    assert "base" in run.baselines
    (answer,) = run.predict(["what is the capital of france"], max_new_tokens=3)
    assert isinstance(answer.answer, str) and answer.probability is None


def test_a_run_that_keeps_no_rows_to_measure_on(tiny_decoder: Path, questions: Path, tmp_path: Path) -> None:
    """Every row trains: there is a model that answers, no metrics, and the verdict says why."""
    recipe = recipe_file.parse(
        {
            "task": "text-generation", "model": str(tiny_decoder), "method": "peft", "precision": "fp32",
            "data": {"train": [str(questions)], "validation": 0.0, "test": 0.0},
            "training": {"max_steps": 2, "batch_size": 8, "compile": "off"},
        }
    )  # fmt: skip
    run = pipeline.run(recipe, run_dir=tmp_path / "run")
    assert run.status == "finished" and run.metrics == {} and run.verdict.startswith("Not measured")
    assert "| system |" not in (run.model_folder / "README.md").read_text(encoding="utf-8")
    assert len(run.predict(["what is the capital of france"], max_new_tokens=3)) == 1


def test_a_decoder_that_names_the_label(tiny_decoder: Path, tmp_path: Path) -> None:
    run = tune(labelled_rows(80), tiny_decoder, tmp_path / "run", method="peft")
    (found,) = run.predict(["the film is great"])
    assert found.answer in ("positive", "negative") and found.probability is not None


# --- errors ----------------------------------------------------------------------------------------------------------


def fails(error: type[TunesmithError], *arguments: Any, **keys: Any) -> TunesmithError:
    with pytest.raises(error) as caught:
        tune(*arguments, **keys)
    assert caught.value.what and caught.value.fix
    return caught.value


def test_an_unknown_model(tmp_path: Path) -> None:
    error = fails(RecipeError, labelled_rows(40), Path("minilm-l66"), tmp_path / "run")
    assert "minilm-l66" in str(error) and "minilm-l6" in str(error.fix)


def test_an_unknown_key_and_method(tiny_encoder: Path, tmp_path: Path) -> None:
    error = fails(RecipeError, labelled_rows(40), tiny_encoder, tmp_path / "run", training={"epoch": 1})
    assert error.where == "training.epoch" and "epochs" in str(error.fix)
    with pytest.raises(RecipeError, match="method"):
        tune(labelled_rows(40), tiny_encoder, tmp_path / "run", method="ful")
    assert not (tmp_path / "run").exists()


def test_rows_that_are_no_dictionaries(tiny_encoder: Path, tmp_path: Path) -> None:
    error = fails(DataError, [{"text": "a", "label": "b"}, 7], tiny_encoder, tmp_path / "run")
    assert error.where == "row 2" and "int" in error.what


def test_bad_rows_are_named_by_line(tiny_encoder: Path, tmp_path: Path) -> None:
    rows = labelled_rows(40)
    rows[16]["label"] = ""
    error = fails(DataError, rows, tiny_encoder, tmp_path / "run")
    assert str(error.where).endswith("rows.jsonl:17")
    assert tunesmith.load(tmp_path / "run").status == "failed"
    rows[16]["label"] = "positive"  # nothing was learned yet, so the same folder takes the mended rows
    keys = {"training": {"max_steps": 2}, "evaluate": {"baselines": []}}
    run = tunesmith.tune(
        rows,
        task="text-classification",
        model=str(tiny_encoder),
        run_dir=tmp_path / "run",
        on_event=lambda event: None,
        **keys,
    )
    assert run.status == "finished"


def test_a_folder_with_a_run_is_left_alone(runs: dict[str, tunesmith.Run], tiny_encoder: Path) -> None:
    """Rows in memory must not be written over those of the run that is there."""
    folder = runs["list"].path
    before = (folder / "rows.jsonl").read_bytes()
    error = fails(UsageError, labelled_rows(40, seed=3), tiny_encoder, folder)
    assert "there is a run in this folder already" in error.what
    assert (folder / "rows.jsonl").read_bytes() == before


def test_no_run_in_a_folder(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no run here") as caught:
        tunesmith.load(tmp_path)
    assert caught.value.where == str(tmp_path)


def test_a_task_that_the_model_cannot_do(tiny_encoder: Path, tmp_path: Path) -> None:
    error = fails(
        UsageError, [*tiny.question_rows(40)], tiny_encoder, tmp_path / "run", task="text-generation", method="peft"
    )
    assert "encoder" in error.what


def test_a_planted_secret_is_nowhere(tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "hunter2-9f1c7e"
    for name in ("HF_TOKEN", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY", "PIP_INDEX_URL"):
        monkeypatch.setenv(name, f"https://user:{secret}@index.invalid/" if name == "PIP_INDEX_URL" else secret)
    monkeypatch.setattr(sys, "argv", ["tunesmith", "--token", secret])
    run = tune(labelled_rows(80), tiny_encoder, tmp_path / "run")
    assert len([path for path in run.path.rglob("*") if path.is_file()]) > 15
    assert not [path for path in run.path.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]


def test_a_run_is_sent_home_to_its_files(tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, other = tmp_path / "home", tmp_path / "other"
    home.mkdir()
    other.mkdir()
    write_jsonl(home / "rows.jsonl", labelled_rows(60))
    monkeypatch.chdir(home)
    run = tune("rows.jsonl", tiny_encoder, home / "run")
    (run.path / "summary.json").unlink()  # as if it had been killed in the evaluation
    (run.path / "events.jsonl").unlink()
    monkeypatch.chdir(other)
    with pytest.raises(DataError, match=r"no file.*rows\.jsonl") as caught:
        pipeline.resume(run.path)
    assert f"cd {home}" in str(caught.value.fix)
    failure, finish = run.failure, run.how_to_finish()
    assert failure is not None and failure["fix"] == caught.value.fix, "it is told where it is looked up later too"
    assert finish == f"{caught.value.fix}; then tunesmith resume {run.path}", "what it has learned is kept"
    monkeypatch.chdir(home)
    assert pipeline.resume(run.path).metrics["accuracy"].value >= 0


def test_a_run_is_measured_again_from_any_folder(
    tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own files are those of the folder that it was made in; what is measured on is named from the current one."""
    home, other = tmp_path / "home", tmp_path / "other"
    home.mkdir()
    other.mkdir()
    write_jsonl(home / "rows.jsonl", labelled_rows(60))
    monkeypatch.chdir(home)
    shutil.copytree(tiny_encoder, home / "encoder")
    run = tune("rows.jsonl", Path("encoder"), home / "run")
    monkeypatch.chdir(other)
    write_jsonl(other / "rows.jsonl", labelled_rows(30, seed=7))
    assert pipeline.evaluate(run).metrics == run.metrics
    measured = pipeline.evaluate(run, data=["rows.jsonl"])
    assert measured.recipe.data.train == [str(home / "rows.jsonl")]
    assert measured.recipe.data.test == ["rows.jsonl"]
    write_jsonl(other / "rows.jsonl", labelled_rows(60))
    with pytest.raises(DataError, match="train data too") as leak:
        pipeline.evaluate(run, data=["rows.jsonl"])
    assert leak.value.fix == "leave such rows out of the file"
    write_jsonl(other / "wrong.jsonl", [*labelled_rows(30, seed=7), {"text": "fine", "label": "wonderful"}])
    with pytest.raises(DataError) as wrong:
        pipeline.evaluate(run, data=["wrong.jsonl"])
    assert wrong.value.where == "wrong.jsonl:31" and str(home) not in str(wrong.value.fix), "it is not lost but wrong"
    (home / "rows.jsonl").rename(home / "moved.jsonl")
    (other / "rows.jsonl").rename(other / "new.jsonl")
    with pytest.raises(DataError, match=r"no file.*rows\.jsonl") as caught:
        pipeline.evaluate(run, data=["new.jsonl"])
    assert f"was made in {home}" in str(caught.value.fix) and f"cd {home}" not in str(caught.value.fix)
