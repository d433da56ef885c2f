"""Jobs as the API changes them, with nobody at work on them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from serving import QUICK, chat_rows, jsonl, models_file
from tunesmith.server import jobs
from tunesmith.server.app import create_app
from tunesmith.server.database import JobRow
from tunesmith.server.settings import Settings

ROWS = jsonl(chat_rows(12))


@pytest.fixture
def app(tmp_path: Path, tiny_decoder: Path) -> FastAPI:
    return create_app(Settings(data=tmp_path / "data", models=models_file(tmp_path, tiny_decoder), workers=0, **QUICK))


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False) as client:
        yield client


def send_file(client: TestClient) -> str:
    files = {"file": ("a.jsonl", ROWS)}
    return str(client.post("/v1/files", files=files, data={"purpose": "fine-tune"}).json()["id"])


def test_a_job_that_failed_in_training_gets_its_files_again(app: FastAPI, client: TestClient) -> None:
    services = app.state.services
    body = {"model": "gpt-tiny", "training_file": send_file(client), "validation_file": send_file(client)}
    job = client.post("/v1/fine_tuning/jobs", json=body).json()["id"]
    folder = services.folders.job(job)
    (folder / "run").mkdir()
    (folder / "run" / "recipe.yaml").write_text("{}")

    def fail() -> None:
        with services.database.write() as session:
            session.query(JobRow).filter_by(id=job).one().status = "failed"
        jobs.forget_data(services.folders, job)

    def resume() -> Any:
        return client.post(f"/v1/fine_tuning/jobs/{job}/resume")

    fail()
    assert resume().json()["status"] == "queued"
    names = ["training_file.jsonl", "validation_file.jsonl"]
    assert sorted(path.name for path in (folder / "data").iterdir()) == names
    assert all((folder / "data" / name).read_bytes() == ROWS for name in names)
    fail()
    client.delete(f"/v1/files/{body['validation_file']}")
    answer = resume()
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "validation_file"
    assert "was deleted" in answer.json()["error"]["message"] and not (folder / "data").exists()
    assert client.get(f"/v1/fine_tuning/jobs/{job}").json()["status"] == "failed"


def test_the_same_key_twice_at_once_gives_one_job(
    app: FastAPI, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    body, together = {"model": "gpt-tiny", "training_file": send_file(client)}, threading.Barrier(2)
    take = jobs._take_files

    def both(*given: Any) -> None:
        take(*given)
        together.wait(60)

    monkeypatch.setattr(jobs, "_take_files", both)

    def ask(seed: int = 0) -> Any:
        headers = {"Idempotency-Key": "once"}
        return client.post("/v1/fine_tuning/jobs", json={**body, "seed": seed}, headers=headers)

    with ThreadPoolExecutor(2) as threads:
        answers = list(threads.map(lambda _: ask(), range(2)))
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].json()["id"] == answers[1].json()["id"]
    assert [path.name for path in (app.state.services.folders.root / "jobs").iterdir()] == [answers[0].json()["id"]]
    assert len(client.get("/v1/fine_tuning/jobs").json()["data"]) == 1
    assert ask(seed=1).status_code == 422
