"""Where things are below the data folder. Ids are the server's own, so that no path comes from a client.

``files/<id>/{content, file.json}``, ``uploads/<id>/{upload.json, part_*}``,
``jobs/<id>/{job.json, events.jsonl, permissions.json, validation.json, run/, checkpoints/step-N/}``.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from pathlib import Path

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


def new_id(prefix: str) -> str:
    """An id of 96 random bits, e.g. ``file-3f…``."""
    return prefix + secrets.token_hex(12)


@dataclass(frozen=True)
class Folders:
    """Paths of everything."""

    root: Path

    def make(self) -> None:
        """Create the folders that everything goes into, for their owner only."""
        for name in ("", "files", "uploads", "jobs"):
            (self.root / name).mkdir(mode=0o700, parents=True, exist_ok=True)

    def file(self, file_id: str) -> Path:
        """A file's folder."""
        return self.root / "files" / _checked(file_id)

    def upload(self, upload_id: str) -> Path:
        """An upload's folder, with its parts."""
        return self.root / "uploads" / _checked(upload_id)

    def job(self, job_id: str) -> Path:
        """A job's folder."""
        return self.root / "jobs" / _checked(job_id)

    def run(self, job_id: str) -> Path:
        """The run directory of a job."""
        return self.job(job_id) / "run"

    def checkpoint(self, job_id: str, step: int) -> Path:
        """A checkpoint of a job as a model that can be loaded."""
        return self.job(job_id) / "checkpoints" / f"step-{step}"


def _checked(name: str) -> str:
    """Ids come from the database, where only ids of our own are; a second lock on the same door."""
    assert _ID.fullmatch(name), f"{name!r} is no id"
    return name
