"""The index of files, uploads, jobs and events: SQLite for one machine, PostgreSQL for several.

It can be lost: :mod:`tunesmith.server.rebuild` restores it from the data folder. What must be decided by one party at a
time (who works on a job, in which state it is) is decided here, in one transaction each.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from sqlalchemy import JSON, BigInteger, Engine, Index, Integer, String, Text, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from tunesmith.errors import MissingExtraError, ResourceError, UsageError

Number = BigInteger().with_variant(Integer, "sqlite")  # SQLite numbers rows by itself in INTEGER columns only
BUSY_SECONDS = 30
"""How long a writer waits for another one on SQLite."""


class Row(DeclarativeBase):
    """Base of all tables. ``number`` grows with each row: lists go by it, newest first."""


class FileRow(Row):
    """A file; its bytes and the same facts are in ``files/<id>/``."""

    __tablename__ = "files"
    number: Mapped[int] = mapped_column(Number, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(64), unique=True)
    owner: Mapped[str] = mapped_column(String(64))
    filename: Mapped[str] = mapped_column(Text)
    purpose: Mapped[str] = mapped_column(String(32))
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[int] = mapped_column(BigInteger)
    expires_at: Mapped[int | None] = mapped_column(BigInteger)
    __table_args__ = (Index("files_of_owner", "owner", "number"), Index("files_that_expire", "expires_at"))


class UploadRow(Row):
    """A file that comes in parts; these lie in ``uploads/<id>/``."""

    __tablename__ = "uploads"
    number: Mapped[int] = mapped_column(Number, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(64), unique=True)
    owner: Mapped[str] = mapped_column(String(64))
    filename: Mapped[str] = mapped_column(Text)
    mime_type: Mapped[str] = mapped_column(Text)
    purpose: Mapped[str] = mapped_column(String(32))
    bytes: Mapped[int] = mapped_column(BigInteger)
    status: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[int] = mapped_column(BigInteger)
    expires_at: Mapped[int] = mapped_column(BigInteger)
    file_expires_after: Mapped[int | None] = mapped_column(BigInteger)
    file_id: Mapped[str | None] = mapped_column(String(64))


class JobRow(Row):
    """A fine-tuning job; ``jobs/<id>/job.json`` holds the same, ``jobs/<id>/run/`` what came of it.

    ``attempt`` counts the workers that took the job: whoever holds an older number may write nothing any more
    (fencing). ``lease_until`` is when a silent worker loses it.
    """

    __tablename__ = "jobs"
    number: Mapped[int] = mapped_column(Number, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(64), unique=True)
    owner: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[float]
    status: Mapped[str] = mapped_column(String(24))
    model: Mapped[str] = mapped_column(Text)
    training_file: Mapped[str] = mapped_column(String(64))
    validation_file: Mapped[str | None] = mapped_column(String(64))
    suffix: Mapped[str | None] = mapped_column(String(64))
    seed: Mapped[int] = mapped_column(BigInteger)
    method: Mapped[dict[str, Any]] = mapped_column(JSON)
    labels: Mapped[dict[str, str] | None] = mapped_column("metadata", JSON)
    integrations: Mapped[list[dict[str, Any]] | None] = mapped_column(JSON)
    error: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    fine_tuned_model: Mapped[str | None] = mapped_column(Text, index=True)
    started_at: Mapped[float | None]
    finished_at: Mapped[float | None]
    estimated_finish: Mapped[float | None]
    trained_tokens: Mapped[int | None] = mapped_column(BigInteger)
    result_files: Mapped[list[str]] = mapped_column(JSON)
    memory_bytes: Mapped[int | None] = mapped_column(BigInteger)
    attempt: Mapped[int] = mapped_column(default=0)
    worker: Mapped[str | None] = mapped_column(Text)
    lease_until: Mapped[float | None]
    not_before: Mapped[float] = mapped_column(default=0.0)
    deaths: Mapped[int] = mapped_column(default=0)
    furthest_step: Mapped[int] = mapped_column(default=-1)
    __table_args__ = (Index("jobs_of_owner", "owner", "number"), Index("jobs_in_state", "status", "number"))


class LabelRow(Row):
    """One pair of a job's metadata, for lists that are filtered by it."""

    __tablename__ = "job_metadata"
    job_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    value: Mapped[str] = mapped_column(String(512))
    __table_args__ = (Index("jobs_with_metadata", "key", "value", "job_id"),)


