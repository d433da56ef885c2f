"""Whole runs with a teacher, on tiny models."""

from __future__ import annotations

import http.client
import http.server
import io
import json
import shutil
import threading
import time
import urllib.error
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from conftest import labelled_rows, make_encoder, write_jsonl
from tunesmith import pipeline, recipe_file
from tunesmith.errors import RecipeError, ResourceError
from tunesmith.events import CheckpointSaved, Event
from tunesmith.objectives.server_teacher import Server
from tunesmith.recipe import Distillation, Generation
from tunesmith.runs import Run

FAST = {"baselines": [], "resamples": 100}
"""No baselines: they are not what is tested, unless a test says so."""


def tune(folder: Path, listen: Callable[[Event], None] | None = None, **tree: Any) -> Run:
    tree = {"precision": "fp32", "evaluate": FAST} | tree
    return pipeline.run(recipe_file.parse(tree), run_dir=folder, **({"on_event": listen} if listen else {}))


@pytest.fixture(scope="module")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("data") / "reviews.jsonl", labelled_rows(160))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path, reviews: Path) -> Path:
    """A classifier that knows the reviews well."""
    folder = tmp_path_factory.mktemp("teacher") / "run"
    training = {"epochs": 6, "learning_rate": 3e-3, "dropout": 0}
    run = tune(
        folder, task="text-classification", model=str(tiny_encoder), method="full",
        data={"train": str(reviews)}, training=training,
    )  # fmt: skip
    assert run.metrics["accuracy"].value > 0.8
    return folder


def classification(run: Path, data: Path, **distillation: Any) -> dict[str, Any]:
    return {
        "task": "text-classification",
        "model": str(run),
        "student": {"layers": 1},
        "method": "distillation",
        "data": {"train": str(data)},
        "training": {"epochs": 2, "learning_rate": 1e-3, "dropout": 0, "distillation": distillation},
    }


def test_a_student_is_cut_taught_and_compared(teacher: Path, reviews: Path, tmp_path: Path) -> None:
    """The default baselines of the method: teacher, student before, student without a teacher."""
    evaluate = {"resamples": 100}
    run = tune(tmp_path / "run", **classification(teacher, reviews) | {"evaluate": evaluate})
    summary = run.summary()
    assert {"base", "teacher", "without-teacher"} <= set(summary["baselines"])
    found = summary["distillation"]
    systems = found["systems"]
    assert list(systems) == ["teacher", "base", "without-teacher", "distilled"]
    assert systems["distilled"]["parameters"] < systems["teacher"]["parameters"]
    assert systems["distilled"]["bytes"] == 4 * systems["distilled"]["parameters"]
    assert systems["teacher"]["milliseconds"] > 0
    assert systems["distilled"]["value"] == summary["metrics"][found["metric"]]
    assert ", the teacher)" not in run.verdict, "a student does not lose to what it learned from"
    page = run.report().read_text(encoding="utf-8")
    assert "What the student kept of its teacher" in page
    config = json.loads((run.model_folder / "config.json").read_text(encoding="utf-8"))
    assert config["num_hidden_layers"] == 1


def test_the_cut_student_begins_with_the_head_of_its_teacher(teacher: Path, reviews: Path, tmp_path: Path) -> None:
    """A fit of nothing: what is measured before the first change is no guess."""
    from tunesmith.models.cutting import base_folder
    from tunesmith.models.load import load_model

    recipe = recipe_file.parse(classification(teacher, reviews))
    student = load_model(base_folder(recipe), name="student", form="classify", labels=tiny.LABELS)
    whole = load_model(teacher / "model", name="teacher", form="classify", labels=tiny.LABELS)
    assert len(student.blocks()) == 1 and len(whole.blocks()) == 2
    assert torch.equal(student.network.classifier.weight, whole.network.classifier.weight)


def test_layers_and_attention_and_unlabelled_text_are_learned_from(
    teacher: Path, reviews: Path, tmp_path: Path
) -> None:
    more = write_jsonl(tmp_path / "more.jsonl", [{"text": row["text"]} for row in labelled_rows(40, seed=9)])
    notices: list[str] = []

    def listen(event: Event) -> None:
        notices.append(getattr(event, "message", ""))

    tree = classification(teacher, reviews, hidden_weight=1.0, attention_weight=0.1, unlabelled=[str(more)])
    run = tune(tmp_path / "run", listen, **tree)
    assert any("texts without labels" in message for message in notices)
    assert run.metrics["accuracy"].value > 0.7
    weights = (run.model_folder / "model.safetensors").read_bytes()
    assert b"hidden_projection" not in weights


