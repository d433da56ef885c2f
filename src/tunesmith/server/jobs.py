"""The life of a job: made, stopped, shown. Every change is written to its folder within the transaction.

``validating_files`` -> ``queued`` -> ``running`` -> ``succeeded``, ``failed`` or ``cancelled``; ``paused`` in between.
What workers change is in :mod:`tunesmith.server.queue`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
from sqlalchemy import select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from tunesmith import disk
from tunesmith.server import graders, storage
from tunesmith.server.auth import Principal
from tunesmith.server.database import Database, EventRow, FileRow, IdempotencyRow, JobRow, LabelRow
from tunesmith.server.errors import ApiError, not_found
from tunesmith.server.folders import Folders, new_id
from tunesmith.server.schemas import (
    DpoHyperparameters,
    Hyperparameters,
    JobObject,
    JobRequest,
    Method,
    ReinforcementHyperparameters,
)
from tunesmith.server.services import Services
from tunesmith.server.words import JobEvent

WAITING = ("validating_files", "queued")
ENDED = ("succeeded", "failed", "cancelled")
STORED = tuple(column.key for column in JobRow.__mapper__.column_attrs if column.key != "number")
"""What ``job.json`` holds: everything but the row's number."""
MARK = ".new"
"""File in a job's folder, there and locked until the job is in the index."""
MARK_SECONDS = 60
"""How old a mark must be to be looked at: in its first moment it is not locked yet."""
log = logging.getLogger("tunesmith.server")


def create(server: Services, who: Principal, body: JobRequest, key: str | None = None) -> JobRow:
    """Make a job; its files are validated afterwards, by a worker.

    Args:
        server: The parts of the server.
        who: Whose job it is.
        body: What is asked for.
        key: ``Idempotency-Key``: the same again gives the same job.

    Raises:
        ApiError: 400, a file or method that cannot be; 404, an unknown model; 422, a key that was used otherwise.
    """
    asked = body.model_dump(mode="json")
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    if key is not None and (known := _replayed(server, who, key, digest)) is not None:
        return known
    method = _method(body, python=server.settings.python_graders)
    server.registry.base(body.model)
    row = JobRow(
        id=new_id("ftjob-"),
        owner=who.owner,
        created_at=time.time(),
        status="validating_files",
        model=body.model,
        training_file=body.training_file,
        validation_file=body.validation_file,
        suffix=_slug(body.suffix),
        seed=secrets.randbelow(2**31) if body.seed is None else body.seed,
        method=method,
        labels=body.metadata,
        integrations=asked["integrations"],
        result_files=[],
    )
    files = _files(server, who, body)
    try:
        with _marked(server.folders.job(row.id)):
            _take_files(server.folders, row.id, files)
            with server.database.write() as session:
                store(session, server.folders, row)
                session.add_all(LabelRow(job_id=row.id, key=k, value=v) for k, v in (body.metadata or {}).items())
                if key is not None:
                    session.add(
                        IdempotencyRow(
                            owner=who.owner, key=key, body_sha256=digest, job_id=row.id, created_at=row.created_at
                        )
                    )
                log_event(session, server.folders, row.id, f"Created fine-tuning job: {row.id}")
                for text in _warnings(row):
                    log_event(session, server.folders, row.id, text, level="warn")
    except BaseException as error:
        server.folders.remove(server.folders.job(row.id))
        if isinstance(error, IntegrityError) and key is not None:  # the same came at the same time, and was first
            known = _replayed(server, who, key, digest)
            if known is not None:
                return known
        raise
    server.audit(who, "create job", row.id, model=row.model, training_file=row.training_file)
    return row


def find(session: Session, job_id: str, who: Principal, *, lock: bool = False) -> JobRow:
    """A job that is visible.

    Raises:
        ApiError: 404.
    """
    query = select(JobRow).where(JobRow.id == job_id)
    row = session.scalar(query.with_for_update() if lock else query)
    if row is None or not who.sees(row.owner):
        raise ApiError(
            404, f"Could not find fine tune: {job_id}", code="fine_tune_not_found", param="fine_tuning_job_id"
        )
    return row


def cancel(server: Services, who: Principal, job_id: str) -> JobRow:
    """Stop a job for good. It counts as cancelled at once; a worker on it stops within seconds."""
    return _order(server, who, job_id, "cancelled", (*WAITING, "running", "paused"), "The job has been cancelled")


def pause(server: Services, who: Principal, job_id: str) -> JobRow:
    """Stop a job until it is resumed; what it learned is saved."""
    return _order(server, who, job_id, "paused", ("queued", "running"), "The job has been paused")


def resume(server: Services, who: Principal, job_id: str) -> JobRow:
    """Let a paused job go on from its last checkpoint; so too one that failed in training, once the cause is mended."""
    return _order(server, who, job_id, "queued", ("paused", "failed"), "The job has been resumed")


