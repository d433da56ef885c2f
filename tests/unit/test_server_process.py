"""One job, one worker, one process: whoever comes later waits, and whoever has lost the job changes nothing."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import filelock
import pytest

from tunesmith.server import process, worker
from tunesmith.server.services import open_services
from tunesmith.server.settings import Settings


@pytest.fixture
def job(tmp_path: Path) -> Path:
    (tmp_path / "job.json").write_text(json.dumps({"attempt": 3}))
    return tmp_path


@contextlib.contextmanager
def held_by_another(job: Path) -> Iterator[threading.Event]:
    """The job's lock in the hands of a thread, which lets go, and leaves a file, when the event is set."""
    held, let_go = threading.Event(), threading.Event()

    def hold() -> None:
        with filelock.FileLock(job / ".lock"):
            held.set()
            let_go.wait(30)
            (job / "saved").touch()

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(30)
    try:
        yield let_go
    finally:
        let_go.set()
        thread.join()


def is_free(job: Path) -> bool:
    with ThreadPoolExecutor(1) as pool:  # filelock knows what its own thread holds
        lock = filelock.FileLock(job / ".lock", timeout=0, thread_local=False)
        try:
            pool.submit(lock.acquire).result()
        except filelock.Timeout:
            return False
        lock.release()
        return True


def test_the_next_attempt_waits_until_the_one_before_has_let_go_and_keeps_the_lock(job: Path) -> None:
    with held_by_another(job) as let_go:
        threading.Timer(0.3, let_go.set).start()
        with process._turn(job, 3):
            assert (job / "saved").is_file()
            assert not is_free(job)
    assert is_free(job)


def test_an_attempt_whose_job_another_has_changes_nothing(job: Path) -> None:
    with pytest.raises(SystemExit) as ended, process._turn(job, 2):
        pytest.fail("it is not its turn")
    assert ended.value.code == process.NOT_ITS_TURN
    assert is_free(job)


def test_a_process_that_waits_too_long_changes_nothing(job: Path) -> None:
    with held_by_another(job):
        with pytest.raises(SystemExit) as ended, process._turn(job, 3, seconds=0.1):
            pytest.fail("it is not its turn")
        assert ended.value.code == process.NOT_ITS_TURN


def test_no_job_is_claimed_before_its_process_can_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a cold machine the imports take longer than a lease: another worker would take the job meanwhile."""
    imported, asked = threading.Event(), threading.Event()
    monkeypatch.setattr(worker, "warm_up", lambda: imported.wait(60))
    monkeypatch.setattr(worker.Queue, "claim", lambda *_: asked.set())
    workers = worker.Workers(open_services(Settings(data=tmp_path / "data", workers=2, poll_seconds=0.01)))
    workers.start()
    try:
        assert not asked.wait(0.3)
        imported.set()
        assert asked.wait(60)
    finally:
        imported.set()
        workers.stop()


def test_a_server_is_stopped_while_it_still_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    imported = threading.Event()
    monkeypatch.setattr(worker, "warm_up", lambda: imported.wait(60))
    workers = worker.Workers(open_services(Settings(data=tmp_path / "data", poll_seconds=0.01)))
    workers.start()
    stopped = threading.Thread(target=workers.stop)
    stopped.start()
    stopped.join(30)
    imported.set()
    assert not stopped.is_alive()