class EventRow(Row):
    """One event of a job in OpenAI's words; restored from the logs of the job and of its run."""

    __tablename__ = "events"
    number: Mapped[int] = mapped_column(Number, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(64), unique=True)
    job_id: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[float]
    level: Mapped[str] = mapped_column(String(8))
    type: Mapped[str] = mapped_column(String(8))
    message: Mapped[str] = mapped_column(Text)
    data: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    __table_args__ = (Index("events_of_job", "job_id", "number"),)


class CheckpointRow(Row):
    """A checkpoint of a finished job that can be used as a model."""

    __tablename__ = "checkpoints"
    number: Mapped[int] = mapped_column(Number, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(64), unique=True)
    job_id: Mapped[str] = mapped_column(String(64))
    model: Mapped[str] = mapped_column(Text, unique=True)
    step: Mapped[int]
    created_at: Mapped[float]
    metrics: Mapped[dict[str, Any]] = mapped_column(JSON)
    __table_args__ = (Index("checkpoints_of_job", "job_id", "number"),)


class PermissionRow(Row):
    """A project beside the owner's that may use a tuned model or checkpoint."""

    __tablename__ = "permissions"
    number: Mapped[int] = mapped_column(Number, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(64), unique=True)
    job_id: Mapped[str] = mapped_column(String(64), index=True)
    checkpoint: Mapped[str] = mapped_column(Text)
    project: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[int] = mapped_column(BigInteger)
    __table_args__ = (Index("permissions_of_checkpoint", "checkpoint", "project", unique=True),)


class IdempotencyRow(Row):
    """A request that was answered: the same key again is given the same job."""

    __tablename__ = "idempotency"
    owner: Mapped[str] = mapped_column(String(64), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    body_sha256: Mapped[str] = mapped_column(String(64))
    job_id: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[float]


class Database:
    """A connection pool and its two kinds of transaction.

    Args:
        url: SQLAlchemy address, ``sqlite:///path`` or ``postgresql+psycopg://...``.

    Raises:
        UsageError: The address is none.
        ResourceError: The database cannot be reached.
        MissingExtraError: The driver is not installed.
    """

    def __init__(self, url: str) -> None:
        self.engine = _engine(url)
        self._writing = self.engine.execution_options(tunesmith_writes=True)
        try:
            Row.metadata.create_all(self._writing)
        except SQLAlchemyError as error:
            raise ResourceError(
                f"cannot open the database: {getattr(error, 'orig', None) or error}",
                where=make_url(url).render_as_string(hide_password=True),
                fix="check `--database`, and that the server is running",
            ) from error

    @contextlib.contextmanager
    def read(self) -> Iterator[Session]:
        """A transaction that changes nothing; on SQLite it never waits for a writer."""
        with Session(self.engine, expire_on_commit=False) as session:
            yield session

    @contextlib.contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that is committed at the end, or rolled back by an exception."""
        with Session(self._writing, expire_on_commit=False) as session, session.begin():
            yield session

    def close(self) -> None:
        """Give all connections back."""
        self.engine.dispose()


def _engine(url: str) -> Engine:
    try:
        parsed = make_url(url)
        if parsed.drivername in ("postgresql", "postgres"):
            parsed = parsed.set(drivername="postgresql+psycopg")
        options: dict[str, Any] = {"pool_pre_ping": True, "pool_size": 10, "max_overflow": 20}
        if parsed.get_backend_name() == "sqlite":
            options = {"connect_args": {"timeout": BUSY_SECONDS, "check_same_thread": False}}
        engine = create_engine(parsed, **options)
    except (ArgumentError, NoSuchModuleError) as error:
        raise UsageError(
            f"no database address: {error}", where="--database", fix="sqlite:///FILE or postgresql://USER@HOST/NAME"
        ) from error
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "psycopg", "postgres", "PostgreSQL") from error
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _set_up_sqlite(connection: Any, record: Any) -> None:
    connection.isolation_level = None  # transactions begin where SQLAlchemy says, not where the driver guesses
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", f"busy_timeout={BUSY_SECONDS * 1000}"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Any) -> None:
    """A writer takes the lock at once: one that first reads and then writes could not wait for another."""
    writes = connection.get_execution_options().get("tunesmith_writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
