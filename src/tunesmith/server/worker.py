"""Workers: threads of the server that take jobs and watch over their processes.

Nothing is trained in these threads. A worker keeps the lease of its job alive, brings the news of the run into the
index, passes orders on (cancel, pause, shut-down) as SIGTERM, and decides what to do when the process has ended.
"""

from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
import multiprocessing.connection
import os
import socket
import threading
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from tunesmith import environment
from tunesmith.errors import TunesmithError
from tunesmith.server import jobs, process, storage
from tunesmith.server.database import JobRow
from tunesmith.server.errors import ApiError
from tunesmith.server.queue import Lane, Queue
from tunesmith.server.results import finish
from tunesmith.server.routes.uploads import expire_uploads
from tunesmith.server.services import Services
from tunesmith.server.words import JobEvent, Translator

log = logging.getLogger("tunesmith.server")

EXPECTED: dict[Lane, str] = {"validate": "validating_files", "train": "running"}
BUSY_SECONDS = 2.0
JANITOR_SECONDS = 60.0
EVENTS_A_BEAT = 1000


class Workers:
    """All workers of a server.

    Args:
        services: The parts of the server.
    """

    def __init__(self, services: Services) -> None:
        settings = services.settings
        self.services = services
        self.queue = Queue(services.database, services.folders, settings.lease_seconds)
        self.machine = socket.gethostname()
        self.memory_bytes = settings.memory_bytes or environment.usable_memory()
        self._stopping = threading.Event()
        self._warm = threading.Event()
        lanes: list[Lane] = ["validate", *(["train"] * settings.workers)] if settings.workers else []  # type: ignore[list-item]
        self._threads = [
            threading.Thread(target=self._serve, args=(lane, n), name=f"{lane}-{n}", daemon=True)
            for n, lane in enumerate(lanes)
        ]
        self._threads.append(threading.Thread(target=self._clean, name="janitor", daemon=True))

    def start(self) -> None:
        """Begin to take jobs."""
        if len(self._threads) > 1:
            threading.Thread(target=self._warm_up, name="warm-up", daemon=True).start()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Let running jobs save themselves; they are queued again, and go on when a server is there."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _warm_up(self) -> None:
        """Import what jobs need before one is taken: on a cold machine that takes longer than a lease lasts."""
        try:
            warm_up()
        finally:
            self._warm.set()

    def _serve(self, lane: Lane, number: int) -> None:
        """One worker: a job after the other."""
        settings = self.services.settings
        worker = f"{self.machine}/{os.getpid()}/{number}"
        memory = self.memory_bytes if lane == "train" else None
        while not self._warm.is_set() and not self._stopping.wait(settings.poll_seconds):
            pass
        while not self._stopping.is_set():
            try:
                row = self.queue.claim(lane, worker, self.machine, memory)
                if row is not None:
                    _Watch(self, lane, row).run()
                    continue
            except (SQLAlchemyError, OSError, TunesmithError) as error:  # a database or a disk that is away for a while
                log.error("worker %s: %s", worker, error)
            self._stopping.wait(settings.poll_seconds)

    def _clean(self) -> None:
        """Remove what is expired, once a minute."""
        folders, database = self.services.folders, self.services.database
        while True:
            try:
                storage.delete_expired(folders, database)
                expire_uploads(folders, database)
                storage.delete_leftovers(folders)
                jobs.forget_orphaned_data(folders, database)
                jobs.forget_unmade(folders, database)
            except (SQLAlchemyError, OSError, TunesmithError) as error:
                log.error("cleaning up: %s", error)
            if self._stopping.wait(JANITOR_SECONDS):
                return

    @property
    def stopping(self) -> threading.Event:
        """Set when the server shuts down."""
        return self._stopping


