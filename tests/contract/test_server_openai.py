"""The flow of OpenAI's guide with OpenAI's own client, which checks every response against its types."""

from __future__ import annotations

import asyncio
import base64
import csv
import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, AzureOpenAI, OpenAI

import serving
from serving import chat_rows, jsonl
from tunesmith.models.saving import load_artefact


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server") / "data"


@pytest.fixture(scope="module")
def address(data: Path, tiny_decoder: Path) -> Iterator[str]:
    with serving.server(data, tiny_decoder, min_examples=10, max_file_bytes=200_000) as address:
        yield address


@pytest.fixture(scope="module")
def client(address: str) -> OpenAI:
    return OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, _strict_response_validation=True)


@pytest.fixture(scope="module")
def training_file(client: OpenAI) -> str:
    return client.files.create(file=("train.jsonl", jsonl(chat_rows(24))), purpose="fine-tune").id


@pytest.fixture(scope="module")
def finished(client: OpenAI, training_file: str) -> Any:
    """A job with everything, from upload to model."""
    validation = client.files.create(file=("valid.jsonl", jsonl(chat_rows(60)[48:])), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        model="gpt-tiny",
        training_file=training_file,
        validation_file=validation.id,
        suffix="Capital Cities",
        seed=7,
        metadata={"team": "geo"},
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 8}}},
    )
    assert job.status == "validating_files" and job.error is None and job.seed == 7
    assert job.hyperparameters.learning_rate_multiplier == "auto"
    return serving.ended(client, job.id)


def test_the_guides_flow(client: OpenAI, finished: Any, data: Path) -> None:
    assert finished.status == "succeeded", finished
    assert finished.fine_tuned_model == f"ft:gpt-tiny:local:capital-cities:{finished.id[6:14]}"
    assert finished.hyperparameters.n_epochs == 2 and finished.hyperparameters.batch_size == 8
    assert finished.hyperparameters.learning_rate_multiplier == 1.0  # `auto`, as it was taken
    assert finished.trained_tokens > 0 and finished.finished_at >= finished.created_at
    assert finished.method.type == "supervised" and finished.metadata == {"team": "geo"}
    model, _ = load_artefact(data / "jobs" / finished.id / "run" / "model")
    assert model.form == "generate"


def test_events_newest_first_in_openais_words(client: OpenAI, finished: Any) -> None:
    events = list(client.fine_tuning.jobs.list_events(finished.id, limit=3))  # pages of 3
    texts = [event.message for event in events][::-1]
    assert texts[0] == f"Created fine-tuning job: {finished.id}"
    order = [
        f"Validating training file: {finished.training_file}",
        "Files validated, moving job to queued state",
        "Fine-tuning job started",
        f"New fine-tuned model created: {finished.fine_tuned_model}",
        "The job has successfully completed",
    ]
    assert [text for text in texts if text in order] == order
    steps = [event for event in events[::-1] if event.type == "metrics" and "train_loss" in event.data]
    assert [event.data["step"] for event in steps] == list(range(1, 7))
    assert steps[0].message == f"Step 1/6: training loss={steps[0].data['train_loss']:.2f}"
    assert any("full validation loss" in text for text in texts)
    newest = client.fine_tuning.jobs.list_events(finished.id, limit=1)  # as DSPy asks
    assert newest.data[0].message == "The job has successfully completed" and newest.has_more
    assert len({event.id for event in events}) == len(events)


def test_events_as_a_stream(client: OpenAI, address: str, finished: Any) -> None:
    import httpx2

    texts = []
    with httpx2.stream("GET", f"{address}/v1/fine_tuning/jobs/{finished.id}/events?stream=true") as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                texts.append(json.loads(line[6:])["message"])
    assert texts[0].startswith("Created") and texts[-1] == "The job has successfully completed"
    assert line == "" or line == "data: [DONE]"


def test_the_results_file_is_a_csv_in_base64(client: OpenAI, finished: Any) -> None:
    (file_id,) = finished.result_files
    table = list(csv.DictReader(io.StringIO(base64.b64decode(client.files.content(file_id).read()).decode())))
    assert [row["step"] for row in table] == ["1", "2", "3", "4", "5", "6"]
    assert all(float(row["train_loss"]) > 0 for row in table)
    assert [bool(row["valid_loss"]) for row in table] == [False, False, True, False, False, True]
    assert client.files.retrieve(file_id).purpose == "fine-tune-results"


