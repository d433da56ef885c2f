"""A real PostgreSQL, two servers, four workers: each job is done once.

``scripts/install_test_programs.sh`` installs it on Debian. A few jobs here; ``TUNESMITH_POSTGRES_JOBS=50`` does as many
as one likes, and ``TUNESMITH_POSTGRES_RESULT=FILE`` writes what was seen.
"""

from __future__ import annotations

import glob
import json
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

import serving
from serving import chat_rows, jsonl
from tunesmith.server.app import create_app
from tunesmith.server.database import Database, JobRow
from tunesmith.server.folders import Folders, new_id
from tunesmith.server.jobs import store
from tunesmith.server.queue import Queue
from tunesmith.server.settings import Settings

pytest.importorskip("psycopg", reason="the extra `postgres` is not installed")
JOBS = int(os.environ.get("TUNESMITH_POSTGRES_JOBS", "6"))


def program(name: str) -> str | None:
    found = sorted(glob.glob(f"/usr/lib/postgresql/*/bin/{name}"))
    return shutil.which(name) or (found[-1] if found else None)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A server on a free port, by a user of its own where the tests run as root."""
    initdb, postgres = program("initdb"), program("postgres")
    if initdb is None or postgres is None:
        pytest.skip("PostgreSQL is not installed: scripts/install_test_programs.sh")
    user = {}
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        try:
            owner = pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("the tests run as root, and there is no user `postgres` to run PostgreSQL")
        os.chown(folder, owner.pw_uid, owner.pw_gid)
        user = {"user": owner.pw_uid, "group": owner.pw_gid}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options: dict[str, Any] = {"cwd": folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **user}
    subprocess.run([initdb, "-D", folder / "db", "-A", "trust", "-U", "postgres", "-N"], check=True, **options)
    process = subprocess.Popen(
        [postgres, "-D", folder / "db", "-p", str(port), "-h", "127.0.0.1", "-k", folder, "-c", "fsync=off"], **options
    )
    try:
        url = f"postgresql://postgres@127.0.0.1:{port}/postgres"
        serving.wait_for(lambda: reachable(port))
        yield url
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def reachable(port: int) -> bool:
    import psycopg

    try:
        psycopg.connect(f"host=127.0.0.1 port={port} user=postgres dbname=postgres").close()
    except psycopg.OperationalError:
        return False
    return True


def test_fifty_jobs_are_claimed_once_each(address: str, tmp_path: Path) -> None:
    """Four claimants on two pools; the leases of some run out and are taken over, never by two at once."""
    folders = Folders(tmp_path)
    folders.make()
    databases = [Database(address) for _ in range(2)]
    for _ in range(50):
        row = JobRow(
            id=new_id("ftjob-"), owner="queue-test", created_at=0.0, status="queued", model="m", training_file="f",
            seed=0, method={"type": "supervised", "supervised": {"hyperparameters": {}}}, result_files=[],
        )  # fmt: skip
        folders.job(row.id).mkdir()
        with databases[0].write() as session:
            store(session, folders, row)
    taken: list[tuple[str, int]] = []

    def work(number: int) -> None:
        queue = Queue(databases[number % 2], folders, lease_seconds=30.0)
        while (row := queue.claim("train", f"m/{number}/0", "m")) is not None:
            taken.append((row.id, row.attempt))
            if row.attempt == 1 and int(row.id[-1], 16) < 4:  # its worker dies: the lease is over at once
                queue.lease_seconds = -1.0
                assert queue.heartbeat(row.id, row.attempt) == "running"
                queue.lease_seconds = 30.0
            else:
                assert queue.settle(row.id, row.attempt, expected="running", status="cancelled") is not None

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(taken)) == len(taken) >= 50 and len({job_id for job_id, _ in taken}) == 50
    for database in databases:
        database.close()


def test_two_servers_and_four_workers_do_each_job_once(address: str, tmp_path: Path, tiny_decoder: Path) -> None:
    models = serving.models_file(tmp_path, tiny_decoder)
    settings = Settings(data=tmp_path / "data", models=models, database=address, workers=2, **serving.QUICK)
    with serving.serving(create_app(settings)) as first, serving.serving(create_app(settings)) as second:
        clients = [OpenAI(base_url=f"{server}/v1", api_key="x", max_retries=0) for server in (first, second)]
        file = clients[0].files.create(file=("a.jsonl", jsonl(chat_rows(12))), purpose="fine-tune")
        started, trained = time.monotonic(), 0
        jobs = [
            clients[n % 2].fine_tuning.jobs.create(
                model="gpt-tiny", training_file=file.id, hyperparameters={"n_epochs": 1}
            )
            for n in range(JOBS)
        ]
        for number, job in enumerate(jobs):
            ended = serving.ended(clients[(number + 1) % 2], job.id, 240 + 10 * JOBS)
            assert ended.status == "succeeded", ended
        seconds = time.monotonic() - started
        listed = [job.id for job in clients[1].fine_tuning.jobs.list(limit=4)]  # pages of 4
        assert listed[:JOBS] == [job.id for job in jobs][::-1]
        for job in jobs:
            folder = tmp_path / "data" / "jobs" / job.id
            facts = json.loads((folder / "job.json").read_text())
            assert facts["attempt"] == 2  # once validated, once trained
            events = [json.loads(line)["type"] for line in (folder / "run" / "events.jsonl").read_text().splitlines()]
            assert events.count("run_started") == 1
            trained += 1
    if "TUNESMITH_POSTGRES_RESULT" in os.environ:
        result = {"jobs": len(jobs), "done_once": trained, "servers": 2, "workers": 4, "seconds": round(seconds, 1)}
        result |= {"cores": os.cpu_count(), "load_average": round(os.getloadavg()[0], 1)}
        Path(os.environ["TUNESMITH_POSTGRES_RESULT"]).write_text(json.dumps(result, indent=1) + "\n")
