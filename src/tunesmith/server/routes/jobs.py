"""``/v1/fine_tuning/jobs`` and ``/v1/fine_tuning/checkpoints/.../permissions``."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import StreamingResponse
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from tunesmith import disk
from tunesmith.server import jobs
from tunesmith.server.auth import Admin, Principal, Tuner
from tunesmith.server.database import CheckpointRow, EventRow, JobRow, LabelRow, PermissionRow
from tunesmith.server.errors import not_found
from tunesmith.server.folders import new_id
from tunesmith.server.paging import page
from tunesmith.server.schemas import (
    CheckpointObject,
    Deleted,
    EventObject,
    JobObject,
    JobRequest,
    Listing,
    PermissionObject,
    PermissionRequest,
)
from tunesmith.server.services import Server, Services

router = APIRouter(prefix="/v1/fine_tuning", tags=["fine-tuning"])
Limit = Annotated[int, Query(ge=1, le=100)]
STREAM_SECONDS = 1.0
_METADATA = re.compile(r"^metadata\[(.{1,64})\]$", re.DOTALL)


@router.post("/jobs", response_model=JobObject)
def create_job(
    body: JobRequest,
    server: Server,
    who: Tuner,
    idempotency_key: Annotated[str | None, Header()] = None,
) -> JobObject:
    """Make a fine-tuning job. Its files are validated first, then it waits for its turn."""
    return jobs.job_object(jobs.create(server, who, body, idempotency_key), server.settings.organization)


@router.get("/jobs", response_model=Listing[JobObject])
def list_jobs(
    request: Request, server: Server, who: Tuner, after: str | None = None, limit: Limit = 20
) -> Listing[JobObject]:
    """List jobs, newest first; `metadata[key]=value` takes those that carry this pair."""
    query = select(JobRow)
    if not who.is_admin:
        query = query.where(JobRow.owner == who.owner)
    for name, value in request.query_params.multi_items():
        if pair := _METADATA.match(name):
            labelled = select(LabelRow.job_id).where(LabelRow.key == pair[1], LabelRow.value == value)
            query = query.where(JobRow.id.in_(labelled))
    with server.database.read() as session:
        rows, has_more = page(session, query, JobRow, after, limit)
    return _listing([jobs.job_object(row, server.settings.organization) for row in rows], has_more)


@router.get("/jobs/{job_id}", response_model=JobObject)
def retrieve_job(job_id: str, server: Server, who: Tuner) -> JobObject:
    """Show a job."""
    with server.database.read() as session:
        return jobs.job_object(jobs.find(session, job_id, who), server.settings.organization)


@router.post("/jobs/{job_id}/cancel", response_model=JobObject)
def cancel_job(job_id: str, server: Server, who: Tuner) -> JobObject:
    """Stop a job for good."""
    return jobs.job_object(jobs.cancel(server, who, job_id), server.settings.organization)


@router.post("/jobs/{job_id}/pause", response_model=JobObject)
def pause_job(job_id: str, server: Server, who: Tuner) -> JobObject:
    """Stop a job until it is resumed."""
    return jobs.job_object(jobs.pause(server, who, job_id), server.settings.organization)


@router.post("/jobs/{job_id}/resume", response_model=JobObject)
def resume_job(job_id: str, server: Server, who: Tuner) -> JobObject:
    """Let a paused job go on, or one that failed in training, from its last checkpoint."""
    return jobs.job_object(jobs.resume(server, who, job_id), server.settings.organization)


@router.get(
    "/jobs/{job_id}/events",
    response_model=Listing[EventObject],
    responses={
        200: {"content": {"text/event-stream": {}}, "description": "A page, or with `stream` all as they come."}
    },
)
def list_events(
    job_id: str,
    server: Server,
    who: Tuner,
    after: str | None = None,
    limit: Limit = 20,
    stream: bool = False,
) -> Any:
    """List what happened to a job, newest first. With `stream`: from the first to the last, as it happens."""
    with server.database.read() as session:
        jobs.find(session, job_id, who)
        if stream:
            return StreamingResponse(_stream(server, job_id), media_type="text/event-stream")
        rows, has_more = page(session, select(EventRow).where(EventRow.job_id == job_id), EventRow, after, limit)
    return _listing([_event(row) for row in rows], has_more)


async def _stream(server: Services, job_id: str) -> AsyncIterator[str]:
    """Server-sent events until the job has ended; the connection's end ends it too."""
    last = 0
    while True:
        status, rows = await run_in_threadpool(_news, server, job_id, last)
        for row in rows:
            yield f"data: {_event(row).model_dump_json()}\n\n"
            last = row.number
        if not rows:
            if status is None or status in jobs.ENDED:
                yield "data: [DONE]\n\n"
                return
            await asyncio.sleep(STREAM_SECONDS)


def _news(server: Services, job_id: str, last: int) -> tuple[str | None, list[EventRow]]:
    with server.database.read() as session:
        status = session.scalar(select(JobRow.status).where(JobRow.id == job_id))
        query = select(EventRow).where(EventRow.job_id == job_id, EventRow.number > last)
        return status, list(session.scalars(query.order_by(EventRow.number).limit(1000)))


