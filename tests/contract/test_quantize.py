"""`tunesmith quantize`: a run of its own beside the original, measured on the same rows; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import tiny
import tunesmith
from conftest import labelled_rows, write_jsonl
from tunesmith import disk, pipeline, runs
from tunesmith.cli.main import run as cli
from tunesmith.compression import quantize as quantizing
from tunesmith.compression import sensitivity
from tunesmith.compression.settings import Quantize
from tunesmith.compression.words import speed_in_words
from tunesmith.errors import DataError, InterruptedRun, ResourceError, UsageError
from tunesmith.events import nobody
from tunesmith.prediction.outputs import Outputs
from tunesmith.recipe_file import parse

FIXED = {
    "run",
    "bytes",
    "original_bytes",
    "metrics",
    "original_metrics",
    "tokens_per_second",
    "original_tokens_per_second",
}


@pytest.fixture(scope="session")
def classifier(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> runs.Run:
    folder = tmp_path_factory.mktemp("classifier")
    write_jsonl(folder / "rows.jsonl", labelled_rows(160))
    return tunesmith.tune(
        str(folder / "rows.jsonl"), task="text-classification", model=str(tiny_encoder), method="full",
        run_dir=folder / "run", on_event=nobody, training={"epochs": 2, "learning_rate": 5e-3},
        evaluate={"baselines": ["majority"]}, precision="fp32",
    )  # fmt: skip


@pytest.fixture(scope="session")
def writer(tiny_decoder: Path, tmp_path_factory: pytest.TempPathFactory) -> runs.Run:
    folder = tmp_path_factory.mktemp("writer")
    write_jsonl(folder / "rows.jsonl", tiny.question_rows(60))
    return tunesmith.tune(
        str(folder / "rows.jsonl"), task="text-generation", model=str(tiny_decoder), method="peft",
        run_dir=folder / "run", on_event=nobody, training={"epochs": 1, "learning_rate": 1e-2}, precision="fp32",
        evaluate={"baselines": ["base"], "limit": 10, "generation": {"max_new_tokens": 4}},
    )  # fmt: skip


def test_the_command_leaves_a_run_that_every_face_reads(
    classifier: runs.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "small"
    before = tiny.sha256s(classifier.model_folder)
    arguments = ["quantize", str(classifier.path), "--to", "int8", "--run-dir", str(target), "--rows", "16", "--json"]
    assert cli(arguments) == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told) >= FIXED
    assert told["run"] == str(target) and told["bytes"] < 0.5 * told["original_bytes"]
    assert told["tokens_per_second"] > 0 and told["original_tokens_per_second"] > 0
    assert tiny.sha256s(classifier.model_folder) == before  # the original stays
    opened = tunesmith.load(target)
    assert opened.status == "finished" and opened.recipe.quantize == Quantize(to="int8", rows=16)
    assert opened.predict(["a great film"])[0].answer in ("positive", "negative")
    assert (target / "report.html").is_file() and (target / "model" / "README.md").is_file()
    metric, original = opened.metrics["accuracy"], classifier.metrics["accuracy"]
    assert abs(metric.value - original.value) < 0.1
    compared = tunesmith.compare(classifier, opened)
    assert compared.rows[1]["outcome"] == "no difference shown"
    assert {line["batch"] for line in told["speed"]["quantized"]} == {1, 8}
    assert "original in bf16" in told["speed"]


def test_a_quantized_run_is_measured_again_on_other_rows(classifier: runs.Run, tmp_path: Path) -> None:
    from tunesmith import pipeline

    made = quantizing.quantize(classifier, Quantize(to="int8-static", rows=16), target=tmp_path / "small")
    other = write_jsonl(tmp_path / "other.jsonl", labelled_rows(60, seed=9))
    measured = pipeline.evaluate(made, data=[str(other)])
    assert measured.model_folder == made.model_folder
    assert measured.metrics["accuracy"].value > 0.5


@pytest.mark.parametrize("kind", ["int8", "int4-weights"])
def test_a_model_that_writes_is_quantized_with_its_adapter_inside(writer: runs.Run, kind: Any, tmp_path: Path) -> None:
    made = quantizing.quantize(writer, Quantize(to=kind, rows=8), target=tmp_path / kind)
    summary = made.summary()
    assert set(summary) >= FIXED
    assert summary["metrics"]["bits_per_byte"]["value"] == pytest.approx(
        summary["original_metrics"]["bits_per_byte"]["value"], rel=0.1
    )
    assert list(summary["sensitivity"].values()) == sorted(summary["sensitivity"].values(), reverse=True)
    assert {"layer 0", "layer 1", "embedding", "vocabulary head"} == set(summary["sensitivity"])
    assert made.predict([{"prompt": "what is the capital of france"}])


def test_a_recipe_quantizes_its_own_run(tiny_encoder: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", labelled_rows(120))
    run = tunesmith.tune(
        str(tmp_path / "rows.jsonl"), task="text-classification", model=str(tiny_encoder), method="full",
        run_dir=tmp_path / "run", on_event=nobody, training={"max_steps": 2}, quantize="int8", precision="fp32",
        evaluate={"baselines": []},
    )  # fmt: skip
    made = tunesmith.load(run.path / "quantized" / "int8")
    assert made.id == "run/int8" and made.summary()["bytes"] > 0
    assert run.status == "finished"


@pytest.mark.parametrize("aware", [None, "int8"])
def test_what_was_trained_for_a_format_is_rounded_as_it_was_trained(
    tiny_decoder: Path, tmp_path: Path, aware: str | None
) -> None:
    """No outliers are moved out of its norms then; of other models they are."""
    from tunesmith.models.saving import load_artefact

    write_jsonl(tmp_path / "rows.jsonl", tiny.question_rows(40))
    run = tunesmith.tune(
        str(tmp_path / "rows.jsonl"), task="text-generation", model=str(tiny_decoder), method="full",
        run_dir=tmp_path / "run", on_event=nobody, training={"max_steps": 2, "quantization_aware": aware},
        quantize="int8", precision="fp32",
        evaluate={"baselines": [], "limit": 10, "generation": {"max_new_tokens": 2}},
    )  # fmt: skip
    models = [load_artefact(folder)[0] for folder in (run.model_folder, run.path / "quantized" / "int8" / "model")]
    before, after = (dict(model.network.named_parameters()) for model in models)
    norms = [name for name in before if "layernorm" in name]
    assert norms and [torch.equal(before[name], after[name]) for name in norms] == [aware is not None] * len(norms)


def test_a_budget_leaves_the_most_sensitive_layers_alone(
    classifier: runs.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The validation metric is made to suffer from two layers; the search must find just these."""
    bad = {"embedding", "layer 1"}
    seen: list[set[str]] = []

    def value(outputs: Outputs, right: Any, metric: str) -> float:
        return 0.9 - 0.1 * len(seen[-1] & bad) if seen else 0.9

    honest = sensitivity.narrowed

    def narrowed(model: Any, layers: Any, form: Any) -> Any:
        seen.append({layer.name for layer in layers})
        return honest(model, layers, form)

    monkeypatch.setattr(sensitivity, "_value", value)
    monkeypatch.setattr(sensitivity, "narrowed", narrowed)
    monkeypatch.setattr(sensitivity, "sensitivities", lambda *rest: {"embedding": 3.0, "layer 1": 2.0, "layer 0": 1.0})
    made = quantizing.quantize(classifier, Quantize(to="int8", rows=16, budget=0.05), target=tmp_path / "small")
    assert made.summary()["kept"] == ["embedding", "layer 1"]  # each costs 0.1
    made = quantizing.quantize(classifier, Quantize(to="int8", rows=16, budget=0.15), target=tmp_path / "smaller")
    assert made.summary()["kept"] == ["embedding"] and made.summary()["search"]["met"]