def test_checkpoints_are_models(client: OpenAI, finished: Any, data: Path) -> None:
    checkpoints = list(client.fine_tuning.jobs.checkpoints.list(finished.id, limit=1))
    assert [checkpoint.step_number for checkpoint in checkpoints] == [6, 3]
    first = checkpoints[1]
    assert first.fine_tuned_model_checkpoint == f"{finished.fine_tuned_model}:ckpt-step-3"
    assert first.metrics.train_loss > 0 and first.metrics.full_valid_loss > 0
    folder = data / "jobs" / finished.id / "checkpoints"
    from safetensors.torch import load_file

    saved = {step: load_file(folder / f"step-{step}" / "adapter_model.safetensors") for step in (3, 6)}
    assert any((saved[3][name] != saved[6][name]).any() for name in saved[3])
    best = load_file(data / "jobs" / finished.id / "run" / "model" / "adapter_model.safetensors")
    assert any(all((best[name] == tensors[name]).all() for name in best) for tensors in saved.values())


def test_the_last_three_epochs_are_shown(client: OpenAI, training_file: str) -> None:
    """Also where an earlier one validated best: the tuned model has its weights."""
    validation = client.files.create(file=("v.jsonl", jsonl(chat_rows(60)[48:])), purpose="fine-tune")
    hyperparameters: Any = {"n_epochs": 5, "batch_size": 24, "learning_rate_multiplier": 100}
    job = client.fine_tuning.jobs.create(
        model="gpt-tiny", training_file=training_file, validation_file=validation.id, hyperparameters=hyperparameters
    )
    assert serving.ended(client, job.id).status == "succeeded"
    assert [c.step_number for c in client.fine_tuning.jobs.checkpoints.list(job.id)] == [5, 4, 3]


def test_the_tuned_model_and_its_checkpoints_answer(client: OpenAI, finished: Any) -> None:
    models = [finished.fine_tuned_model, *(f"{finished.fine_tuned_model}:ckpt-step-{step}" for step in (3, 6))]
    question: Any = [{"role": "user", "content": "what is the capital of france"}]
    for model in models:
        asked: dict[str, Any] = dict(model=model, messages=question, temperature=0, max_tokens=5)
        whole = client.chat.completions.create(**asked)
        chunks = list(client.chat.completions.create(**asked, stream=True))
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert whole.choices[0].message.content == text
    assert client.models.retrieve(models[0]).id == models[0] in [model.id for model in client.models.list()]


def test_checkpoint_permissions(client: OpenAI, finished: Any) -> None:
    name = f"{finished.fine_tuned_model}:ckpt-step-3"
    permissions = client.fine_tuning.checkpoints.permissions
    made = list(permissions.create(name, project_ids=["team-a", "team-b"]))
    assert [permission.project_id for permission in made] == ["team-a", "team-b"]
    assert [p.project_id for p in permissions.list(name, order="ascending")] == ["team-a", "team-b"]
    assert permissions.delete(made[0].id, fine_tuned_model_checkpoint=name).deleted
    assert [p.project_id for p in permissions.list(name)] == ["team-b"]


def test_lists_of_jobs(client: OpenAI, finished: Any) -> None:
    assert next(iter(client.fine_tuning.jobs.list(limit=1))).id
    assert [job.id for job in client.fine_tuning.jobs.list(metadata={"team": "geo"})] == [finished.id]
    assert list(client.fine_tuning.jobs.list(metadata={"team": "other"})) == []


def test_the_same_by_the_asynchronous_client(address: str, finished: Any) -> None:
    async def flow() -> list[str]:
        async with AsyncOpenAI(
            base_url=f"{address}/v1", api_key="none", max_retries=0, _strict_response_validation=True
        ) as client:
            file = await client.files.create(file=("a.jsonl", jsonl(chat_rows(12))), purpose="fine-tune")
            job = await client.fine_tuning.jobs.create(model="gpt-tiny", training_file=file.id)
            job = await client.fine_tuning.jobs.cancel(job.id)
            await client.files.delete(file.id)
            return [job.status, *[event.message async for event in client.fine_tuning.jobs.list_events(job.id)]]

    status, *texts = asyncio.run(flow())
    assert status == "cancelled" and "The job has been cancelled" in texts


