"""``/v1/uploads``: large files in parts."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from sqlalchemy import select
from sqlalchemy.orm import Session

from tunesmith import disk
from tunesmith.server import storage
from tunesmith.server.auth import Principal, Tuner
from tunesmith.server.database import Database, FileRow, UploadRow
from tunesmith.server.errors import ApiError, not_found
from tunesmith.server.folders import Folders, new_id
from tunesmith.server.multipart import clean_filename, receive_form, refuse_bomb
from tunesmith.server.schemas import CompleteRequest, PartObject, UploadObject, UploadRequest
from tunesmith.server.services import Server, Services

router = APIRouter(prefix="/v1/uploads", tags=["uploads"])

OPEN_SECONDS = 3600
"""An upload that is not completed by then is expired, as at OpenAI."""
PART_BYTES = 64 * 2**20
COLUMNS = (
    "id", "owner", "filename", "mime_type", "purpose", "bytes", "status", "created_at", "expires_at",
    "file_expires_after", "file_id",
)  # fmt: skip
"""What ``upload.json`` holds."""
_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["data"],
                    "properties": {"data": {"type": "string", "format": "binary"}},
                }
            }
        },
    }
}


@router.post("", response_model=UploadObject)
def create_upload(body: UploadRequest, server: Server, who: Tuner) -> UploadObject:
    """Announce a file that will come in parts."""
    if body.bytes > server.settings.max_upload_bytes:
        raise ApiError(413, f"The file is larger than {server.settings.max_upload_bytes} bytes.", param="bytes")
    created = int(time.time())
    row = UploadRow(
        id=new_id("upload_"),
        owner=who.owner,
        filename=clean_filename(body.filename),
        mime_type=body.mime_type,
        purpose=body.purpose,
        bytes=body.bytes,
        status="pending",
        created_at=created,
        expires_at=created + OPEN_SECONDS,
        file_expires_after=body.expires_after.seconds if body.expires_after else None,
    )
    server.folders.upload(row.id).mkdir()
    with server.database.write() as session:
        _store(session, server.folders, row)
    server.audit(who, "create upload", row.id, filename=row.filename, bytes=row.bytes)
    return _object(row)


@router.post("/{upload_id}/parts", response_model=PartObject, openapi_extra=_FORM)
async def add_part(upload_id: str, request: Request, server: Server, who: Tuner) -> PartObject:
    """Send a part, up to 64 MB; parts may come in any order and at once."""
    row = _find_open(server, upload_id, who)
    part_id = new_id("part_")
    folder = server.folders.upload(row.id)
    room = row.bytes - sum(path.stat().st_size for path in folder.glob("part_*"))
    incoming = folder / f".{part_id}"
    form = await receive_form(
        request.stream(),
        request.headers.get("content-type"),
        file_field="data",
        target=incoming,
        limit=max(0, min(PART_BYTES, room)),
    )
    if form.filename is None:
        incoming.unlink()
        raise ApiError(400, "Missing required parameter: 'data'.", code="missing_parameter", param="data")
    os.replace(incoming, folder / part_id)
    return PartObject(id=part_id, created_at=int(time.time()), upload_id=row.id)


@router.post("/{upload_id}/complete", response_model=UploadObject)
def complete_upload(upload_id: str, body: CompleteRequest, server: Server, who: Tuner) -> UploadObject:
    """Put the parts together, in the order that is given."""
    row = _find_open(server, upload_id, who)
    folder = server.folders.upload(row.id)
    parts = [folder / part_id for part_id in body.part_ids]
    absent = next((part.name for part in parts if not part.is_file()), None)
    if absent or len(set(parts)) < len(parts):
        raise ApiError(400, f"No such part: {absent}" if absent else "A part is named twice.", param="part_ids")
    with storage.staged(server.folders) as staging:
        facts = _join(parts, staging / "content", row, body.md5)
        settings = server.settings
        refuse_bomb(
            staging / "content", row.filename, limit=settings.max_upload_bytes, ratio=settings.max_unpacked_ratio
        )
        file = storage.keep_file(server.folders, server.database, staging, facts)
    with server.database.write() as session:
        stored = session.get_one(UploadRow, row.number, with_for_update=True)
        won = stored.status == "pending"  # two clients may complete one upload: one of the files stays
        if won:
            stored.status, stored.file_id = "completed", file.id
            _store(session, server.folders, stored)
    if not won:
        storage.delete_file(server.folders, server.database, file)
        raise _closed(stored)
    for part in folder.glob("part_*"):
        part.unlink(missing_ok=True)
    server.audit(who, "complete upload", row.id, file=file.id)
    return _object(stored, file)


@router.post("/{upload_id}/cancel", response_model=UploadObject)
def cancel_upload(upload_id: str, server: Server, who: Tuner) -> UploadObject:
    """Give an upload up; its parts are removed."""
    row = _find_open(server, upload_id, who)
    with server.database.write() as session:
        stored = session.get_one(UploadRow, row.number, with_for_update=True)
        if stored.status != "pending":
            raise _closed(stored)
        stored.status = "cancelled"
        _store(session, server.folders, stored)
    for part in server.folders.upload(row.id).glob("part_*"):
        part.unlink(missing_ok=True)
    server.audit(who, "cancel upload", row.id)
    return _object(stored)


def expire_uploads(folders: Folders, database: Database) -> None:
    """Remove the parts of uploads that were never completed."""
    with database.write() as session:
        late = select(UploadRow).where(UploadRow.status == "pending", UploadRow.expires_at <= int(time.time()))
        for row in session.scalars(late):
            row.status = "expired"
            _store(session, folders, row)
            for part in folders.upload(row.id).glob("part_*"):
                part.unlink(missing_ok=True)


def _store(session: Session, folders: Folders, row: UploadRow) -> None:
    """On the disk within the transaction: if either fails, neither counts."""
    session.add(row)
    session.flush()
    disk.write_json(folders.upload(row.id) / "upload.json", {name: getattr(row, name) for name in COLUMNS})


def _find_open(server: Services, upload_id: str, who: Principal) -> UploadRow:
    with server.database.read() as session:
        row = session.scalar(select(UploadRow).where(UploadRow.id == upload_id))
    if row is None or not who.sees(row.owner):
        raise not_found("upload", upload_id)
    if row.status != "pending" or row.expires_at <= time.time():
        raise _closed(row)
    return row


def _closed(row: UploadRow) -> ApiError:
    state = "expired" if row.status == "pending" else row.status
    return ApiError(400, f"The upload is {state} already.", code="upload_not_pending")


def _join(parts: list[Path], target: Path, row: UploadRow, md5: str | None) -> dict[str, Any]:
    sha256, sum5, size = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0
    with target.open("xb") as whole:
        for part in parts:
            with part.open("rb") as file:
                while piece := file.read(2**20):
                    whole.write(piece)
                    sha256.update(piece)
                    sum5.update(piece)
                    size += len(piece)
    if size != row.bytes:
        raise ApiError(400, f"The parts hold {size} bytes, {row.bytes} were announced.", code="size_mismatch")
    if md5 is not None and md5.lower() != sum5.hexdigest():
        raise ApiError(400, f"The parts have the md5 {sum5.hexdigest()}, not {md5}.", code="md5_mismatch", param="md5")
    return {
        "owner": row.owner,
        "filename": row.filename,
        "purpose": row.purpose,
        "bytes": size,
        "sha256": sha256.hexdigest(),
        "expires_after": row.file_expires_after,
    }


def _object(row: UploadRow, file: FileRow | None = None) -> UploadObject:
    values = {name: getattr(row, name) for name in UploadObject.model_fields if name not in ("object", "file")}
    return UploadObject(**values, file=storage.file_object(file) if file else None)
