"""Each provider's dialect: what is asked of it, and what its replies become, which are as its reference has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tunesmith.errors import UsageError
from tunesmith.hosted import table
from tunesmith.hosted.client import JobOrder, connect
from tunesmith.hosted.settings import Hosted

KEYS = {
    "OPENAI_API_KEY": "k",
    "AZURE_OPENAI_API_KEY": "k",
    "AZURE_OPENAI_ENDPOINT": "https://res.openai.azure.com",
    "NEBIUS_API_KEY": "k",
    "MISTRAL_API_KEY": "k",
    "TOGETHER_API_KEY": "k",
    "FIREWORKS_API_KEY": "k",
    "FIREWORKS_ACCOUNT_ID": "acme",
}


class Wire:
    """Stands for the SDK: remembers requests, and gives prepared replies by their path."""

    def __init__(self, replies: dict[str, Any]) -> None:
        self.replies = replies
        self.asked: list[tuple[str, str, Any]] = []

    def get(self, path: str, **more: Any) -> Any:
        return self._answer("GET", path, more.get("options"))

    def post(self, path: str, **more: Any) -> Any:
        return self._answer("POST", path, more.get("body"))

    def _answer(self, method: str, path: str, said: Any) -> Any:
        self.asked.append((method, path, said))
        return self.replies[path.removeprefix("https://api.fireworks.ai")]


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)


def client(name: str, replies: dict[str, Any], **settings: Any) -> tuple[Any, Wire]:
    made: Any = connect(Hosted(provider=name, **settings), table.load())
    made.sdk = made.once = wire = Wire(replies)
    return made, wire


def order(method: str = "supervised", **settings: Any) -> JobOrder:
    return JobOrder("base", "file-1", "file-2", method, Hosted(**settings), 7, "tag", "tag-0")


OPENAI_JOB = {"id": "ftjob-1", "status": "running", "model": "base", "created_at": 5, "training_file": "file-1"}


def test_openai_carries_the_tag_and_the_method() -> None:
    made, wire = client("openai", {"/fine_tuning/jobs": OPENAI_JOB})
    job = made.create(order("dpo", epochs=2, beta=0.2, suffix="s", extra={"integrations": []}))
    assert wire.asked[0][2] == {
        "model": "base",
        "training_file": "file-1",
        "validation_file": "file-2",
        "seed": 7,
        "suffix": "s",
        "metadata": {"tunesmith_intent": "tag"},
        "method": {"type": "dpo", "dpo": {"hyperparameters": {"n_epochs": 2, "beta": 0.2}}},
        "integrations": [],
    }
    assert (job.id, job.status, job.created_at) == ("ftjob-1", "running", 5)


def test_azure_has_its_own_path_and_no_tags() -> None:
    made, wire = client("azure", {"/fine_tuning/jobs": OPENAI_JOB}, extra={"trainingType": "globalStandard"})
    assert made.base_url == "https://res.openai.azure.com/openai/v1/"
    made.create(order(extra={"trainingType": "globalStandard"}))
    assert wire.asked[0][2]["trainingType"] == "globalStandard" and "metadata" not in wire.asked[0][2]
    assert connect(Hosted(provider="azure", base_url="https://x.y/openai/v1/"), table.load()).base_url.count("v1") == 1


def test_nebius_takes_plain_hyperparameters() -> None:
    made, wire = client("nebius", {"/fine_tuning/jobs": OPENAI_JOB})
    made.create(order(epochs=3, extra={"hyperparameters": {"lora": True, "lora_r": 16}}))
    assert wire.asked[0][2]["hyperparameters"] == {"n_epochs": 3, "lora": True, "lora_r": 16}
    assert "method" not in wire.asked[0][2]


def test_mistral_has_lists_of_files_and_states_in_capitals() -> None:
    job = {
        "id": "j",
        "status": "FAILED_VALIDATION",
        "model": "base",
        "created_at": 9,
        "training_files": ["file-1"],
        "validation_files": [],
        "hyperparameters": {"epochs": 2},
        "events": [{"name": "status-updated", "data": {"status": "QUEUED"}, "created_at": 1}],
        "checkpoints": [{"step_number": 10, "created_at": 2, "metrics": {"train_loss": 0.5}}],
    }
    replies = {"/fine_tuning/jobs": job, "/fine_tuning/jobs/j": job}
    made, wire = client("mistral", replies)
    found = made.create(order(epochs=2, learning_rate_multiplier=1e-4))
    assert wire.asked[0][2]["training_files"] == [{"file_id": "file-1", "weight": 1}]
    assert wire.asked[0][2]["hyperparameters"] == {"epochs": 2, "learning_rate": 1e-4}
    assert wire.asked[0][2]["auto_start"] is True
    assert (found.status, found.training_file, found.validation_file) == ("failed", "file-1", None)
    events = made.events("j")
    assert [(event.message, event.step, event.loss) for event in events] == [
        ("status-updated QUEUED", None, None),
        ("Step 10", 10, 0.5),
    ]
    assert made.events("j", {event.id for event in events}) == []
    replies["/fine_tuning/jobs"] = {"data": [job], "total": 1}
    assert [job.id for job in made.find("tag", "file-1")] == ["j"] and made.find("tag", "file-9") == []


def test_together_names_things_its_own_way(tmp_path: Path) -> None:
    job = {
        "id": "ft-1",
        "status": "completed",
        "model": "base",
        "created_at": "2026-11-27T10:00:00Z",
        "training_file": "file-1",
        "output_name": "acme/base:s:ft-1",
        "token_count": 99,
        "n_epochs": 2,
        "training_method": {"method": "dpo"},
    }
    events = {
        "data": [{"created_at": "2026-11-27T10:00:01Z", "level": "info", "message": "Epoch completed, at step 24"}]
    }
    replies = {"/fine-tunes": job, "/fine-tunes/ft-1/events": events, "/files/upload": {"id": "file-1"}, "/files": {}}
    made, wire = client("together", replies)
    found = made.create(order("dpo", epochs=2, beta=0.3))
    assert wire.asked[0][2]["training_method"] == {"method": "dpo", "dpo_beta": 0.3}
    assert (found.status, found.tuned_model, found.trained_tokens) == ("succeeded", "acme/base:s:ft-1", 99)
    assert found.created_at == 1795773600 and found.method == "dpo"
    assert [event.message for event in made.events("ft-1")] == ["Epoch completed, at step 24"]
    (tmp_path / "a.jsonl").write_text("{}\n")
    assert made.upload(tmp_path / "a.jsonl", "a.jsonl") == "file-1" and made.find_upload("a.jsonl", 3) is None


def test_fireworks_has_data_sets_below_an_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = "/v1/accounts/acme"
    job = {
        "name": "accounts/acme/supervisedFineTuningJobs/j1",
        "state": "JOB_STATE_COMPLETED",
        "baseModel": "base",
        "dataset": "accounts/acme/datasets/file-1",
        "outputModel": "accounts/acme/models/m",
        "createTime": "2026-11-27T10:00:00Z",
        "displayName": "tunesmith-tag",
    }
    replies = {
        f"{root}/supervisedFineTuningJobs": job,
        f"{root}/datasets": {},
        f"{root}/datasets/a-training-file:upload": {},
    }
    made, wire = client("fireworks", replies)
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n{"a": 2}\n')
    assert made.upload(tmp_path / "a.jsonl", "a-training_file.jsonl") == "a-training-file"
    assert wire.asked[0][2]["dataset"]["exampleCount"] == "2"
    found = made.create(order(epochs=2))
    assert wire.asked[-1][2]["dataset"] == "accounts/acme/datasets/file-1" and wire.asked[-1][2]["epochs"] == 2
    assert (found.id, found.status, found.training_file, found.tag) == ("j1", "succeeded", "file-1", "tag")
    assert found.tuned_model == "accounts/acme/models/m"
    replies[f"{root}/supervisedFineTuningJobs"] = {"supervisedFineTuningJobs": [job]}
    assert [job.id for job in made.find("tag", "file-1")] == ["j1"]
    monkeypatch.delenv("FIREWORKS_ACCOUNT_ID")
    with pytest.raises(UsageError, match="the account's id"):
        client("fireworks", {})


def test_a_model_that_refuses_a_temperature_is_asked_without() -> None:
    import httpx2
    import openai

    made, _ = client("openai", {})
    bodies: list[dict[str, Any]] = []

    def post(path: str, *, cast_to: Any, body: dict[str, Any]) -> Any:
        bodies.append(dict(body))
        if "temperature" in body:
            request = httpx2.Request("POST", "https://api.openai.com/v1/chat/completions")
            said = {"message": "Unsupported value", "param": "temperature", "code": "unsupported_value"}
            raise openai.BadRequestError("no", response=httpx2.Response(400, request=request), body=said)
        usage = {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}
        return {"choices": [{"message": {"content": " yes "}}], "usage": usage}

    made.sdk.post = post  # type: ignore[method-assign]
    found = made.ask("o4-mini", [{"role": "user", "content": "?"}], tools=None, most_tokens=5)
    assert (found.text, found.prompt_tokens, found.cached_tokens, found.written_tokens) == ("yes", 9, 4, 2)
    assert [sorted(body) for body in bodies] == [
        ["max_completion_tokens", "messages", "model", "temperature"],
        ["max_completion_tokens", "messages", "model"],
    ]