def _order(server: Services, who: Principal, job_id: str, status: str, allowed: tuple[str, ...], text: str) -> JobRow:
    with server.database.write() as session:
        row = find(session, job_id, who, lock=True)
        unresumable = row.status == "failed" and not (server.folders.run(row.id) / "recipe.yaml").is_file()
        if row.status not in allowed or unresumable:
            raise ApiError(400, f"The job is {row.status}: it cannot become {status}.", code="invalid_job_state")
        if row.status == "failed":
            _take_files_again(server.folders, session, row)
        row.status = status
        row.estimated_finish = None
        if status == "cancelled":
            row.finished_at = time.time()
        if status == "queued":
            row.error, row.finished_at, row.deaths, row.not_before = None, None, 0, 0.0
        log_event(session, server.folders, row.id, text)
        store(session, server.folders, row)
        if status == "cancelled" and row.lease_until is None:
            forget_data(server.folders, row.id)
    server.audit(who, {"cancelled": "cancel", "paused": "pause", "queued": "resume"}[status] + " job", row.id)
    return row


def job_object(row: JobRow, organization: str) -> JobObject:
    """The job as the API shows it."""
    kind = row.method["type"]
    return JobObject(
        id=row.id,
        created_at=int(row.created_at),
        error=row.error,
        fine_tuned_model=row.fine_tuned_model if row.status == "succeeded" else None,
        finished_at=int(row.finished_at) if row.finished_at else None,
        hyperparameters=row.method[kind]["hyperparameters"],
        model=row.model,
        organization_id=f"org-{organization}",
        result_files=row.result_files,
        seed=row.seed,
        status=row.status,
        trained_tokens=row.trained_tokens,
        training_file=row.training_file,
        validation_file=row.validation_file,
        estimated_finish=int(row.estimated_finish) if row.estimated_finish else None,
        integrations=row.integrations or [],
        metadata=row.labels,
        method=row.method,
    )


def store(session: Session, folders: Folders, row: JobRow) -> None:
    """Write a job to the index and to its folder: if either fails, neither counts."""
    session.add(row)
    session.flush()
    path = folders.job(row.id) / "job.json"
    disk.write_json(path, {name: getattr(row, name) for name in STORED})
    folders.saved(path)


def log_event(session: Session, folders: Folders, job_id: str, message: str, *, level: str = "info") -> None:
    """Add an event that no run has: to the job's log, which only grows, and to the index."""
    event = JobEvent(new_id("ftevent-"), time.time(), level, "message", message)
    line = (json.dumps(event.as_dict(), ensure_ascii=False) + "\n").encode()
    path = folders.job(job_id) / "events.jsonl"
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, line)
    finally:
        os.close(descriptor)
    folders.saved(path)
    add_events(session, job_id, [event])
    log.log(logging.WARNING if level == "error" else logging.INFO, "%s: %s", job_id, message)


def add_events(session: Session, job_id: str, events: list[JobEvent]) -> None:
    """Enter events in the index; those that it has are left as they are."""
    if not events:
        return
    dialect: Any = sqlite if session.get_bind().dialect.name == "sqlite" else postgresql
    values = [{"job_id": job_id, **event.as_dict()} for event in events]
    for first in range(0, len(values), 500):  # a statement has a limited number of parameters
        session.execute(dialect.insert(EventRow).values(values[first : first + 500]).on_conflict_do_nothing())


def forget_data(folders: Folders, job_id: str) -> None:
    """Remove a job's copies of its files when it is over: whoever deletes a file wants it gone."""
    folders.remove(folders.job(job_id) / "data")
    for half in folders.job(job_id).glob(".pull-data-*"):  # of a process that was killed while it fetched them
        shutil.rmtree(half, ignore_errors=True)


@contextlib.contextmanager
def _marked(folder: Path) -> Iterator[None]:
    """Make a job's folder, with a mark that is held while the job is not in the index."""
    folder.mkdir(parents=True)
    with filelock.FileLock(folder / MARK):
        yield
        with contextlib.suppress(OSError):  # the job is there by now: whoever sees the mark later takes it away
            (folder / MARK).unlink()


def forget_unmade(folders: Folders, database: Database) -> None:
    """Remove the folders of jobs that a kill kept out of the index. A folder without a mark is a job's, and stays."""
    for mark in folders.root.glob(f"jobs/*/{MARK}"):
        with contextlib.suppress(FileNotFoundError, filelock.Timeout):  # its job has just been made, or is being made
            if mark.stat().st_mtime > time.time() - MARK_SECONDS:
                continue
            with filelock.FileLock(mark, timeout=0):
                with database.read() as session:
                    is_made = session.scalar(select(JobRow.id).where(JobRow.id == mark.parent.name)) is not None
                if is_made:
                    mark.unlink()
                else:
                    log.warning("%s was never made: its folder is removed", mark.parent.name)
                    folders.remove(mark.parent)


def forget_orphaned_data(folders: Folders, database: Database) -> None:
    """Do so too for jobs that were ended while a worker had them that never came back."""
    with database.write() as session:
        orphans = select(JobRow).where(JobRow.status.in_(ENDED), JobRow.lease_until < time.time())
        for row in session.scalars(orphans.with_for_update(skip_locked=True)):
            forget_data(folders, row.id)
            row.lease_until, row.worker = None, None
            store(session, folders, row)


