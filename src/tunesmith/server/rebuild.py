"""Restore the index from the data folder: what ``tunesmith serve --rebuild-index`` does.

Nothing in the folder changes; with ``--storage`` it first gets what is there and not here. Only idempotency keys are
lost: they are worth something for minutes.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import delete
from sqlalchemy.orm import Session

from tunesmith import disk
from tunesmith.server import jobs
from tunesmith.server.database import FileRow, JobRow, LabelRow, PermissionRow, Row, UploadRow
from tunesmith.server.results import add_checkpoints
from tunesmith.server.services import Services
from tunesmith.server.words import JobEvent
from tunesmith.server.worker import News

log = logging.getLogger("tunesmith.server")


def rebuild_index(services: Services) -> dict[str, int]:
    """Empty the index and fill it from the folders; no other server may be at work on them.

    Returns:
        How many files, uploads and jobs there are.
    """
    services.folders.restore()
    root = services.folders.root
    with services.database.write() as session:
        for table in reversed(Row.metadata.sorted_tables):
            session.execute(delete(table))
        found = {
            "files": _restore(session, FileRow, root / "files", "file.json"),
            "uploads": _restore(session, UploadRow, root / "uploads", "upload.json"),
            "jobs": 0,
        }
        for folder, facts in _read(root / "jobs", "job.json"):
            _restore_job(session, folder, facts)
            found["jobs"] += 1
    return found


def _restore(session: Session, table: Any, root: Path, name: str) -> int:
    rows = [table(**facts) for _, facts in _read(root, name)]
    for row in rows:  # one by one: their numbers are their order
        session.add(row)
        session.flush()
    return len(rows)


def _restore_job(session: Session, folder: Path, facts: dict[str, Any]) -> None:
    """A job with its metadata, events, checkpoints and permissions. One that was at work goes on."""
    row = JobRow(**facts)
    row.lease_until, row.worker = None, None
    if row.status == "running":
        row.status = "queued"
    session.add(row)
    session.flush()
    session.add_all(LabelRow(job_id=row.id, key=key, value=value) for key, value in (row.labels or {}).items())
    events = [JobEvent(**line) for line in disk.read_log(folder / "events.jsonl")] + News(folder, row.id).rest()
    jobs.add_events(session, row.id, sorted(events, key=lambda event: event.created_at))
    add_checkpoints(session, row.id, _json(folder / "checkpoints.json") or [])
    session.add_all(PermissionRow(**facts) for facts in _json(folder / "permissions.json") or [])
    session.flush()


def _read(root: Path, name: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Folders that hold a complete thing, oldest first; what a kill left half made is no thing."""
    found = [(path.parent, _json(path)) for path in root.glob(f"[!.]*/{name}")]
    complete = [(folder, facts) for folder, facts in found if isinstance(facts, dict)]
    for folder in {folder for folder, _ in found} - {folder for folder, _ in complete}:
        log.warning("%s/%s cannot be read: left out of the index", folder, name)
    yield from sorted(complete, key=lambda item: (item[1]["created_at"], item[1]["id"]))


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
