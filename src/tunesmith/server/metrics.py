"""What Prometheus reads at ``/metrics``: requests as they are answered, jobs and files as they stand."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import func, select

from tunesmith.server.database import Database, FileRow, JobRow

STATES = ("validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled")


class Metrics:
    """The metrics of one server; other parts may register theirs in ``registry``."""

    def __init__(self, database: Database) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "tunesmith_requests", "Requests answered", ["method", "route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "tunesmith_request_seconds", "Time to the end of the answer", ["route"], registry=self.registry
        )
        self.registry.register(_Stock(database))

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one answer. ``route`` is the path's pattern, so that ids make no series of their own."""
        self.requests.labels(method, route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self.registry)


class _Stock(Collector):
    """Counted when somebody asks."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def describe(self) -> Iterator[Metric]:
        """Nothing: so that registering does not ask the database."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Jobs by state, files and their bytes."""
        with self.database.read() as session:
            counted = session.execute(select(JobRow.status, func.count()).group_by(JobRow.status)).all()
            number, size = session.execute(select(func.count(), func.coalesce(func.sum(FileRow.bytes), 0))).one()
        by_state = {state: int(count) for state, count in counted}
        jobs = GaugeMetricFamily("tunesmith_jobs", "Fine-tuning jobs by state", labels=["status"])
        for state in STATES:
            jobs.add_metric([state], by_state.get(state, 0))
        yield jobs
        yield GaugeMetricFamily("tunesmith_files", "Files in store", value=int(number))
        yield GaugeMetricFamily("tunesmith_file_bytes", "Bytes of these files", value=int(size))
