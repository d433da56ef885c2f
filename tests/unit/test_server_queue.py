"""Who gets a job, who loses it, and that the lists and claims of a large index go by its indexes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import filelock
import pytest
from sqlalchemy import text

from tunesmith.errors import MissingExtraError, ResourceError, UsageError
from tunesmith.server import jobs, storage
from tunesmith.server.database import Database, EventRow, JobRow
from tunesmith.server.folders import Folders, new_id
from tunesmith.server.queue import Queue
from tunesmith.server.words import JobEvent


@pytest.fixture
def queue(tmp_path: Path) -> Queue:
    folders = Folders(tmp_path)
    folders.make()
    return Queue(Database(f"sqlite:///{tmp_path / 'index.sqlite'}"), folders, lease_seconds=30.0)


def add(queue: Queue, status: str = "queued", **more: Any) -> str:
    row = JobRow(
        id=new_id("ftjob-"), owner="a", created_at=time.time(), status=status, model="m", training_file="f", seed=0,
        method={"type": "supervised", "supervised": {"hyperparameters": {}}}, result_files=[], **more,
    )  # fmt: skip
    queue.folders.job(row.id).mkdir()
    with queue.database.write() as session:
        jobs.store(session, queue.folders, row)
    return row.id


def job(queue: Queue, job_id: str) -> JobRow:
    with queue.database.read() as session:
        return session.query(JobRow).filter_by(id=job_id).one()


def test_oldest_first_and_each_once(queue: Queue) -> None:
    made = [add(queue) for _ in range(3)]
    claimed = [queue.claim("train", f"m/1/{n}", "m") for n in range(4)]
    assert [row.id if row else None for row in claimed] == [*made, None]
    assert job(queue, made[0]).status == "running" and job(queue, made[0]).attempt == 1


def test_threads_never_get_the_same_job(queue: Queue) -> None:
    made = {add(queue) for _ in range(40)}
    taken: list[str] = []

    def work(name: str) -> None:
        while (row := queue.claim("train", name, "m")) is not None:
            taken.append(row.id)

    threads = [threading.Thread(target=work, args=(f"m/1/{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 40 and set(taken) == made


def test_lanes_take_what_is_theirs(queue: Queue) -> None:
    waiting = add(queue, "validating_files")
    for status in ("paused", "succeeded", "failed", "cancelled"):
        add(queue, status)
    assert queue.claim("train", "m/1/0", "m") is None
    row = queue.claim("validate", "m/1/0", "m")
    assert row is not None and row.id == waiting and row.status == "validating_files"


def test_a_lease_that_ran_out_is_taken_over_and_the_old_holder_is_fenced_off(queue: Queue) -> None:
    job_id = add(queue)
    queue.lease_seconds = -1.0  # over as soon as it is given
    first = queue.claim("train", "m/1/0", "m")
    queue.lease_seconds = 30.0
    second = queue.claim("train", "m/2/0", "m")
    assert first is not None and second is not None and second.attempt == first.attempt + 1
    assert queue.claim("train", "m/3/0", "m") is None
    assert queue.heartbeat(job_id, first.attempt) is None
    assert queue.settle(job_id, first.attempt, expected="running", status="succeeded") is None
    assert job(queue, job_id).status == "running" and job(queue, job_id).worker == "m/2/0"
    assert queue.heartbeat(job_id, second.attempt) == "running"
    settled = queue.settle(job_id, second.attempt, expected="running", status="succeeded", messages=[("info", "done")])
    assert settled is not None and settled.status == "succeeded" and settled.lease_until is None


def test_an_order_that_came_meanwhile_stands(queue: Queue) -> None:
    job_id = add(queue)
    row = queue.claim("train", "m/1/0", "m")
    assert row is not None
    with queue.database.write() as session:
        session.query(JobRow).filter_by(id=job_id).update({"status": "cancelled"})
    assert queue.heartbeat(job_id, row.attempt) == "cancelled"
    settled = queue.settle(job_id, row.attempt, expected="running", status="succeeded")
    assert settled is not None and settled.status == "cancelled" and settled.lease_until is None


def test_memory_is_shared_by_the_jobs_of_a_machine(queue: Queue) -> None:
    big, small, huge = (add(queue, memory_bytes=size) for size in (70, 20, 900))
    assert claimed(queue, "m") == big
    assert claimed(queue, "m") == small
    late = add(queue, memory_bytes=20)
    assert claimed(queue, "m") is None  # 70 + 20 + 20 > 100, and the huge one fits nowhere here
    assert claimed(queue, "other") == late  # another machine has memory of its own
    assert queue.claim("train", "large/1/0", "large", 1000).id == huge  # type: ignore[union-attr]


def claimed(queue: Queue, machine: str) -> str | None:
    row = queue.claim("train", f"{machine}/1/0", machine, 100)
    return row.id if row else None


def test_the_oldest_that_has_to_wait_is_not_starved_by_smaller_ones(queue: Queue) -> None:
    running, waiting, small = (add(queue, memory_bytes=size) for size in (60, 60, 10))
    assert claimed(queue, "m") == running and claimed(queue, "m") is None
    queue.settle(running, 1, expected="running", status="succeeded")
    assert [claimed(queue, "m"), claimed(queue, "m")] == [waiting, small]


def test_a_job_that_shall_wait_waits(queue: Queue) -> None:
    add(queue, not_before=time.time() + 60)
    assert queue.claim("train", "m/1/0", "m") is None


def test_an_event_counts_once(queue: Queue) -> None:
    job_id = add(queue)
    row = queue.claim("train", "m/1/0", "m")
    assert row is not None
    event = JobEvent("ftevent-1", 1.0, "info", "message", "Step 1/2")
    for _ in range(3):
        queue.heartbeat(job_id, row.attempt, [event])
    with queue.database.read() as session:
        assert session.query(EventRow).filter_by(job_id=job_id, message="Step 1/2").count() == 1


PLANS = {
    "SELECT * FROM events WHERE job_id = 'x' AND number < 9 ORDER BY number DESC LIMIT 21": "events_of_job",
    "SELECT * FROM jobs WHERE owner = 'x' AND number < 9 ORDER BY number DESC LIMIT 21": "jobs_of_owner",
    "SELECT * FROM jobs WHERE status IN ('queued', 'running') ORDER BY number LIMIT 9": "jobs_in_state",
    "SELECT * FROM files WHERE owner = 'x' ORDER BY number DESC LIMIT 21": "files_of_owner",
    "SELECT * FROM files WHERE expires_at <= 5": "files_that_expire",
    "SELECT job_id FROM job_metadata WHERE key = 'x' AND value = 'y'": "jobs_with_metadata",
    "SELECT * FROM checkpoints WHERE job_id = 'x' ORDER BY number DESC LIMIT 21": "checkpoints_of_job",
    "SELECT * FROM jobs WHERE fine_tuned_model = 'x'": "ix_jobs_fine_tuned_model",
}


@pytest.mark.parametrize("query", PLANS)
def test_queries_go_by_an_index(queue: Queue, query: str) -> None:
    with queue.database.read() as session:
        plan = " ".join(row[3] for row in session.execute(text(f"EXPLAIN QUERY PLAN {query}")))
    assert PLANS[query] in plan and "SCAN jobs" not in plan.replace("SCAN jobs USING INDEX", "")


def test_addresses_of_databases(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        Database("no address")
    with pytest.raises((ResourceError, MissingExtraError)) as refused:
        Database("postgresql://user:planted-password@127.0.0.1:1/x")
    assert "planted-password" not in str(refused.value)
    with pytest.raises(ResourceError):
        Database(f"sqlite:///{tmp_path / 'absent' / 'x.sqlite'}")


def test_data_of_an_ended_job_goes_when_its_worker_never_came_back(queue: Queue) -> None:
    past, later = time.time() - 1, time.time() + 60
    made = {
        "left": add(queue, "cancelled", lease_until=past, worker="m/1/0"),
        "stopping": add(queue, "cancelled", lease_until=later, worker="m/2/0"),
        "taken over soon": add(queue, "running", lease_until=past, worker="m/3/0"),
    }
    data = {name: queue.folders.job(job_id) / "data" for name, job_id in made.items()}
    for folder in data.values():
        folder.mkdir()
        folder.with_name(".pull-data-7").mkdir()
    jobs.forget_orphaned_data(queue.folders, queue.database)
    for name, folder in data.items():
        assert folder.is_dir() is folder.with_name(".pull-data-7").is_dir() is (name != "left")
    assert job(queue, made["left"]).lease_until is None


def test_what_a_kill_left_half_made_is_removed_after_a_day(queue: Queue) -> None:
    root = queue.folders.root
    left = [root / "files/.staging-a", root / "jobs/.pull-ftjob-a-7", root / "jobs/ftjob-b/.pull-data-7"]
    kept = [root / "files/.staging-b", root / "jobs/.pull-ftjob-c-7", root / "files/file-a", root / "jobs/ftjob-b/data"]
    for path in (*left, *kept):
        path.mkdir(parents=True)
        (path / "content").write_bytes(b"half")
    parts = [root / "uploads/upload_a/.part_a", root / "uploads/upload_a/part_b", root / "uploads/upload_b/.part_c"]
    for path in parts:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"half")
    (root / "uploads/upload_a/upload.json").write_text("{}")
    late = time.time() - storage.LEFTOVER_SECONDS - 60
    old = [*left, *kept, *(path / "content" for path in (*left, *kept[2:]))]  # of the first two kept only the folder
    for path in (*old, *parts[:2]):
        os.utime(path, (late, late))
    left, kept = [*left, *parts[:2]], [*kept, parts[2]]
    storage.delete_leftovers(queue.folders)
    assert not any(path.exists() for path in left) and all(path.exists() for path in kept)
    assert (root / "uploads/upload_a/upload.json").is_file()


CREATE = """
import os, signal, sys
from pathlib import Path
from tunesmith.server import jobs, storage
from tunesmith.server.auth import LOCAL
from tunesmith.server.schemas import JobRequest
from tunesmith.server.services import open_services
from tunesmith.server.settings import Settings