def _method(body: JobRequest, *, python: bool) -> dict[str, Any]:
    """The method with its hyper-parameters, wherever the client gave them; ``python``: whether such graders may run."""
    method = body.method or Method(type="supervised")
    more: dict[str, Any] = {}
    asked: Hyperparameters
    if method.type == "reinforcement":
        given = method.reinforcement
        if given is None:
            name = "method.reinforcement.grader"
            raise ApiError(400, f"Missing required parameter: '{name}'.", code="missing_parameter", param=name)
        more = {"grader": graders.accepted(given.grader, python=python, param="method.reinforcement.grader")}
        asked = given.hyperparameters or ReinforcementHyperparameters()
    elif method.type == "dpo":
        asked = (method.dpo.hyperparameters if method.dpo else None) or DpoHyperparameters()
    else:
        inner = method.supervised.hyperparameters if method.supervised else None
        asked = inner or body.hyperparameters or Hyperparameters()
    return {"type": method.type, method.type: {**more, "hyperparameters": asked.model_dump(exclude_none=True)}}


def _warnings(row: JobRow) -> Iterator[str]:
    """What the job asks for and does not get."""
    hyperparameters = row.method[row.method["type"]]["hyperparameters"]
    if hyperparameters.get("reasoning_effort", "default") != "default":
        yield "`reasoning_effort` changes nothing here: local models have no levels of it"
    if row.integrations:
        yield "This server sends nothing to Weights & Biases: `wandb sync` reads the results file of the job"


def _files(server: Services, who: Principal, body: JobRequest) -> dict[str, FileRow]:
    """By ``training_file`` and ``validation_file`` what these name."""
    named = {"training_file": body.training_file, "validation_file": body.validation_file}
    with server.database.read() as session:
        return {
            param: _training_file(session, file_id, who, param)
            for param, file_id in named.items()
            if file_id is not None
        }


def _training_file(session: Session, file_id: str, who: Principal, param: str) -> FileRow:
    try:
        row = storage.find_file(session, file_id, who)
    except ApiError:
        raise ApiError(400, f"invalid {param}: {file_id}", code="invalid_file", param=param) from None
    if row.purpose != "fine-tune":
        message = f"The file {file_id} has the purpose '{row.purpose}'; it must be uploaded with 'fine-tune'."
        raise ApiError(400, message, code="invalid_file_purpose", param=param)
    return row


def _take_files(folders: Folders, job_id: str, files: dict[str, FileRow]) -> None:
    """Give the job its own names of the files: a file that is deleted while the job waits is still there for it."""
    data = folders.job(job_id) / "data"
    made = data.parent if folders.remote else data  # the job's process fetches it from the storage
    made.mkdir(parents=True, exist_ok=True)
    for param, row in files.items():
        source = folders.file(row.id) / "content"
        target = data / f"{param}.jsonl{'.gz' if row.filename.lower().endswith('.gz') else ''}"
        if folders.remote:
            try:
                folders.remote.copy(f"files/{row.id}/content", f"jobs/{job_id}/data/{target.name}")
            except FileNotFoundError:
                raise not_found("File object", row.id, param=param) from None
            continue
        try:
            os.link(source, target)
        except OSError:  # a file system without links, or a file that is just being deleted
            if not source.is_file():
                raise not_found("File object", row.id, param=param) from None
            shutil.copyfile(source, target)


def _take_files_again(folders: Folders, session: Session, row: JobRow) -> None:
    """Give a job that failed, and with that lost its files, the same once more.

    Raises:
        ApiError: 400: one of them was deleted.
    """
    forget_data(folders, row.id)
    files = {}
    for param in ("training_file", "validation_file"):
        if (file_id := getattr(row, param)) is None:
            continue
        file = session.scalar(select(FileRow).where(FileRow.id == file_id))
        if file is None or storage.is_expired(file):
            message = f"The file {file_id} was deleted: the job cannot go on. Upload it again, and create a new job."
            raise ApiError(400, message, code="invalid_file", param=param)
        files[param] = file
    _take_files(folders, row.id, files)


def _replayed(server: Services, who: Principal, key: str, digest: str) -> JobRow | None:
    if len(key) > 255:
        raise ApiError(400, "The Idempotency-Key is longer than 255 characters.", param="Idempotency-Key")
    with server.database.read() as session:
        known = session.get(IdempotencyRow, (who.owner, key))
        if known is None:
            return None
        if known.body_sha256 != digest:
            message = "This Idempotency-Key came with another body before."
            raise ApiError(422, message, code="idempotency_key_reused", param="Idempotency-Key")
        return session.scalar(select(JobRow).where(JobRow.id == known.job_id))


def _slug(suffix: str | None) -> str | None:
    """As OpenAI does: lower case, and nothing that could be taken for a part of the model's name."""
    return re.sub(r"[^a-z0-9]+", "-", (suffix or "").lower()).strip("-") or None


def tuned_name(row: JobRow, organization: str) -> str:
    """The name of the model that a job makes, e.g. ``ft:gpt-4.1-mini:local:support:3fa9c1d2``."""
    return f"ft:{row.model}:{organization}:{row.suffix or ''}:{row.id.removeprefix('ftjob-')[:8]}"