class _Watch:
    """One job in the hands of one worker."""

    def __init__(self, workers: Workers, lane: Lane, row: JobRow) -> None:
        self.services, self.queue, self.stopping = workers.services, workers.queue, workers.stopping
        self.settings = workers.services.settings
        self.memory_bytes = workers.memory_bytes
        self.lane: Lane = lane
        self.row = row
        self.folder = self.services.folders.job(row.id)
        self.news = News(self.folder, row.id)
        self._told_at: float | None = None
        self._heard_at = time.monotonic()
        self._is_ours = True

    def run(self) -> None:
        """Start the job's process, watch it to its end, and settle what came of it."""
        try:
            base = self.services.registry.base(self.row.model)
        except ApiError as error:  # taken out of models.yaml since
            self._fail({"code": "model_not_found", "message": str(error.detail), "param": "model"})
            return
        options = {
            "model": base.model,
            "recipe": base.recipe,
            "min_examples": self.settings.min_examples,
            "memory_bytes": self.memory_bytes,
            "storage": self.settings.storage,
        }
        child = Child(self.lane, self.folder, self.row.attempt, options)
        try:
            while not child.wait(self.settings.poll_seconds):
                self._beat(child)
        finally:
            child.close()
        if self._is_ours:
            self._settle(child)

    def _beat(self, child: Child) -> None:
        """Keep the lease, tell the news, hear of orders; stop the process where somebody wants that."""
        try:
            news = self.news.read() if self.lane == "train" else []
            status = self.queue.heartbeat(self.row.id, self.row.attempt, news, self.news.finish())
            self._heard_at = time.monotonic()
            self.news.keep()
        except (SQLAlchemyError, OSError, TunesmithError) as error:
            log.error("job %s: %s", self.row.id, error)
            self.news.forget()
            if time.monotonic() - self._heard_at < self.settings.lease_seconds:
                return
            status = None  # others may have taken the job: whoever cannot renew a lease has lost it
        if status is None:
            self._is_ours = False
            child.kill()
        elif status != EXPECTED[self.lane] or self.stopping.is_set():
            self._stop(child)

    def _stop(self, child: Child) -> None:
        if self._told_at is None:
            self._told_at = time.monotonic()
            child.terminate()
        elif time.monotonic() - self._told_at > self.settings.grace_seconds:
            child.kill()

    def _settle(self, child: Child) -> None:
        outcome = child.outcome()
        if child.exit_code == process.NOT_ITS_TURN:
            self._requeue(not_before=time.time() + BUSY_SECONDS)
        elif outcome is None:
            if self._told_at is not None:  # stopped before it could write anything
                self._requeue()
            else:
                self._died(child.exit_code)
        elif outcome["state"] == "done":
            self._done(outcome)
        elif outcome["state"] == "failed":
            self._fail(outcome["error"])
        else:
            self._requeue()

    def _done(self, outcome: dict[str, Any]) -> None:
        if self.lane == "train":
            finish(self.services, self.queue, self.row, outcome, self.news.rest())
            return
        kind = self.row.method["type"]
        method = {"type": kind, kind: {**self.row.method[kind], "hyperparameters": outcome["hyperparameters"]}}
        self._back(
            status="queued",
            method=method,
            memory_bytes=outcome["memory_bytes"],
            messages=[("info", "Files validated, moving job to queued state")],
        )

    def _fail(self, error: dict[str, Any]) -> None:
        self._back(
            status="failed",
            error=error,
            finished_at=time.time(),
            estimated_finish=None,
            messages=[("error", f"The job failed: {error['message']}")],
        )

    def _requeue(self, **changes: Any) -> None:
        self._back(status="queued" if self.lane == "train" else "validating_files", estimated_finish=None, **changes)

    def _died(self, exit_code: int | None) -> None:
        """A kill, a crash, or the machine's memory. Once more, unless it dies again and again without getting on."""
        reached = self.news.furthest_checkpoint()
        deaths = 1 if reached > self.row.furthest_step else self.row.deaths + 1
        how = f"by signal {-exit_code}" if exit_code is not None and exit_code < 0 else f"with code {exit_code}"
        if deaths >= self.settings.max_attempts:
            message = (
                f"The job's process ended {how}, {deaths} times without getting further: most likely the machine ran "
                "out of memory. Use a smaller model or shorter examples, or give the server more memory."
            )
            self._fail({"code": "process_died", "message": message, "param": None})
            return
        text = f"The job's process ended {how}; the job goes on from its last checkpoint"
        self._requeue(deaths=deaths, furthest_step=max(reached, self.row.furthest_step), messages=[("warn", text)])

    def _back(self, *, messages: Any = (), **changes: Any) -> None:
        news = self.news.rest() if self.lane == "train" else []
        self.queue.settle(
            self.row.id,
            self.row.attempt,
            expected=EXPECTED[self.lane],
            events=news,
            messages=messages,
            **changes,
        )


