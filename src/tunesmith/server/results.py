"""What a job leaves: a model with a name, checkpoints with names, and a results file."""

from __future__ import annotations

import base64
import hashlib
import time
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from tunesmith import disk
from tunesmith.server import jobs, storage
from tunesmith.server.database import CheckpointRow, JobRow
from tunesmith.server.queue import Queue
from tunesmith.server.services import Services
from tunesmith.server.words import JobEvent


def finish(services: Services, queue: Queue, row: JobRow, outcome: dict[str, Any], news: list[JobEvent]) -> None:
    """Enter a finished run in the index: names first, the status last."""
    name = jobs.tuned_name(row, services.settings.organization)
    results = _results_file(services, row)
    entries = [
        {
            "id": f"ftckpt_{row.id.removeprefix('ftjob-')}{step:08d}",
            "model": f"{name}:ckpt-step-{step}",
            "step": step,
            "created_at": time.time(),
            "metrics": metrics,
        }
        for step, metrics in ((found["step"], found["metrics"]) for found in outcome["checkpoints"])
    ]
    noted = services.folders.job(row.id) / "checkpoints.json"
    disk.write_json(noted, entries)
    services.folders.saved(noted)
    with services.database.write() as session:
        add_checkpoints(session, row.id, entries)
    verdict = [("info", outcome["verdict"])] if row.validation_file else []  # else nothing was measured
    queue.settle(
        row.id,
        row.attempt,
        expected="running",
        events=news,
        status="succeeded",
        fine_tuned_model=name,
        finished_at=time.time(),
        estimated_finish=None,
        trained_tokens=outcome["tokens"],
        result_files=[results],
        messages=[
            *verdict,
            ("info", f"New fine-tuned model created: {name}"),
            ("info", "The job has successfully completed"),
        ],
    )


def add_checkpoints(session: Session, job_id: str, entries: list[dict[str, Any]]) -> None:
    """Enter checkpoints that the index does not have, oldest first."""
    known = set(session.scalars(select(CheckpointRow.step).where(CheckpointRow.job_id == job_id)))
    for entry in entries:
        if entry["step"] not in known:
            session.add(CheckpointRow(job_id=job_id, **entry))
            session.flush()


def _results_file(services: Services, row: JobRow) -> str:
    """The results as a file of their own, in base64 as OpenAI returns them. Once, however often it is asked for."""
    noted = services.folders.job(row.id) / "results_file.txt"
    if noted.is_file():
        return noted.read_text(encoding="utf-8").strip()
    content = base64.b64encode((services.folders.job(row.id) / "results.csv").read_bytes())
    with storage.staged(services.folders) as staging:
        (staging / "content").write_bytes(content)
        facts = {
            "owner": row.owner,
            "filename": "step_metrics.csv",
            "purpose": "fine-tune-results",
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        file = storage.keep_file(services.folders, services.database, staging, facts)
    disk.write_text(noted, file.id)
    services.folders.saved(noted)
    return file.id
