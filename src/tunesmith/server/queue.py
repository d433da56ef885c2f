"""Who works on which job: claims with a lease and a fencing number, and the changes that only the holder may make.

A claim raises the job's ``attempt``. Every later change names that number, and changes nothing if another worker has
taken the job since. Clocks of several machines are compared: they must agree to within a fraction of the lease.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, Literal

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from tunesmith.server import jobs
from tunesmith.server.database import Database, JobRow
from tunesmith.server.folders import Folders
from tunesmith.server.words import JobEvent

Lane = Literal["validate", "train"]
LOOKED_AT = 100
"""How many waiting jobs are looked at to find one that fits into this machine."""


class Queue:
    """The jobs as workers see them.

    Args:
        database: The index.
        folders: Where job folders are.
        lease_seconds: How long a claim lasts without a heartbeat.
    """

    def __init__(self, database: Database, folders: Folders, lease_seconds: float) -> None:
        self.database = database
        self.folders = folders
        self.lease_seconds = lease_seconds

    def claim(self, lane: Lane, worker: str, machine: str, memory_bytes: int | None = None) -> JobRow | None:
        """Take the oldest job that waits, or whose worker fell silent.

        Args:
            lane: What shall be done.
            worker: Who takes it; begins with ``machine``.
            machine: Whose memory the running jobs share.
            memory_bytes: What all jobs on this machine may take together, as planned; ``None`` for no limit.
        """
        now = time.time()
        free = or_(JobRow.lease_until.is_(None), JobRow.lease_until < now)
        states = ["validating_files"] if lane == "validate" else ["queued", "running"]
        waiting = (
            select(JobRow)
            .where(JobRow.status.in_(states), JobRow.not_before <= now, free)
            .order_by(JobRow.number)
            .limit(LOOKED_AT)
            .with_for_update(skip_locked=True)
        )
        with self.database.write() as session:
            room = (
                None
                if memory_bytes is None or lane == "validate"
                else memory_bytes - self._taken(session, machine, now)
            )
            for row in session.scalars(waiting):
                if room is not None and memory_bytes is not None:
                    if (row.memory_bytes or 0) > memory_bytes:
                        continue  # never here: another machine may have more
                    if (row.memory_bytes or 0) > room:
                        return None  # its turn, but not yet: smaller ones behind it must not starve it
                self._take(session, row, lane, worker, now)
                return row
        return None

    def _taken(self, session: Session, machine: str, now: float) -> int:
        """Planned bytes of the jobs that run on a machine."""
        on_it = JobRow.worker.startswith(f"{machine}/", autoescape=True)
        query = select(func.sum(JobRow.memory_bytes)).where(
            JobRow.status == "running", on_it, JobRow.lease_until >= now
        )
        return int(session.scalar(query) or 0)

    def _take(self, session: Session, row: JobRow, lane: Lane, worker: str, now: float) -> None:
        if lane == "train":
            if row.started_at is None:
                row.started_at = now
                jobs.log_event(session, self.folders, row.id, "Fine-tuning job started")
            row.status = "running"
        elif row.attempt == 0:
            jobs.log_event(session, self.folders, row.id, f"Validating training file: {row.training_file}")
            if row.validation_file:
                jobs.log_event(session, self.folders, row.id, f"Validating validation file: {row.validation_file}")
        row.attempt += 1
        row.worker = worker
        row.lease_until = now + self.lease_seconds
        jobs.store(session, self.folders, row)

    def heartbeat(
        self, job_id: str, attempt: int, events: Iterable[JobEvent] = (), finish: float | None = None
    ) -> str | None:
        """Keep a job, enter its news in the index, and hear of orders.

        Returns:
            The job's status, or ``None`` if it belongs to another worker now.
        """
        with self.database.write() as session:
            row = self._held(session, job_id, attempt)
            if row is None:
                return None
            row.lease_until = time.time() + self.lease_seconds
            if finish is not None and row.status == "running":
                row.estimated_finish = finish
            jobs.add_events(session, job_id, list(events))
            return row.status

    def settle(
        self,
        job_id: str,
        attempt: int,
        *,
        expected: str,
        events: Iterable[JobEvent] = (),
        messages: Iterable[tuple[str, str]] = (),
        **changes: Any,
    ) -> JobRow | None:
        """Give a job back, changed if it still is as ``expected``: an order that came meanwhile stands.

        Args:
            job_id: The job.
            attempt: The holder's number.
            expected: The status that the changes are for.
            events: The run's last news.
            messages: Pairs of level and text for the job's log, with the changes only.
            **changes: Columns and their values.

        Returns:
            The job as it now is; ``None`` if it belongs to another worker.
        """
        with self.database.write() as session:
            row = self._held(session, job_id, attempt)
            if row is None:
                return None
            row.lease_until, row.worker = None, None
            jobs.add_events(session, job_id, list(events))
            if row.status == expected:
                for name, value in changes.items():
                    setattr(row, name, value)
                for level, text in messages:
                    jobs.log_event(session, self.folders, job_id, text, level=level)
            jobs.store(session, self.folders, row)
            if row.status in jobs.ENDED:
                jobs.forget_data(self.folders, job_id)
            return row

    def _held(self, session: Session, job_id: str, attempt: int) -> JobRow | None:
        query = select(JobRow).where(JobRow.id == job_id, JobRow.attempt == attempt).with_for_update()
        return session.scalar(query)
