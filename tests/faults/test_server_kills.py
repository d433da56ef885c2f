"""SIGKILL for the processes of jobs and for the server itself, at random moments.

No job is lost, none is worked on by two processes at once, each ends as it should, with the same weights as a job that
nobody disturbed. Few rounds here; ``TUNESMITH_KILL_ROUNDS=20`` runs as many as one likes.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

import serving
import tiny
from serving import chat_rows, jsonl

ROUNDS = int(os.environ.get("TUNESMITH_KILL_ROUNDS", "5"))
SERVE = """
import json, sys
from pathlib import Path
from tunesmith.server.serving import serve
from tunesmith.server.settings import Settings
values = json.loads(sys.argv[1])
serve(Settings(**values | {name: Path(values[name]) for name in ("data", "models")}))
"""


class Server:
    """``tunesmith serve`` in a process of its own, to be killed and started again on the same folder."""

    def __init__(self, folder: Path, model: Path, **more: Any) -> None:
        names = {
            "killable": {
                "precision": "fp32",
                "training": {"compile": "off", "max_steps": 120, "checkpoint_steps": 10, "dropout": 0.1},
            }
        }
        models = folder / "models.yaml"
        models.write_text(json.dumps({name: {"model": str(model), "recipe": recipe} for name, recipe in names.items()}))
        self.data = folder / "data"
        values = {"data": str(self.data), "models": str(models), "port": 0, "max_attempts": 100, **more}
        self._command = [sys.executable, "-c", SERVE, json.dumps(values)]
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            self._command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("Serving on "), line
        self.client = httpx2.Client(base_url=line.split()[2].removesuffix("/v1"), timeout=120)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=180)

    def create(self, count: int) -> list[str]:
        return create(self.client, "killable", count)

    def job(self, job_id: str) -> dict[str, Any]:
        return self.client.get(f"/v1/fine_tuning/jobs/{job_id}").json()

    def weights(self, job_id: str) -> dict[str, str]:
        return tiny.sha256s(self.data / "jobs" / job_id / "run" / "model")


def create(client: httpx2.Client, model: str, count: int) -> list[str]:
    sent = client.post(
        "/v1/files", files={"file": ("a.jsonl", jsonl(chat_rows(24)))}, data={"purpose": "fine-tune"}
    ).json()
    body = {"model": model, "training_file": sent["id"], "seed": 3}
    return [client.post("/v1/fine_tuning/jobs", json=body).json()["id"] for _ in range(count)]


def job_processes(server: int) -> list[psutil.Process]:
    """Those that were forked for jobs: grandchildren of the server."""
    with contextlib.suppress(psutil.NoSuchProcess):
        children = psutil.Process(server).children()
        return [grandchild for child in children for grandchild in child.children()]
    return []


@pytest.fixture
def server(tmp_path: Path, tiny_decoder: Path) -> Iterator[Server]:
    made = Server(tmp_path, tiny_decoder, workers=2, lease_seconds=3.0, poll_seconds=0.1)
    try:
        yield made
    finally:
        made.kill()


def segments(folder: Path) -> list[list[int]]:
    """The steps that each process of a run did, in the order of the log."""
    found: list[list[int]] = []
    for line in (folder / "run" / "events.jsonl").read_text(errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            if event["type"] == "stage_started":
                found.append([])
            elif event["type"] == "step":
                found[-1].append(event["step"])
    return found


def test_killed_at_random_moments(server: Server) -> None:
    seed = random.SystemRandom().randrange(10**6)
    chance = random.Random(seed)
    unbroken, *jobs = server.create(1 + max(2, ROUNDS // 3))
    kills = {"job": 0, "server": 0}
    for number in range(ROUNDS):
        kind = "server" if number % 5 == 2 else "job"
        if _all_ended(server, jobs):
            jobs += server.create(1)
        serving.wait_for(lambda: any(_disturbable(server.process.pid, unbroken)))
        time.sleep(chance.random() * 1.5)
        if kind == "server":
            server.kill()
            server.start()
            kills["server"] += 1
        elif victims := _disturbable(server.process.pid, unbroken):
            chance.choice(victims).kill()
            kills["job"] += 1
    serving.wait_for(lambda: _all_ended(server, [unbroken, *jobs]), 400)
    assert kills["server"] >= ROUNDS // 5 and kills["job"] >= 1, f"seed {seed}"
    shown = [server.job(job) for job in (unbroken, *jobs)]
    assert [job["status"] for job in shown] == ["succeeded"] * len(shown), (seed, shown)
    expected = server.weights(unbroken)
    assert expected
    for job in jobs:
        assert server.weights(job) == expected, f"seed {seed}"
        parts = segments(server.data / "jobs" / job)
        assert all(part == list(range(part[0], part[0] + len(part))) for part in parts if part), (seed, parts)
        assert sorted({step for part in parts for step in part}) == list(range(1, 121)), f"seed {seed}"
        listed = server.client.get(f"/v1/fine_tuning/jobs/{job}/events", params={"limit": 100}).json()["data"]
        texts = [event["message"] for event in listed]
        assert texts[0] == "The job has successfully completed" and texts.count(texts[0]) == 1
        assert len({event["id"] for event in listed}) == len(listed)


def _disturbable(server: int, spared: str) -> list[psutil.Process]:
    """Processes of jobs but for the one that shall run through: known by the log that they hold open."""
    found = []
    for process in job_processes(server):
        with contextlib.suppress(psutil.Error, OSError):
            log = os.readlink(f"/proc/{process.pid}/fd/1")
            if "/jobs/" in log and f"/{spared}/" not in log:
                found.append(process)
    return found


def _all_ended(server: Server, jobs: list[str]) -> bool:
    return all(server.job(job)["status"] in ("succeeded", "failed", "cancelled") for job in jobs)


def test_a_job_that_dies_again_and_again_fails_with_the_reason(tmp_path: Path, tiny_decoder: Path) -> None:
    ours = os.getpid()  # the server is in this process
    with (
        serving.server(tmp_path / "data", tiny_decoder, max_attempts=2, poll_seconds=0.05) as address,
        httpx2.Client(base_url=address, timeout=120) as client,
    ):
        (job,) = create(client, "slow", 1)

        def shown() -> dict[str, Any]:
            return client.get(f"/v1/fine_tuning/jobs/{job}").json()

        for _ in range(2):
            serving.wait_for(lambda: _disturbable(ours, "none"))[0].kill()
            serving.wait_for(lambda: not _disturbable(ours, "none") or shown()["status"] == "failed")
        serving.wait_for(lambda: shown()["status"] == "failed")
        error = shown()["error"]
        assert error["code"] == "process_died" and "signal 9" in error["message"] and "memory" in error["message"]


def test_a_server_that_is_stopped_lets_its_jobs_save_themselves(server: Server) -> None:
    (job,) = server.create(1)
    folder = server.data / "jobs" / job
    serving.wait_for(
        lambda: (folder / "run" / "events.jsonl").is_file() and any(part[14:] for part in segments(folder))
    )
    assert server.stop() == 0
    facts = json.loads((folder / "job.json").read_text())
    assert facts["status"] == "queued" and facts["lease_until"] is None and facts["deaths"] == 0
    reached = segments(folder)[-1][-1]
    assert (folder / "run/stages/1-tune/checkpoints" / f"step-{reached:08d}").is_dir()
    (server.data / "index.sqlite").unlink()  # and the index is lost
    for more in ("index.sqlite-wal", "index.sqlite-shm"):
        (server.data / more).unlink(missing_ok=True)
    rebuild = SERVE.replace("serve(Settings", "from functools import partial; partial(serve, rebuild=True)(Settings")
    server._command[2] = rebuild
    server.process = subprocess.Popen(server._command, stdout=subprocess.PIPE, text=True)
    assert server.process.stdout is not None
    assert server.process.stdout.readline() == "Restored 1 files, 0 uploads, 1 jobs\n"
    server.client = httpx2.Client(base_url=server.process.stdout.readline().split()[2].removesuffix("/v1"), timeout=120)
    serving.wait_for(lambda: _all_ended(server, [job]))
    assert server.job(job)["status"] == "succeeded"
    assert segments(folder)[-1][0] == reached + 1


def test_the_command_tells_scripts_where_it_listens(tmp_path: Path) -> None:
    code = "import sys; from tunesmith.cli.main import run; sys.exit(run(sys.argv[1:]))"
    flags = ["--json", "--port", "0", "--workers", "0", "--data", str(tmp_path / "data")]
    process = subprocess.Popen([sys.executable, "-c", code, "serve", *flags], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        found = json.loads(process.stdout.readline())
        assert found["process"] == process.pid
        assert httpx2.get(found["url"] + "/models", timeout=60).json()["object"] == "list"
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
