"""``/v1/files``."""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal, get_args
from urllib.parse import quote

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse, Response, StreamingResponse
from sqlalchemy import or_, select
from starlette.concurrency import run_in_threadpool

from tunesmith.server import storage
from tunesmith.server.auth import Tuner
from tunesmith.server.database import FileRow
from tunesmith.server.errors import ApiError
from tunesmith.server.multipart import Received, receive_form, refuse_bomb
from tunesmith.server.paging import page
from tunesmith.server.schemas import Deleted, FileObject, Listing, Purpose
from tunesmith.server.services import Server, Services

router = APIRouter(prefix="/v1/files", tags=["files"])

_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string", "enum": list(get_args(Purpose))},
                        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                        "expires_after[seconds]": {"type": "integer", "minimum": 3600, "maximum": 2592000},
                    },
                }
            }
        },
    }
}


@router.post("", response_model=FileObject, openapi_extra=_FORM)
async def create_file(request: Request, server: Server, who: Tuner) -> FileObject:
    """Upload a file; it is streamed to the disk."""
    with storage.staged(server.folders) as staging:
        form = await receive_form(
            request.stream(),
            request.headers.get("content-type"),
            file_field="file",
            target=staging / "content",
            limit=server.settings.max_file_bytes,
        )
        row = await run_in_threadpool(_keep, server, form, staging, who.owner)
    server.audit(who, "create file", row.id, filename=row.filename, bytes=row.bytes)
    return storage.file_object(row)


def _keep(server: Services, form: Received, staging: Any, owner: str) -> FileRow:
    if form.filename is None:
        raise ApiError(400, "Missing required parameter: 'file'.", code="missing_parameter", param="file")
    purpose = form.fields.get("purpose")
    if purpose not in get_args(Purpose):
        raise ApiError(
            400,
            f"'{purpose}' is not one of {list(get_args(Purpose))} - 'purpose'",
            code="invalid_value" if purpose else "missing_parameter",
            param="purpose",
        )
    settings = server.settings
    refuse_bomb(staging / "content", form.filename, limit=settings.max_file_bytes, ratio=settings.max_unpacked_ratio)
    facts = {
        "owner": owner,
        "filename": form.filename,
        "purpose": purpose,
        "bytes": form.bytes,
        "sha256": form.sha256,
        "expires_after": _expiry(form.fields),
    }
    return storage.keep_file(server.folders, server.database, staging, facts)


def _expiry(fields: dict[str, str]) -> int | None:
    text, anchor = fields.get("expires_after[seconds]"), fields.get("expires_after[anchor]")
    if text is None and anchor is None:
        return None
    if anchor != "created_at":
        raise ApiError(400, "The anchor must be 'created_at'.", param="expires_after[anchor]")
    if text is None or not text.isascii() or not text.isdigit() or not 3600 <= int(text[:9]) <= 2592000:
        raise ApiError(400, "The seconds must be a number from 3600 to 2592000.", param="expires_after[seconds]")
    return int(text)


@router.get("", response_model=Listing[FileObject])
def list_files(
    server: Server,
    who: Tuner,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
    purpose: str | None = None,
) -> Listing[FileObject]:
    """List files, newest first."""
    query = select(FileRow).where(or_(FileRow.expires_at.is_(None), FileRow.expires_at > int(time.time())))
    if not who.is_admin:
        query = query.where(FileRow.owner == who.owner)
    if purpose is not None:
        query = query.where(FileRow.purpose == purpose)
    with server.database.read() as session:
        rows, has_more = page(session, query, FileRow, after, limit, oldest_first=order == "asc")
    data = [storage.file_object(row) for row in rows]
    return Listing(
        data=data, has_more=has_more, first_id=data[0].id if data else None, last_id=data[-1].id if data else None
    )


@router.get("/{file_id}", response_model=FileObject)
def retrieve_file(file_id: str, server: Server, who: Tuner) -> FileObject:
    """Show a file."""
    with server.database.read() as session:
        return storage.file_object(storage.find_file(session, file_id, who))


@router.delete("/{file_id}", response_model=Deleted)
def delete_file(file_id: str, server: Server, who: Tuner) -> Deleted:
    """Delete a file for good. Jobs that were made with it keep the rows until they end."""
    with server.database.read() as session:
        row = storage.find_file(session, file_id, who)
    storage.delete_file(server.folders, server.database, row)
    server.audit(who, "delete file", file_id)
    return Deleted(id=file_id, object="file")


@router.get(
    "/{file_id}/content",
    response_class=FileResponse,
    responses={200: {"content": {"application/octet-stream": {}}, "description": "The bytes of the file."}},
)
def file_content(file_id: str, server: Server, who: Tuner) -> Response:
    """The bytes of a file, as they were sent."""
    with server.database.read() as session:
        row = storage.find_file(session, file_id, who)
    if server.folders.remote:
        pieces = server.folders.remote.read(f"files/{row.id}/content")
        named = f"attachment; filename*=utf-8''{quote(row.filename)}"
        headers = {"Content-Length": str(row.bytes), "Content-Disposition": named}
        return StreamingResponse(pieces, media_type="application/octet-stream", headers=headers)
    content = server.folders.file(row.id) / "content"
    return FileResponse(content, media_type="application/octet-stream", filename=row.filename)