@router.get("/jobs/{job_id}/checkpoints", response_model=Listing[CheckpointObject])
def list_checkpoints(
    job_id: str, server: Server, who: Tuner, after: str | None = None, limit: Limit = 10
) -> Listing[CheckpointObject]:
    """List the checkpoints of a finished job, newest first; each can be used as a model."""
    with server.database.read() as session:
        jobs.find(session, job_id, who)
        query = select(CheckpointRow).where(CheckpointRow.job_id == job_id)
        rows, has_more = page(session, query, CheckpointRow, after, limit)
    return _listing([_checkpoint(row) for row in rows], has_more)


# --- permissions ------------------------------------------------------------------------------


@router.post("/checkpoints/{checkpoint:path}/permissions", response_model=Listing[PermissionObject])
def create_permissions(
    checkpoint: str, body: PermissionRequest, server: Server, who: Admin
) -> Listing[PermissionObject]:
    """Let other projects use a tuned model or a checkpoint."""
    with server.database.write() as session:
        job_id = _job_of(session, checkpoint, who)
        known = {row.project: row for row in _permissions(session, checkpoint)}
        for project in body.project_ids:
            if project not in known:
                known[project] = PermissionRow(
                    id=new_id("cp_"), job_id=job_id, checkpoint=checkpoint, project=project, created_at=int(time.time())
                )
                session.add(known[project])
        _keep_permissions(session, server, job_id)
    server.audit(who, "create permission", checkpoint, projects=body.project_ids)
    return _listing([_permission(known[project]) for project in dict.fromkeys(body.project_ids)], has_more=False)


@router.get("/checkpoints/{checkpoint:path}/permissions", response_model=Listing[PermissionObject])
def list_permissions(
    checkpoint: str,
    server: Server,
    who: Admin,
    after: str | None = None,
    limit: Limit = 10,
    order: Literal["ascending", "descending"] = "descending",
    project_id: str | None = None,
) -> Listing[PermissionObject]:
    """List the projects that may use a checkpoint."""
    with server.database.read() as session:
        _job_of(session, checkpoint, who)
        query = select(PermissionRow).where(PermissionRow.checkpoint == checkpoint)
        if project_id is not None:
            query = query.where(PermissionRow.project == project_id)
        rows, has_more = page(session, query, PermissionRow, after, limit, oldest_first=order == "ascending")
    return _listing([_permission(row) for row in rows], has_more)


@router.delete("/checkpoints/{checkpoint:path}/permissions/{permission_id}", response_model=Deleted)
def delete_permission(checkpoint: str, permission_id: str, server: Server, who: Admin) -> Deleted:
    """Take a permission back."""
    with server.database.write() as session:
        job_id = _job_of(session, checkpoint, who)
        row = next((row for row in _permissions(session, checkpoint) if row.id == permission_id), None)
        if row is None:
            raise not_found("permission", permission_id)
        session.delete(row)
        _keep_permissions(session, server, job_id)
    server.audit(who, "delete permission", permission_id, checkpoint=checkpoint)
    return Deleted(id=permission_id, object="checkpoint.permission")


def _job_of(session: Session, checkpoint: str, who: Principal) -> str:
    """The job that made a model or checkpoint."""
    of_model = select(JobRow).where(JobRow.fine_tuned_model == checkpoint)
    of_checkpoint = select(JobRow).join(CheckpointRow, CheckpointRow.job_id == JobRow.id)
    row = session.scalar(of_model) or session.scalar(of_checkpoint.where(CheckpointRow.model == checkpoint))
    if row is None or not who.sees(row.owner):
        raise not_found("checkpoint", checkpoint, param="fine_tuned_model_checkpoint")
    return row.id


def _permissions(session: Session, checkpoint: str) -> list[PermissionRow]:
    return list(session.scalars(select(PermissionRow).where(PermissionRow.checkpoint == checkpoint)))


def _keep_permissions(session: Session, server: Services, job_id: str) -> None:
    """Write a job's permissions to its folder, within the transaction."""
    session.flush()
    rows = session.scalars(select(PermissionRow).where(PermissionRow.job_id == job_id).order_by(PermissionRow.number))
    columns = ("id", "job_id", "checkpoint", "project", "created_at")
    values = [{name: getattr(row, name) for name in columns} for row in rows]
    path = server.folders.job(job_id) / "permissions.json"
    disk.write_json(path, values)
    server.folders.saved(path)


# --- shapes ------------------------------------------------------------------------------------


def _listing(data: list[Any], has_more: bool) -> Listing[Any]:
    ids = [item.id for item in data] or [None]
    return Listing(data=data, has_more=has_more, first_id=ids[0], last_id=ids[-1])


def _event(row: EventRow) -> EventObject:
    return EventObject(
        id=row.id,
        created_at=int(row.created_at),
        level=row.level,
        message=row.message,
        type=row.type,
        data=row.data,
    )


def _checkpoint(row: CheckpointRow) -> CheckpointObject:
    return CheckpointObject(
        id=row.id,
        created_at=int(row.created_at),
        fine_tuned_model_checkpoint=row.model,
        fine_tuning_job_id=row.job_id,
        metrics=row.metrics,
        step_number=row.step,
    )


def _permission(row: PermissionRow) -> PermissionObject:
    return PermissionObject(id=row.id, created_at=row.created_at, project_id=row.project)