root = Path(sys.argv[1])
services = open_services(Settings(data=root, models=root / "models.yaml"))
with storage.staged(services.folders) as staging:
    (staging / "content").write_text("{}")
    facts = {"owner": LOCAL.owner, "filename": "a.jsonl", "purpose": "fine-tune", "bytes": 2, "sha256": ""}
    file = storage.keep_file(services.folders, services.database, staging, facts)
body = JobRequest(model="gpt-tiny", training_file=file.id)
print(jobs.create(services, LOCAL, body).id)
jobs.log_event = lambda *ignored, **also: os.kill(os.getpid(), signal.SIGKILL)
jobs.create(services, LOCAL, body)
"""


def test_a_job_that_a_kill_kept_out_of_the_index_leaves_no_folder(queue: Queue, tiny_decoder: Path) -> None:
    """Between writing its files and the commit. What belongs to a job stays, whatever the index says."""
    root = queue.folders.root
    (root / "models.yaml").write_text(f"gpt-tiny: {tiny_decoder}\n")
    command = [sys.executable, "-c", CREATE, str(root)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL
    made = done.stdout.strip()
    (unmade,) = {path.name for path in (root / "jobs").iterdir()} - {made}
    assert (root / "jobs" / unmade / "data" / "training_file.jsonl").is_file()
    assert not (root / "jobs" / made / jobs.MARK).exists()

    marked, being_made, unknown = add(queue), new_id("ftjob-"), new_id("ftjob-")
    for name in (being_made, unknown):
        (root / "jobs" / name).mkdir()
        (root / "jobs" / name / "job.json").write_text("{}")
    for name in (marked, being_made):
        (root / "jobs" / name / jobs.MARK).touch()
    with filelock.FileLock(root / "jobs" / being_made / jobs.MARK):
        jobs.forget_unmade(queue.folders, queue.database)
        assert (root / "jobs" / unmade).is_dir() and (root / "jobs" / marked / jobs.MARK).is_file()
        for mark in root.glob(f"jobs/*/{jobs.MARK}"):
            os.utime(mark, (1, 1))
        jobs.forget_unmade(queue.folders, queue.database)
    assert {path.name for path in (root / "jobs").iterdir()} == {made, marked, being_made, unknown}
    assert not (root / "jobs" / marked / jobs.MARK).exists()