@pytest.mark.parametrize("path", ["", "/v1"])
def test_azures_client(address: str, finished: Any, path: str) -> None:
    if path:
        client = OpenAI(base_url=f"{address}/openai/v1/", api_key="none", _strict_response_validation=True)
    else:
        client = AzureOpenAI(
            azure_endpoint=address, api_key="none", api_version="2025-04-01", _strict_response_validation=True
        )
    bom = b"\xef\xbb\xbf" + jsonl(chat_rows(12))  # as Azure wants its files
    file = client.files.create(file=("a.jsonl", bom), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(model="gpt-tiny", training_file=file.id, hyperparameters={"n_epochs": 1})
    job = serving.ended(client, job.id)
    assert job.status == "succeeded", job
    assert job.hyperparameters.n_epochs == 1
    question: Any = [{"role": "user", "content": "what is the capital of france"}]
    answer = client.chat.completions.create(model=job.fine_tuned_model, messages=question, max_tokens=3)
    assert answer.model == job.fine_tuned_model and answer.usage.completion_tokens <= 3


def test_preferences(client: OpenAI, finished: Any) -> None:
    rows = [
        {
            "input": {"messages": [{"role": "user", "content": f"what is the capital of {country} {n}"}]},
            "preferred_output": [{"role": "assistant", "content": "paris"}],
            "non_preferred_output": [{"role": "assistant", "content": "madrid"}],
        }
        for n, country in enumerate(["france", "spain"] * 8)
    ]
    file = client.files.create(file=("pairs.jsonl", jsonl(rows)), purpose="fine-tune")
    method: Any = {"type": "dpo", "dpo": {"hyperparameters": {"n_epochs": 2, "beta": "auto"}}}
    job = client.fine_tuning.jobs.create(model="gpt-tiny", training_file=file.id, method=method)
    job = serving.ended(client, job.id)
    assert job.status == "succeeded", job
    assert job.method.dpo.hyperparameters.beta == 0.1 and job.method.dpo.hyperparameters.n_epochs == 2
    assert len(list(client.fine_tuning.jobs.checkpoints.list(job.id))) == 2


EXACT: Any = {"type": "string_check", "name": "exact", "operation": "eq", "input": "{{sample.output_text}}",
              "reference": "{{item.capital}}"}  # fmt: skip
NEAR: Any = {"type": "text_similarity", "name": "near", "evaluation_metric": "fuzzy_match",
             "input": "{{sample.output_text}}", "reference": "{{item.capital}}"}  # fmt: skip
BOTH: Any = {"type": "multi", "name": "both", "graders": {"exact": EXACT, "near": NEAR},
             "calculate_output": "0.5 * exact + 0.5 * near"}  # fmt: skip


def test_rewards(client: OpenAI, address: str, finished: Any, data: Path) -> None:
    """Reinforcement: prompts without answers, fields for the grader, its rewards in events, checkpoints and results."""
    rows = [
        {"messages": [{"role": "user", "content": f"what is the capital of {country} {n}"}], "capital": capital}
        for n, (country, capital) in enumerate([("france", "paris"), ("spain", "madrid")] * 10)
    ]
    train, valid = (
        client.files.create(file=(f"{name}.jsonl", jsonl(part)), purpose="fine-tune")
        for name, part in (("train", rows[:12]), ("valid", rows[12:]))
    )
    asked: Any = {"n_epochs": 2, "batch_size": 4, "compute_multiplier": 0.5, "reasoning_effort": "medium"}
    asked |= {"eval_interval": 1}
    method: Any = {"type": "reinforcement", "reinforcement": {"grader": NEAR, "hyperparameters": asked}}
    job = client.fine_tuning.jobs.create(
        model="gpt-tiny", training_file=train.id, validation_file=valid.id, method=method
    )
    job = serving.ended(client, job.id)
    assert job.status == "succeeded", job
    assert job.method.reinforcement.grader.evaluation_metric == "fuzzy_match"
    taken = job.method.reinforcement.hyperparameters
    assert (taken.n_epochs, taken.batch_size, taken.eval_interval, taken.eval_samples) == (2, 4, 1, 8)
    events = {event.message: event.data for event in client.fine_tuning.jobs.list_events(job.id, limit=100)}
    step = next(data for message, data in events.items() if message.startswith("Step 1/6 , train mean reward=0."))
    assert 0 < step["train_reward_mean"] < 1
    assert any(message.startswith("Step 6/6 , full validation mean reward=0.") for message in events)
    assert any("`reasoning_effort` changes nothing" in message for message in events)
    shown = {c.step_number: c.metrics.valid_reward_mean for c in client.fine_tuning.jobs.checkpoints.list(job.id)}
    lines = (data / "jobs" / job.id / "run" / "events.jsonl").read_text().splitlines()
    found = [event for event in map(json.loads, lines) if event["type"] == "validated"]
    rewards = {event["step"]: event["metrics"]["reward"] for event in found}
    assert len(rewards) == 6 and all(0 < reward < 1 for reward in rewards.values())
    best = sorted(rewards, key=lambda step: (-rewards[step], step))[:3]
    assert list(shown) == sorted(best, reverse=True)  # the three that validated best, newest first
    assert shown == {step: pytest.approx(rewards[step]) for step in best}
    table = base64.b64decode(client.files.content(job.result_files[0]).read()).decode().splitlines()
    assert table[0] == "step,train_loss,train_reward_mean,valid_reward_mean" and len(table) == 7
    question: Any = [{"role": "user", "content": "what is the capital of france"}]
    answer = client.chat.completions.create(model=job.fine_tuned_model, messages=question, max_tokens=3)
    assert answer.usage.completion_tokens <= 3


def test_prompts_that_end_with_an_answer_are_refused_by_line(client: OpenAI, finished: Any) -> None:
    method: Any = {"type": "reinforcement", "reinforcement": {"grader": NEAR}}
    error = failure(client, jsonl(chat_rows(12)), method=method)
    assert error.code == "invalid_file_format" and "training_file.jsonl:1: the last message must be the user's" in (
        error.message
    )


def test_graders_can_be_tried(client: OpenAI) -> None:
    graders = client.fine_tuning.alpha.graders
    assert graders.validate(grader=NEAR).grader.name == "near"  # type: ignore[union-attr]
    tried = graders.run(grader=NEAR, model_sample="paris", item={"capital": "paris"})
    assert tried.reward == 1.0 and tried.metadata.scores == {"near": 1.0} and not tried.metadata.errors.other_error
    tried = graders.run(grader=BOTH, model_sample="Paris", item={"capital": "paris"})
    assert tried.sub_rewards["exact"] == 0.0 and tried.reward == tried.sub_rewards["near"] / 2 > 0.3
    json_part = EXACT | {"input": "{{ sample.output_json.city }}"}
    assert graders.run(grader=json_part, model_sample='{"city": "rome"}', item={"capital": "rome"}).reward == 1.0
    assert graders.run(grader=json_part, model_sample="rome", item={"capital": "rome"}).reward == 0.0
    tried = graders.run(grader=NEAR, model_sample="paris", item={})
    assert tried.reward == 0.0 and tried.metadata.errors.invalid_variable_error


@pytest.mark.parametrize(
    ("grader", "code", "words"),
    [
        (
            {"type": "python", "name": "p", "source": "def grade(sample, item): return 1"},
            "unsupported_grader",
            "trusted",
        ),
        (
            {"type": "score_model", "name": "s", "model": "gpt-4.1", "input": []},
            "unsupported_grader",
            "no model judges",
        ),
        (NEAR | {"evaluation_metric": "cosine"}, "invalid_grader", "fuzzy_match, bleu"),
        (BOTH | {"calculate_output": "exact + nobody"}, "invalid_grader", "nobody"),
        (NEAR | {"weight": 1}, "unknown_parameter", "grader.weight"),
    ],
)
def test_graders_that_cannot_run(client: OpenAI, grader: Any, code: str, words: str) -> None:
    with pytest.raises(openai.BadRequestError, match=words) as refused:
        client.fine_tuning.alpha.graders.validate(grader=grader)
    assert refused.value.code == code


# --- files -------------------------------------------------------------------------------------


def test_files(client: OpenAI) -> None:
    content = jsonl(chat_rows(3))
    file = client.files.create(
        file=("../../evil\\name.jsonl", content), purpose="user_data",
        expires_after={"anchor": "created_at", "seconds": 3600},
    )  # fmt: skip
    assert file.filename == "name.jsonl" and file.bytes == len(content)
    assert file.expires_at == file.created_at + 3600
    assert client.files.wait_for_processing(file.id).status == "processed"
    assert client.files.content(file.id).read() == content
    assert [f.id for f in client.files.list(purpose="user_data", limit=1)] == [file.id]
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)


