"""Where things are below the data folder. Ids are the server's own, so that no path comes from a client.

``files/<id>/{content, file.json}``, ``uploads/<id>/{upload.json, part_*}``,
``jobs/<id>/{job.json, events.jsonl, permissions.json, validation.json, run/, checkpoints/step-N/}``.

With a :class:`~tunesmith.server.remote.Remote` the bytes of files are there alone, and jobs are here and there: what is
written here is sent as soon as it is complete.
"""

from __future__ import annotations

import re
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

from tunesmith import disk
from tunesmith.server.remote import Remote

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


def new_id(prefix: str) -> str:
    """An id of 96 random bits, e.g. ``file-3f…``."""
    return prefix + secrets.token_hex(12)


@dataclass(frozen=True)
class Folders:
    """Paths of everything.

    Attributes:
        root: The data folder.
        remote: The storage that keeps the same; ``None``: the folder is all there is.
    """

    root: Path
    remote: Remote | None = None

    def make(self) -> None:
        """Create the folders that everything goes into, for their owner only."""
        for name in ("", "files", "uploads", "jobs"):
            (self.root / name).mkdir(mode=0o700, parents=True, exist_ok=True)

    def saved(self, path: Path) -> None:
        """A file below the root is complete: it is sent to the storage, if there is one.

        Raises:
            ResourceError: The storage does not answer.
        """
        if self.remote:
            self.remote.put(path, self._key(path))

    def remove(self, folder: Path) -> None:
        """Delete a folder below the root, in the storage first: whoever deletes something wants it gone."""
        if self.remote:
            self.remote.remove(self._key(folder))
        shutil.rmtree(folder, ignore_errors=True)

    def restore(self) -> None:
        """Fetch from the storage what is not here: all jobs, and the facts of all files."""
        if self.remote is None:
            return
        keys = self.remote.keys("")
        for job_id in sorted({key.split("/")[1] for key in keys if key.startswith("jobs/")}):
            if not self.job(job_id).is_dir():
                self.remote.pull(f"jobs/{job_id}", self.job(job_id))
        for key in keys:
            if key.startswith("files/") and key.endswith("/file.json"):
                folder = self.file(key.split("/")[1])
                folder.mkdir(exist_ok=True)
                disk.write_bytes(folder / "file.json", b"".join(self.remote.read(key)))

    def _key(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

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