def test_layers_can_be_named_that_stay(classifier: runs.Run, tmp_path: Path) -> None:
    made = quantizing.quantize(classifier, Quantize(to="int8", rows=8, keep=["layer 0"]), target=tmp_path / "small")
    kinds = json.loads((made.model_folder / "tunesmith.json").read_text())["narrow"]
    assert not any(".layer.0." in name for name in kinds) and any(".layer.1." in name for name in kinds)
    with pytest.raises(UsageError, match="no layer is named 'layer 9'"):
        quantizing.quantize(classifier, Quantize(to="int8", keep=["layer 9"]), target=tmp_path / "other")


def test_calibration_data_of_another_task_are_refused(classifier: runs.Run, tmp_path: Path) -> None:
    questions = write_jsonl(tmp_path / "qa.jsonl", tiny.question_rows(20))
    with pytest.raises(DataError, match="not of the task text-classification"):
        quantizing.quantize(classifier, Quantize(to="int8-static", data=[str(questions)]), target=tmp_path / "a")
    rows = [row | {"label": f"topic {n % 2}"} for n, row in enumerate(labelled_rows(40))]
    topics = write_jsonl(tmp_path / "topics.jsonl", rows)
    with pytest.raises(DataError, match="the model knows no label 'topic 0'"):
        quantizing.quantize(classifier, Quantize(to="int8-static", data=[str(topics)]), target=tmp_path / "b")
    assert not list(tmp_path.glob("a*")) and not list(tmp_path.glob(".a*"))