def test_uploads_in_parts(client: OpenAI) -> None:
    content = jsonl(chat_rows(40))
    upload = client.uploads.create(bytes=len(content), filename="u.jsonl", mime_type="text/jsonl", purpose="fine-tune")
    halves = [content[:700], content[700:]]
    second = client.uploads.parts.create(upload.id, data=halves[1])
    first = client.uploads.parts.create(upload.id, data=halves[0])
    with pytest.raises(openai.BadRequestError, match="md5"):
        client.uploads.complete(upload.id, part_ids=[first.id, second.id], md5="0" * 32)
    md5 = hashlib.md5(content).hexdigest()
    done = client.uploads.complete(upload.id, part_ids=[first.id, second.id], md5=md5)
    assert done.status == "completed" and done.file is not None
    assert client.files.content(done.file.id).read() == content
    with pytest.raises(openai.BadRequestError, match="completed"):
        client.uploads.cancel(upload.id)


def test_an_upload_cancelled_and_one_too_large(client: OpenAI) -> None:
    upload = client.uploads.create(bytes=10, filename="u", mime_type="text/plain", purpose="batch")
    with pytest.raises(openai.APIStatusError) as refused:
        client.uploads.parts.create(upload.id, data=b"x" * 11)
    assert refused.value.status_code == 413
    assert client.uploads.cancel(upload.id).status == "cancelled"
    with pytest.raises(openai.BadRequestError):
        client.uploads.parts.create(upload.id, data=b"x")