class News:
    """The log of a run, read as it grows and put into the API's words.

    Args:
        folder: The job's folder.
        job_id: The job.
    """

    def __init__(self, folder: Path, job_id: str) -> None:
        self._path = folder / "run" / "events.jsonl"
        self._translator = Translator(job_id, {f"{folder}/data/": "", f"{folder}/": "", str(folder): job_id})
        self._offset = self._kept_offset = 0
        self._checkpoint = -1
        self._last_step: dict[str, Any] | None = None
        self._first_step: dict[str, Any] | None = None

    def read(self, limit: int = EVENTS_A_BEAT) -> list[JobEvent]:
        """Events since the last time; at most so many lines, so that no heartbeat takes long."""
        return list(self._translator.translate(self._lines(limit)))

    def keep(self) -> None:
        """What was read is in the index."""
        self._kept_offset = self._offset

    def forget(self) -> None:
        """What was read since is not: read it again."""
        self._offset = self._kept_offset

    def rest(self) -> list[JobEvent]:
        """Everything that is left."""
        return self.read(limit=10**9)

    def furthest_checkpoint(self) -> int:
        """Step of the last checkpoint; -1 for none."""
        self.rest()
        self.forget()
        return self._checkpoint

    def finish(self) -> float | None:
        """When the run ends if it goes on as it did."""
        first, last = self._first_step, self._last_step
        if first is None or last is None or last["step"] <= first["step"]:
            return None
        pace = (last["time"] - first["time"]) / (last["step"] - first["step"])
        return float(last["time"] + pace * (last["steps"] - last["step"]))

    def _lines(self, limit: int) -> Iterator[dict[str, Any]]:
        if not self._path.is_file():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for _ in range(limit):
                line = file.readline()
                if not line.endswith(b"\n"):  # still being written
                    return
                self._offset += len(line)
                try:
                    event = json.loads(line)
                except ValueError:  # cut by a kill, and ended by the next process
                    continue
                self._note(event)
                yield event

    def _note(self, event: dict[str, Any]) -> None:
        if event["type"] == "checkpoint_saved":
            self._checkpoint = max(self._checkpoint, event["step"])
        elif event["type"] == "stage_started":
            self._first_step = self._last_step = None
        elif event["type"] == "step":
            self._first_step = self._first_step or event
            self._last_step = event


_children = threading.Lock()
"""multiprocessing looks after all children whenever one is started, and is not made for two threads at once."""


class Child:
    """The process of a job: forked from a process that has everything imported, where the system can fork."""

    def __init__(self, lane: Lane, folder: Path, attempt: int, options: dict[str, Any]) -> None:
        self.folder, self.attempt = folder, attempt
        context = _context()
        theirs, self._lifeline = context.Pipe(duplex=False)
        self._process: BaseProcess = context.Process(
            target=process.main, args=(lane, str(folder), attempt, options, theirs), daemon=False
        )
        with _children:
            self._process.start()
        theirs.close()

    def wait(self, seconds: float) -> bool:
        """Whether it has ended, waiting for that so long."""
        multiprocessing.connection.wait([self._process.sentinel], timeout=seconds)
        with _children:
            return not self._process.is_alive()

    def terminate(self) -> None:
        """Ask it to save itself and stop."""
        with _children, contextlib.suppress(ProcessLookupError):
            self._process.terminate()

    def kill(self) -> None:
        """Stop it at once."""
        with _children, contextlib.suppress(ProcessLookupError):
            self._process.kill()

    def close(self) -> None:
        """Let go of it: a process that still runs stops by itself."""
        self._lifeline.close()

    @property
    def exit_code(self) -> int | None:
        """As of the standard library: negative is a signal."""
        return self._process.exitcode

    def outcome(self) -> dict[str, Any] | None:
        """What it wrote at its end; ``None`` if it did not come to that."""
        try:
            value = json.loads((self.folder / process.OUTCOME).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return dict(value) if value.get("attempt") == self.attempt else None


def warm_up() -> None:
    """Start the process that jobs are forked from, and wait until it has imported everything."""
    context = _context()
    if context.get_start_method() == "forkserver":
        first = context.Process(target=process.nothing, daemon=True)
        with _children:
            first.start()
        first.join()


def _context() -> Any:
    """The fork server of the standard library; it passes a function's name and plain values to our own process."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(process.PRELOAD)
    return context