def test_what_cannot_be_quantized_is_refused_before_anything_is_loaded(classifier: runs.Run, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="fp8 needs a GPU"):
        quantizing.quantize(classifier, Quantize(to="fp8"), target=tmp_path / "small")
    made = quantizing.quantize(classifier, Quantize(to="int8", rows=8), target=tmp_path / "small")
    with pytest.raises(UsageError, match="quantized already"):
        quantizing.quantize(made, Quantize(to="int8"), target=tmp_path / "smaller")
    with pytest.raises(UsageError, match="something already"):
        quantizing.quantize(classifier, Quantize(to="int8"), target=tmp_path / "small")


@pytest.mark.parametrize("value", ["int9", {"to": "int8", "budget": -1}, {"budget": 0.1}])
def test_a_recipe_with_a_wrong_choice_is_refused(value: Any) -> None:
    with pytest.raises(UsageError, match="quantize"):
        parse({"task": "chat", "model": "m", "data": {"train": "a.jsonl"}, "quantize": value})


def test_calibration_data_are_read_as_the_runs_own_and_wholly(tmp_path: Path) -> None:
    lines = ["review,mark", *(f"Café Nº {n},{n % 2}" for n in range(30)), "Cafe,", "Café Nº 1,1"]
    path = tmp_path / "calibration.csv"
    path.write_text("\n".join(lines) + "\n", encoding="latin-1")
    data = {
        "train": "gone.csv", "columns": {"text": "review", "label": "mark"}, "encoding": "latin-1", "drop_bad": True,
        "label_names": ["bad", "good"], "shots": 2, "max_rows": 5, "read_rows": 5, "duplicates": "drop",
        "group_by": "author", "validation": 0.2, "test": ["gone too.csv"],
    }  # fmt: skip
    recipe = parse({"task": "text-classification", "model": "m", "data": data})
    model: Any = SimpleNamespace(labels=["bad", "good"])
    none: Any = SimpleNamespace(train=[])
    rows = quantizing._calibration_rows(recipe, Quantize(to="int8", rows=99, data=[str(path)]), none, model, nobody)
    assert len(rows) == 31
    assert {row.fields["label"] for row in rows} == {"bad", "good"} and "Café" in rows[0].fields["text"]