# --- bad input ---------------------------------------------------------------------------------


def failure(client: OpenAI, rows: bytes, **more: Any) -> Any:
    file = client.files.create(file=("bad.jsonl", rows), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(model="gpt-tiny", training_file=file.id, **more)
    job = serving.ended(client, job.id)
    assert job.status == "failed" and job.error is not None and job.fine_tuned_model is None
    return job.error


def test_too_few_rows(client: OpenAI, finished: Any) -> None:
    error = failure(client, jsonl(chat_rows(9)))
    assert (error.code, error.param) == ("invalid_n_examples", "training_file")
    assert error.message == "Training file has 9 example(s), but must have at least 10 examples"


def test_a_bad_row_is_named_by_its_line(client: OpenAI, finished: Any, data: Path) -> None:
    rows = jsonl(chat_rows(11)) + b'{"messages": [{"role": "wizard", "content": "x"}]}\n'
    error = failure(client, rows)
    assert error.code == "invalid_file_format" and error.param == "training_file"
    assert "training_file.jsonl:12" in error.message and "wizard" in error.message
    assert str(data) not in error.message


def test_all_kinds_of_mistakes_are_told_at_once(client: OpenAI, finished: Any) -> None:
    rows = jsonl(chat_rows(11)) + b'{"messages": [{"role": "wizard", "content": "x"}]}\n{"messages": []}\nno json\n'
    lines = failure(client, rows).message.splitlines()
    assert len(lines) == 3
    assert {line.partition(": ")[0] for line in lines} == {f"training_file.jsonl:{n}" for n in (12, 13, 14)}


def test_mixed_formats(client: OpenAI, finished: Any) -> None:
    rows = jsonl(chat_rows(11)) + b'{"prompt": "a", "completion": "b"}\n'
    assert failure(client, rows).code == "invalid_file_format"
    assert failure(client, b"\x00\x01 no json at all\n" * 12).code == "invalid_file_format"


@pytest.mark.parametrize(
    ("change", "status", "code", "param"),
    [
        ({"training_file": "file-000000000000000000000000"}, 400, "invalid_file", "training_file"),
        ({"training_file": "../../etc/passwd"}, 400, "invalid_file", "training_file"),
        ({"validation_file": "file-0"}, 400, "invalid_file", "validation_file"),
        ({"model": "gpt-unknown"}, 404, "model_not_found", "model"),
        ({"model": "/etc"}, 404, "model_not_found", "model"),
        ({"suffix": "x" * 65}, 400, "invalid_value", "suffix"),
        ({"seed": -1}, 400, "invalid_value", "seed"),
        ({"metadata": {"k" * 65: "v"}}, 400, "invalid_value", None),
        ({"metadata": {str(n): "v" for n in range(17)}}, 400, "invalid_value", "metadata"),
        ({"method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": -1}}}}, 400, "invalid_value", None),
        ({"method": {"type": "reinforcement"}}, 400, "missing_parameter", "method.reinforcement.grader"),
        ({"method": {"type": "supervised"}, "hyperparameters": {"n_epochs": 1}}, 400, "invalid_value", None),
        ({"hyperparameters": {"n_epochs": 0}}, 400, "invalid_value", "hyperparameters.n_epochs"),
        ({"extra_body": {"trust_remote_code": True}}, 400, "unknown_parameter", "trust_remote_code"),
    ],
)  # fmt: skip
def test_requests_that_cannot_be(
    client: OpenAI, training_file: str, change: dict[str, Any], status: int, code: str, param: str | None
) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        client.fine_tuning.jobs.create(**{"model": "gpt-tiny", "training_file": training_file, **change})
    assert (refused.value.status_code, refused.value.code) == (status, code)
    assert refused.value.body is not None and set(refused.value.body) == {"message", "type", "param", "code"}
    if param:
        assert refused.value.param == param