def test_a_killed_run_goes_on_exactly(teacher: Path, reviews: Path, tmp_path: Path) -> None:
    tree = classification(teacher, reviews, hidden_weight=1.0)
    tree["training"] |= {"checkpoint_steps": 3, "dropout": 0.1}
    whole = tune(tmp_path / "whole", **tree)

    class Killed(Exception):
        pass

    def kill(event: Event) -> None:
        if isinstance(event, CheckpointSaved) and event.step == 6:
            raise Killed

    with pytest.raises(Killed):
        tune(tmp_path / "killed", kill, **tree)
    kept = tmp_path / "killed" / "tokens" / "1-tune" / "teacher" / "scores-0" / "scores.npy"
    assert kept.is_file()
    damaged = bytearray(kept.read_bytes())
    damaged[-1] ^= 0xFF  # what the teacher said is checked, and asked again where it is not what it was
    kept.write_bytes(bytes(damaged))
    again = pipeline.resume(tmp_path / "killed")
    assert tiny.sha256s(again.model_folder) == tiny.sha256s(whole.model_folder)


def writing(decoder: Path, data: Path, **distillation: Any) -> dict[str, Any]:
    return {
        "task": "text-generation",
        "model": str(decoder),
        "method": "distillation",
        "student": {"layers": 1, "neurons": 0.5},
        "data": {"train": str(data)},
        "training": {
            "max_steps": 4,
            "batch_size": 4,
            "learning_rate": 1e-3,
            "rollouts": {"max_new_tokens": 4, "validation_prompts": 4},
            "distillation": distillation,
        },
        "evaluate": FAST | {"limit": 10, "generation": {"max_new_tokens": 4}},
    }


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "asked.jsonl", tiny.question_rows(40))


@pytest.mark.parametrize(
    "distillation",
    [
        {},
        {"divergence": "jensen-shannon", "cache": "top-k", "kept_tokens": 8},
        {"cache": "sampled", "kept_tokens": 8},
        {"answers": "student", "divergence": "reverse-kl"},
        {"answers": "teacher", "written": {"max_new_tokens": 4, "temperature": 1.0}},
        {"answers": "teacher", "label_weight": 0.5, "written": {"max_new_tokens": 4, "temperature": 1.0}},
        {"answers": "teacher", "written": {"per_prompt": 3, "keep": "agreement", "least": 0.1, "max_new_tokens": 4}},
    ],
    ids=["logits", "top-k", "sampled", "on-policy", "sequences", "sequences and logits", "agreement"],
)  # fmt: skip
def test_every_way_to_teach_writing_runs(
    distillation: dict[str, Any], tiny_decoder: Path, asked: Path, tmp_path: Path
) -> None:
    run = tune(tmp_path / "run", **writing(tiny_decoder, asked, **distillation))
    config = json.loads((run.model_folder / "config.json").read_text(encoding="utf-8"))
    assert config["num_hidden_layers"] == 1 and config["intermediate_size"] == 32
    assert run.metrics["bits_per_byte"].value > 0


def test_bare_text_is_taught_and_compared(tiny_decoder: Path, tmp_path: Path) -> None:
    from conftest import sentences

    text = write_jsonl(tmp_path / "text.jsonl", [{"text": text} for text in sentences(80)])
    tree = writing(tiny_decoder, text) | {
        "task": "language-modeling",
        "evaluate": {"baselines": ["teacher", "without-teacher"], "resamples": 100, "general": None},
    }
    run = tune(tmp_path / "run", **tree)
    assert {"teacher", "without-teacher"} == set(run.baselines)
    assert run.summary()["distillation"]["metric"] == "bits_per_byte"


def test_a_killed_on_policy_run_goes_on_exactly(tiny_decoder: Path, asked: Path, tmp_path: Path) -> None:
    tree = writing(tiny_decoder, asked, answers="student")
    tree["training"] |= {"checkpoint_steps": 2}
    whole = tune(tmp_path / "whole", **tree)

    class Killed(Exception):
        pass

    def kill(event: Event) -> None:
        if isinstance(event, CheckpointSaved) and event.step == 2:
            raise Killed

    with pytest.raises(Killed):
        tune(tmp_path / "killed", kill, **tree)
    again = pipeline.resume(tmp_path / "killed")
    assert tiny.sha256s(again.model_folder) == tiny.sha256s(whole.model_folder)


