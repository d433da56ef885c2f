"""Files and runs in a storage that speaks S3's language: moto's server on loopback, asked through the network."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import openai
import pytest

import serving
from serving import chat_rows, ended, jsonl
from tunesmith.errors import ResourceError, UsageError
from tunesmith.server.app import create_app
from tunesmith.server.rebuild import rebuild_index
from tunesmith.server.remote import Remote
from tunesmith.server.settings import Settings

pytest.importorskip("s3fs", reason="the extra `s3` is not installed")
moto_server = pytest.importorskip(
    "moto.server", reason="moto is not installed: pip install 'moto[s3]' flask flask-cors"
)
URL = "s3://bucket/some/where"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    values = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "planted-storage-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setenv(name, value)
        forkserver._forkserver._stop()  # one that an earlier test has started knows none of these
        yield values["AWS_ENDPOINT_URL"]
    forkserver._forkserver._stop()
    server.stop()


@pytest.fixture
def remote(endpoint: str) -> Iterator[Remote]:
    """An empty bucket."""
    import s3fs

    files = s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True)
    files.mkdir("bucket")
    yield Remote(URL)
    files.rm("bucket", recursive=True)


def names(remote: Remote, key: str = "") -> set[str]:
    return {name.split("/", 2)[2] for name in remote.keys(key)}


def client_of(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=180)


def test_a_job_from_file_to_chat_and_back_on_a_new_machine(remote: Remote, tmp_path: Path, tiny_decoder: Path) -> None:
    content = jsonl(chat_rows(12))
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    ask: Any = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, "temperature": 0}
    with serving.server(first / "data", tiny_decoder, storage=URL) as address:
        client = client_of(address)
        file = client.files.create(file=("ä.jsonl", content), purpose="fine-tune")
        other = client.files.create(file=("v.jsonl", jsonl(chat_rows(30)[18:])), purpose="fine-tune")
        job = client.fine_tuning.jobs.create(
            model="gpt-tiny", training_file=file.id, validation_file=other.id, hyperparameters={"n_epochs": 2}
        )
        done = ended(client, job.id)
        assert done.status == "succeeded", done
        answer = client.chat.completions.create(model=done.fine_tuned_model, **ask).choices[0].message.content
        results = client.files.content(done.result_files[0]).read()
        events = [event.message for event in client.fine_tuning.jobs.list_events(job.id)]
        assert client.files.content(file.id).read() == content
    local = {path.name for path in (first / "data" / "files").iterdir()}
    assert local == set()  # the bytes of files are in the storage alone
    kept = names(remote, f"jobs/{job.id}")
    assert {"job.json", "events.jsonl", "checkpoints.json", "results.csv", "run/events.jsonl"} <= kept
    assert "run/model/adapter_model.safetensors" in kept and any(name.startswith("checkpoints/step-") for name in kept)
    assert not any(name.startswith("data/") for name in kept)  # the rows go when the job is over

    shutil.rmtree(first)
    (second / "data").mkdir(parents=True)
    settings = Settings(
        data=second / "data", models=serving.models_file(second, tiny_decoder), storage=URL, **serving.QUICK
    )
    app = create_app(settings)
    assert rebuild_index(app.state.services) == {"files": 3, "uploads": 0, "jobs": 1}
    with serving.serving(app) as address:
        client = client_of(address)
        again = client.fine_tuning.jobs.retrieve(job.id)
        assert again == done
        assert client.chat.completions.create(model=again.fine_tuned_model, **ask).choices[0].message.content == answer
        assert client.files.content(done.result_files[0]).read() == results
        assert {event.message for event in client.fine_tuning.jobs.list_events(job.id)} == set(events)
        assert len(client.fine_tuning.jobs.checkpoints.list(job.id).data) == 2
        client.files.delete(file.id)
        client.models.delete(again.fine_tuned_model)
        with pytest.raises(openai.NotFoundError):
            client.files.content(file.id)
    left = remote.keys("")
    assert not any(file.id in key or "/run/model/" in key or f"{job.id}/checkpoints/" in key for key in left)
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or b"planted-storage-secret" not in path.read_bytes(), path


def test_a_file_deleted_while_its_job_waits_is_still_there_for_it(
    remote: Remote, tmp_path: Path, tiny_decoder: Path
) -> None:
    """Two servers, the first of which takes the job and does nothing: the second goes on from storage and database."""
    with serving.server(tmp_path / "data", tiny_decoder, storage=URL, workers=0) as address:
        client = client_of(address)
        file = client.files.create(file=("a.jsonl", jsonl(chat_rows(12))), purpose="fine-tune")
        job = client.fine_tuning.jobs.create(model="gpt-tiny", training_file=file.id, hyperparameters={"n_epochs": 1})
        client.files.delete(file.id)
        with pytest.raises(openai.BadRequestError, match="invalid training_file"):
            client.fine_tuning.jobs.create(model="gpt-tiny", training_file=file.id)
    with serving.server(tmp_path / "data", tiny_decoder, storage=URL) as address:
        assert ended(client_of(address), job.id).status == "succeeded"


def test_uploads_in_parts_and_their_checks(remote: Remote, tmp_path: Path, tiny_decoder: Path) -> None:
    content = jsonl(chat_rows(3000))
    with serving.server(tmp_path / "data", tiny_decoder, storage=URL, workers=0, max_file_bytes=10_000) as address:
        client = client_of(address)
        with pytest.raises(openai.APIStatusError) as error:
            client.files.create(file=("a.jsonl", content), purpose="fine-tune")
        assert error.value.status_code == 413
        upload = client.uploads.create(
            bytes=len(content), filename="b.jsonl", mime_type="application/jsonl", purpose="fine-tune"
        )
        half = len(content) // 2
        parts = [
            client.uploads.parts.create(upload.id, data=io.BytesIO(p)).id for p in (content[:half], content[half:])
        ]
        with pytest.raises(openai.BadRequestError, match="md5"):
            client.uploads.complete(upload.id, part_ids=parts, md5="0" * 32)
        assert remote.keys("") == []
        done = client.uploads.complete(upload.id, part_ids=parts, md5=hashlib.md5(content).hexdigest())
        assert done.file and client.files.content(done.file.id).read() == content


def test_a_storage_that_fails_leaves_nothing_half_done(
    remote: Remote, tmp_path: Path, tiny_decoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = Remote.put

    def failing(self: Remote, path: Path, key: str) -> None:
        if key.endswith("file.json"):
            with self._told():
                raise ConnectionError("the line to the bucket of somebody is cut")
        put(self, path, key)

    with serving.server(tmp_path / "data", tiny_decoder, storage=URL, workers=0) as address:
        client = client_of(address)
        with monkeypatch.context() as patch:
            patch.setattr(Remote, "put", failing)
            with pytest.raises(openai.InternalServerError) as error:
                client.files.create(file=("a.jsonl", b"{}"), purpose="fine-tune")
        assert error.value.status_code == 507 and "somebody" not in str(error.value)
        assert client.files.list().data == [] and remote.keys("") == []


def test_a_place_that_cannot_be_written_to_is_told_at_once(
    endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ResourceError, match="storage") as error:
        create_app(Settings(data=tmp_path / "a", storage="s3://no-such-bucket"))
    assert error.value.where == "s3://no-such-bucket" and error.value.fix
    for url in ("s3://", "/tmp/folder", "http://127.0.0.1/bucket", "file:///etc"):
        with pytest.raises(UsageError):
            create_app(Settings(data=tmp_path / "a", storage=url))


def test_what_a_killed_process_has_half_fetched_goes_when_it_is_fetched_again(remote: Remote, tmp_path: Path) -> None:
    (tmp_path / "rows").write_text("x")
    remote.put(tmp_path / "rows", "jobs/ftjob-1/data/training_file.jsonl")
    folder = tmp_path / "jobs" / "ftjob-1"
    with subprocess.Popen([sys.executable, "-c", "pass"]) as gone:
        pass
    mine, alive = os.getpid(), os.getppid()
    for name in (f".pull-data-{gone.pid}", f".pull-data-{mine}", f".pull-data-{alive}", ".pull-other-1"):
        (folder / name).mkdir(parents=True)
        (folder / name / "training_file.jsonl").write_text("half")
    remote.pull("jobs/ftjob-1/data", folder / "data")
    assert {path.name for path in folder.iterdir()} == {"data", f".pull-data-{alive}", ".pull-other-1"}
    assert (folder / "data" / "training_file.jsonl").read_text() == "x"


@pytest.mark.parametrize("name", ["../../evil", "{tmp_path}/planted"])
def test_names_of_objects_lead_nowhere(remote: Remote, tmp_path: Path, name: str) -> None:
    (tmp_path / "evil").write_text("x")
    remote.put(tmp_path / "evil", f"jobs/ftjob-1/{name.format(tmp_path=tmp_path)}")
    remote.put(tmp_path / "evil", "jobs/ftjob-1/job.json")
    target = tmp_path / "root" / "jobs" / "ftjob-1"
    target.parent.mkdir(parents=True)
    with pytest.raises(ResourceError, match="leads out"):
        remote.pull("jobs/ftjob-1", target)
    assert not target.exists() and list(target.parent.iterdir()) == []
    assert not (tmp_path / "planted").exists()