def test_a_wrong_number_is_told_with_all_that_is_allowed(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.fine_tuning.jobs.create(model="gpt-tiny", training_file="file-0", hyperparameters={"n_epochs": -1})
    expected = "Invalid value: Input should be 'auto' or greater than or equal to 1: 'hyperparameters.n_epochs'."
    assert refused.value.body["message"] == expected  # type: ignore[index]


@pytest.mark.parametrize("change", [{"previous_response_id": "resp_1"}, {"tools": [{"type": "web_search"}]}])
def test_what_responses_do_not_have_is_named(client: OpenAI, change: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError, match=f"does not support '{next(iter(change))}'") as refused:
        client.responses.create(model="gpt-tiny", input="hi", **change)
    assert refused.value.code == "unsupported_parameter"


def test_openais_dated_names_find_the_model(client: OpenAI) -> None:
    asked = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    assert client.chat.completions.create(model="gpt-tiny-2025-04-14", **asked).model == "gpt-tiny-2025-04-14"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt-tiny-2025-04", **asked)


def test_a_file_of_another_purpose(client: OpenAI) -> None:
    file = client.files.create(file=("a.jsonl", b"{}"), purpose="user_data")
    with pytest.raises(openai.BadRequestError) as refused:
        client.fine_tuning.jobs.create(model="gpt-tiny", training_file=file.id)
    assert refused.value.code == "invalid_file_purpose"


def test_a_file_deleted_while_its_job_waits(client: OpenAI, finished: Any) -> None:
    """The job keeps what it was made with."""
    file = client.files.create(file=("a.jsonl", jsonl(chat_rows(12))), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(model="gpt-tiny", training_file=file.id, hyperparameters={"n_epochs": 1})
    client.files.delete(file.id)
    assert serving.ended(client, job.id).status == "succeeded"


def test_the_same_key_gives_the_same_job(client: OpenAI, training_file: str) -> None:
    more = {"extra_headers": {"Idempotency-Key": "once"}}
    jobs = [client.fine_tuning.jobs.create(model="gpt-tiny", training_file=training_file, **more) for _ in range(2)]
    assert jobs[0].id == jobs[1].id
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        client.fine_tuning.jobs.create(model="gpt-tiny", training_file=training_file, seed=1, **more)
    assert refused.value.code == "idempotency_key_reused"
    client.fine_tuning.jobs.cancel(jobs[0].id)


# --- stopping ----------------------------------------------------------------------------------


def test_pause_resume_and_cancel_in_mid_run(address: str, client: OpenAI, training_file: str, data: Path) -> None:
    lax = OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)  # the strict one knows no "paused"
    job = lax.fine_tuning.jobs.create(model="slow", training_file=training_file)
    folder = data / "jobs" / job.id
    serving.wait_for(lambda: "Step 30/4000" in texts(lax, job.id))
    assert lax.fine_tuning.jobs.retrieve(job.id).estimated_finish is not None
    assert lax.fine_tuning.jobs.pause(job.id).status == "paused"
    serving.wait_for(lambda: json.loads((folder / "job.json").read_text())["lease_until"] is None, 30)
    assert lax.fine_tuning.jobs.retrieve(job.id).status == "paused"
    reached = steps(folder)[-1]
    assert lax.fine_tuning.jobs.resume(job.id).status == "queued"
    serving.wait_for(lambda: len(steps(folder)) > reached + 10)
    assert steps(folder) == list(range(1, len(steps(folder)) + 1))  # gone on, not begun again
    with pytest.raises(openai.BadRequestError):
        lax.fine_tuning.jobs.resume(job.id)
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    serving.wait_for(lambda: json.loads((folder / "job.json").read_text())["lease_until"] is None, 30)
    assert serving.ended(client, job.id).status == "cancelled"
    assert not (folder / "data").exists()


def texts(client: OpenAI, job_id: str) -> str:
    return "\n".join(event.message for event in client.fine_tuning.jobs.list_events(job_id, limit=100).data)


def steps(folder: Path) -> list[int]:
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines if '"type": "step"' in line and line.endswith("}")]