# --- a teacher behind the OpenAI API ------------------------------------------------------


@pytest.fixture
def server() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Answers every prompt with its last word, and remembers what it was asked."""
    asked: list[dict[str, Any]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append({"path": self.path, "key": self.headers.get("Authorization"), **body})
            failing = len(asked) == 1
            answer = {"choices": [{"message": {"content": body["messages"][-1]["content"].split()[-1]}}]}
            self.send_response(503 if failing else 200)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *arguments: Any) -> None:
            pass

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}/v1", asked
    running.shutdown()


def test_a_server_teaches_by_what_it_writes_and_is_asked_once(
    server: tuple[str, list[dict[str, Any]]],
    tiny_decoder: Path,
    asked: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    address, requests = server
    taught = {"teacher": address, "teacher_model": "large", "answers": "teacher"}
    tree = writing(tiny_decoder, asked, **taught) | {"student": None}
    run = tune(tmp_path / "run", **tree)
    rows = run.path / "stages" / "1-tune" / "teacher_answers.jsonl"
    written = [
        text for line in rows.read_text().splitlines()[1:] for texts in json.loads(line)["answers"] for text in texts
    ]
    assert all(text.isdigit() for text in written)  # the last word of each prompt is its number
    assert len(requests) == len(written) + 1, "the refused request is sent again, and none twice"
    assert requests[0]["path"] == "/v1/chat/completions" and requests[0]["key"] == "Bearer secret"
    assert requests[0]["model"] == "large"
    again = tmp_path / "again"
    (again / "stages" / "1-tune").mkdir(parents=True)
    shutil.copy(rows, again / "stages" / "1-tune")
    tune(again, **tree)
    assert len(requests) == len(written) + 1


# --- what cannot be -----------------------------------------------------------------------


def test_other_tokenizers_are_refused_before_anything_is_trained(
    tiny_decoder: Path, tiny_bart: Path, asked: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(tiny_decoder, tmp_path / "other")
    shutil.copy(tiny_bart / "tokenizer.json", other / "tokenizer.json")
    tree = writing(tiny_decoder, asked, teacher=str(other)) | {"student": None}
    with pytest.raises(RecipeError, match="different tokenizers") as raised:
        tune(tmp_path / "run", **tree)
    assert "answers: teacher" in str(raised.value.fix)
    assert not (tmp_path / "run" / "stages").exists()
    tree = writing(
        tiny_decoder, asked, teacher=str(other), answers="teacher", written={"max_new_tokens": 4, "temperature": 1.0}
    )
    assert tune(tmp_path / "sequences", **tree | {"student": None}).metrics


def test_a_run_that_is_not_there_is_named(tiny_encoder: Path, reviews: Path, tmp_path: Path) -> None:
    tree = classification(tiny_encoder, reviews, teacher="runs/mistyped") | {"student": None}
    with pytest.raises(RecipeError, match="there is no run 'runs/mistyped'") as caught:
        tune(tmp_path / "run", **tree)
    assert caught.value.where == "training.distillation.teacher" and not (tmp_path / "run").exists()


def test_a_teacher_of_other_labels_is_refused(teacher: Path, tiny_encoder: Path, tmp_path: Path) -> None:
    rows = [{"text": row["text"], "label": row["label"][:3]} for row in labelled_rows(60)]
    data = write_jsonl(tmp_path / "other.jsonl", rows)
    tree = classification(teacher, data, teacher=str(teacher)) | {"model": str(tiny_encoder)}
    with pytest.raises(RecipeError, match="other labels"):
        tune(tmp_path / "run", **tree)


def test_a_teacher_without_a_head_is_refused(tiny_encoder: Path, reviews: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no head for these labels"):
        tune(tmp_path / "run", **classification(tiny_encoder, reviews))


def test_a_teacher_with_another_tokenizer_can_still_teach_labels(
    teacher: Path, reviews: Path, tiny_bert: Path, tmp_path: Path
) -> None:
    """It reads the texts in its own way."""
    other = make_encoder(tmp_path, pooling="mean")
    tokenizer = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    words = [word for word in vocabulary if word.isalpha() and len(word) > 3]
    vocabulary[words[0]], vocabulary[words[1]] = vocabulary[words[1]], vocabulary[words[0]]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    tree = classification(teacher, reviews, teacher=str(teacher)) | {"model": str(other), "student": None}
    assert tune(tmp_path / "run", **tree).metrics["accuracy"].value > 0.5
    with pytest.raises(RecipeError, match="different tokenizers"):
        tree = classification(teacher, reviews, teacher=str(teacher), hidden_weight=1.0)
        tune(tmp_path / "hidden", **tree | {"model": str(other), "student": None})


@pytest.mark.parametrize(
    ("changes", "distillation", "reason"),
    [
        ({"student": None}, {}, "there is no teacher"),
        ({}, {"answers": "student"}, "needs a task whose answers are texts"),
        ({}, {"cache": "sampled", "divergence": "reverse-kl"}, "estimate the forward divergence alone"),
        ({}, {"teacher": "https://host/v1"}, "name one by `teacher_model`"),
        ({}, {"teacher": "https://host/v1", "teacher_model": "large"}, "not the distributions behind them"),
        ({}, {"label_weight": 1.0}, "nothing is learned from the teacher"),
        ({}, {"written": {"keep": "agreement"}}, "set `per_prompt"),
        ({"student": {"layers": None}}, {}, "nothing would be cut"),
        ({"task": "text-regression"}, {}, "cannot teach the task"),
        ({"method": "full"}, {"teacher": "runs/x"}, "is read by `objective: distill`"),
        ({"method": "full", "evaluate": {"baselines": ["without-teacher"]}}, {}, "belongs to a teacher"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused_with_its_remedy(
    changes: dict[str, Any], distillation: dict[str, Any], reason: str
) -> None:
    tree = classification(Path("teacher"), Path("reviews.jsonl"), **distillation) | changes
    with pytest.raises(RecipeError, match=reason):
        recipe_file.parse(tree)


def test_a_model_cannot_be_cut_to_more_than_it_has(teacher: Path, reviews: Path, tmp_path: Path) -> None:
    tree = classification(teacher, reviews) | {"student": {"layers": 3}}
    with pytest.raises(RecipeError, match="has 2 layers, of which 3 cannot be kept"):
        tune(tmp_path / "run", **tree)


def test_a_head_is_fitted_first_and_words_are_tagged(
    teacher: Path, tiny_encoder: Path, reviews: Path, tmp_path: Path
) -> None:
    stages = [{"name": "probe", "parameters": {"kind": "none"}}, {"name": "tune"}]
    tree = classification(teacher, reviews, teacher=str(teacher)) | {"student": None, "stages": stages}
    assert tune(tmp_path / "probe", **tree | {"model": str(tiny_encoder)}).metrics["accuracy"].value > 0.5
    spans = write_jsonl(tmp_path / "spans.jsonl", tiny.tagged_rows(60))
    tags = {"task": "token-classification", "data": {"train": str(spans)}}
    training = {"max_steps": 4, "dropout": 0}
    first = tune(tmp_path / "tagger", **tags, model=str(tiny_encoder), method="full", training=training)
    taught = training | {"distillation": {"divergence": "reverse-kl"}}
    student = tune(
        tmp_path / "tags", **tags, model=str(first.path), method="distillation", student={"layers": 1}, training=taught
    )
    assert "span_f1" in student.metrics


def test_an_adapter_on_a_cut_model_learns_and_is_loaded_again(tiny_decoder: Path, asked: Path, tmp_path: Path) -> None:
    tree = writing(tiny_decoder, asked) | {"parameters": {"kind": "lora", "rank": 2}}
    run = tune(tmp_path / "run", **tree)
    assert (run.model_folder / "adapter_config.json").is_file()
    assert len(Run(run.path).predict(["what is the capital of france"])) == 1


def test_a_teacher_that_refuses_is_asked_no_more(
    server: tuple[str, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, _ = server
    teacher = Server(Distillation(teacher=address, teacher_model="large", answers="teacher"))
    asked: list[Any] = []

    def refused(body: dict[str, Any]) -> dict[str, Any]:
        asked.append(body)
        time.sleep(0.05)
        raise urllib.error.HTTPError(address, 401, "Unauthorized", http.client.HTTPMessage(), io.BytesIO(b"no key"))

    monkeypatch.setattr(teacher, "_post", refused)
    with pytest.raises(ResourceError, match="401"):
        teacher.answers([[{"role": "user", "content": str(n)}] for n in range(200)], Generation(), 0)
    assert len(asked) < 20