def test_a_disk_that_fills_leaves_nothing_behind(classifier: runs.Run, tmp_path: Path) -> None:
    """Files may not grow beyond some size, which fails in the middle of one as a full disk does."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16_000, before[1]))
    try:
        with pytest.raises(ResourceError, match="File too large"):
            quantizing.quantize(classifier, Quantize(to="int8", rows=8), target=tmp_path / "small")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_a_model_whose_layers_cannot_be_quantized_is_refused(tiny_decoder: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    tokenizer = AutoTokenizer.from_pretrained(tiny_decoder)
    config = GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=len(tokenizer), n_positions=128)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    write_jsonl(tmp_path / "rows.jsonl", tiny.question_rows(20))
    run = tunesmith.tune(
        str(tmp_path / "rows.jsonl"), task="text-generation", model=str(tmp_path / "gpt2"), method="full",
        run_dir=tmp_path / "run", on_event=nobody, training={"max_steps": 1}, precision="fp32",
        evaluate={"baselines": [], "limit": 10, "generation": {"max_new_tokens": 2}},
    )  # fmt: skip
    with pytest.raises(UsageError, match="its layers are of other kinds"):
        quantizing.quantize(run, Quantize(to="int8", rows=8))
    assert list((run.path / "quantized").iterdir()) == []


def test_what_is_slower_is_called_slower() -> None:
    speeds = {
        "original": [{"batch": 1, "tokens_per_second": 100.0}, {"batch": 8, "tokens_per_second": 100.0}],
        "quantized": [{"batch": 1, "tokens_per_second": 60.0}, {"batch": 8, "tokens_per_second": 151.0}],
    }
    assert speed_in_words(speeds) == (
        "here SLOWER (0.60 of the speed) at batch 1 and 1.5 times as fast at batch 8 than the original"
    )


def test_an_encoder_becomes_an_onnx_graph_in_eight_bits(classifier: runs.Run, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    made = quantizing.quantize(classifier, Quantize(to="onnx-int8", rows=8), target=tmp_path / "graph")
    assert (made.model_folder / "model.onnx").is_file() and not list(made.model_folder.glob("*.safetensors"))
    texts = ["a great film", "the plot was bad and very dull", "lovely"]  # of different lengths: padding must not count
    for ours, theirs in zip(made.predict(texts), classifier.predict(texts), strict=True):
        assert ours.probabilities and theirs.probabilities
        assert ours.probabilities["positive"] == pytest.approx(theirs.probabilities["positive"], abs=0.03)
    with pytest.raises(UsageError, match="quantized as a whole"):
        quantizing.quantize(classifier, Quantize(to="onnx-int8", rows=8, budget=0.1), target=tmp_path / "other")


def test_only_encoders_become_onnx_graphs(writer: runs.Run, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="only encoders with a head"):
        quantizing.quantize(writer, Quantize(to="onnx-int8"), target=tmp_path / "graph")


def test_a_run_that_is_killed_while_it_keeps_its_quantized_model_goes_on(
    tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last word of what is made inside is none of the run's own."""
    tree = {
        "task": "text-classification",
        "model": str(tiny_encoder),
        "data": {"train": str(write_jsonl(tmp_path / "rows.jsonl", labelled_rows(60)))},
        "training": {"max_steps": 2},
        "evaluate": {"baselines": ["majority"], "resamples": 100},
        "quantize": "int8",
        "precision": "fp32",
    }
    flush = disk.flush_tree

    def killed(folder: Path) -> None:
        if (folder / "predictions.jsonl").is_file():  # the quantized model's run, which is complete but for its name
            raise KeyboardInterrupt
        flush(folder)

    monkeypatch.setattr(disk, "flush_tree", killed)
    with pytest.raises(InterruptedRun):
        pipeline.run(parse(tree), run_dir=tmp_path / "run")
    monkeypatch.undo()
    log = tmp_path / "run" / "events.jsonl"
    lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
    assert json.loads(lines[-1])["type"] == "run_failed"
    log.write_text("".join(lines[:-1]), encoding="utf-8")  # a kill leaves no word
    opened = runs.open_run(tmp_path / "run")
    assert opened.status != "finished" and not (opened.path / "quantized" / "int8").exists()
    pipeline.resume(opened.path)
    again = runs.open_run(tmp_path / "run")
    assert again.status == "finished"
    assert runs.open_run(again.path / "quantized" / "int8").status == "finished"
    said = [event["type"] for event in runs.read_events(again.path)]
    assert said.count("run_finished") == 1
