"""Files: their bytes and facts on the disk first, then in the index."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from tunesmith import disk
from tunesmith.server.auth import Principal
from tunesmith.server.database import Database, FileRow
from tunesmith.server.errors import not_found
from tunesmith.server.folders import Folders, new_id
from tunesmith.server.schemas import FileObject

LEFTOVER_SECONDS = 24 * 3600
"""How old what is not complete must be to count as left over by a kill: nothing takes so long to come or to make."""

COLUMNS = ("id", "owner", "filename", "purpose", "bytes", "sha256", "created_at", "expires_at")
"""What ``file.json`` holds: enough to restore the row."""


@contextlib.contextmanager
def staged(folders: Folders) -> Iterator[Path]:
    """A folder for a file that is not complete; gone afterwards, whatever happens."""
    staging = folders.root / "files" / new_id(".staging-")
    staging.mkdir()
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def keep_file(folders: Folders, database: Database, staging: Path, facts: dict[str, Any]) -> FileRow:
    """Give a staged folder with ``content`` its final place, and enter the file in the index.

    Args:
        folders: Where things are.
        database: The index.
        staging: Of :func:`staged`.
        facts: ``owner``, ``filename``, ``purpose``, ``bytes``, ``sha256``, ``expires_after`` (seconds or ``None``).
    """
    created = int(time.time())
    after = facts.pop("expires_after", None)
    row = FileRow(id=new_id("file-"), created_at=created, expires_at=created + after if after else None, **facts)
    disk.flush(staging / "content")
    disk.write_json(staging / "file.json", {name: getattr(row, name) for name in COLUMNS})
    folder = folders.file(row.id)
    try:
        if folders.remote:
            folders.remote.put(staging / "content", f"files/{row.id}/content")
            folders.remote.put(staging / "file.json", f"files/{row.id}/file.json")
        else:
            os.replace(staging, folder)
        with database.write() as session:
            session.add(row)
    except BaseException:
        folders.remove(folder)
        raise
    return row


def find_file(session: Session, file_id: str, who: Principal) -> FileRow:
    """A file that is there, is not expired and is visible.

    Raises:
        ApiError: 404.
    """
    row = session.scalar(select(FileRow).where(FileRow.id == file_id))
    if row is None or not who.sees(row.owner) or is_expired(row):
        raise not_found("File object", file_id)
    return row


def is_expired(row: FileRow) -> bool:
    """Whether the time that its sender gave it is over."""
    return row.expires_at is not None and row.expires_at <= time.time()


def delete_file(folders: Folders, database: Database, row: FileRow) -> None:
    """Remove a file for good: from the index first, so that nobody finds half of it."""
    with database.write() as session:
        session.delete(session.merge(row))
    folders.remove(folders.file(row.id))


def delete_expired(folders: Folders, database: Database) -> int:
    """Remove files whose time is over. Gives their number."""
    with database.read() as session:
        rows = session.scalars(select(FileRow).where(FileRow.expires_at <= int(time.time())).limit(1000)).all()
    for row in rows:
        delete_file(folders, database, row)
    return len(rows)


def delete_leftovers(folders: Folders) -> None:
    """Remove what a kill left half made: staged files, parts of uploads, and jobs half fetched from the storage."""
    for pattern in ("files/.staging-*", "uploads/*/.part_*", "uploads/*/part_*", "jobs/.pull-*", "jobs/*/.pull-*"):
        for path in folders.root.glob(pattern):
            with contextlib.suppress(FileNotFoundError):  # somebody else has just done with it
                if not is_leftover(path):
                    continue
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink()


def is_leftover(path: Path) -> bool:
    """Whether nothing has happened for long to a file or folder that is not complete.

    Raises:
        FileNotFoundError: It is just going.
    """
    late = time.time() - LEFTOVER_SECONDS
    return max(inner.stat().st_mtime for inner in (path, *path.rglob("*"))) <= late


def file_object(row: FileRow) -> FileObject:
    """The file as the API shows it."""
    return FileObject(
        id=row.id,
        bytes=row.bytes,
        created_at=row.created_at,
        filename=row.filename,
        purpose=row.purpose,
        expires_at=row.expires_at,
    )
