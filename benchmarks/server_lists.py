"""How long the server's lists take over 1,000 jobs and 100,000 events.

Run: python benchmarks/server_lists.py [--jobs 1000] [--events 100] [--database URL] [--output FILE]

Rows are entered in the index as a server would have entered them; then each list is asked for over HTTP, 50 times, at a
random place. Printed, in milliseconds: the median, the 95th percentile and the worst; and the median of the processor's
time, client and server together, which other work on the machine does not lengthen.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from starlette.testclient import TestClient

from tunesmith.server import jobs
from tunesmith.server.app import create_app
from tunesmith.server.database import JobRow, LabelRow
from tunesmith.server.folders import new_id
from tunesmith.server.services import Services
from tunesmith.server.settings import Settings
from tunesmith.server.words import JobEvent

REPEATS = 50


def fill(services: Services, num_jobs: int, events_each: int) -> list[str]:
    """Enter finished jobs with their events."""
    names = []
    for number in range(num_jobs):
        row = JobRow(
            id=new_id("ftjob-"), owner="local", created_at=time.time(), status="succeeded", model="gpt-4.1-mini",
            training_file="file-1", seed=0, method={"type": "supervised", "supervised": {"hyperparameters": {}}},
            result_files=[], labels={"batch": str(number % 10)}, finished_at=time.time(),
        )  # fmt: skip
        services.folders.job(row.id).mkdir()
        events = [
            JobEvent(new_id("ftevent-"), time.time(), "info", "metrics", f"Step {n}/{events_each}: training loss=0.22",
                     {"step": n, "train_loss": 0.22})
            for n in range(events_each)
        ]  # fmt: skip
        with services.database.write() as session:
            jobs.store(session, services.folders, row)
            session.add(LabelRow(job_id=row.id, key="batch", value=str(number % 10)))
            jobs.add_events(session, row.id, events)
        names.append(row.id)
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--events", type=int, default=100, help="of each job")
    parser.add_argument("--database")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    chance = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        app = create_app(Settings(data=Path(folder), workers=0, database=arguments.database))
        names = fill(app.state.services, arguments.jobs, arguments.events)
        with TestClient(app, base_url="http://127.0.0.1:8000") as client:
            lists = {
                "jobs": lambda: f"/v1/fine_tuning/jobs?limit=20&after={chance.choice(names)}",
                "jobs, 100 a page": lambda: "/v1/fine_tuning/jobs?limit=100",
                "jobs by metadata": lambda: f"/v1/fine_tuning/jobs?limit=20&metadata[batch]={chance.randrange(10)}",
                "events": lambda: f"/v1/fine_tuning/jobs/{chance.choice(names)}/events?limit=100",
                "job": lambda: f"/v1/fine_tuning/jobs/{chance.choice(names)}",
                "metrics": lambda: "/metrics",
            }
            found = {name: measure(client, address) for name, address in lists.items()}
    facts = {
        "jobs": arguments.jobs,
        "events": arguments.jobs * arguments.events,
        "database": "PostgreSQL" if arguments.database else "SQLite",
        "milliseconds": found,
        "cores": len(os.sched_getaffinity(0)),
        "load_average": round(os.getloadavg()[0], 1),
    }
    text = json.dumps(facts, indent=1)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n", encoding="utf-8")


def measure(client: TestClient, address: Callable[[], str]) -> dict[str, float]:
    """Milliseconds of one list."""
    times, processor = [], []
    for _ in range(REPEATS):
        started, busy = time.perf_counter(), time.process_time()
        assert client.get(address()).status_code == 200
        times.append(1000 * (time.perf_counter() - started))
        processor.append(1000 * (time.process_time() - busy))
    times.sort()
    found = {"p50": statistics.median(times), "p95": times[int(0.95 * REPEATS)], "max": times[-1]}
    return {name: round(value, 1) for name, value in (found | {"processor_p50": statistics.median(processor)}).items()}


if __name__ == "__main__":
    main()
