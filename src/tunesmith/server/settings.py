"""What ``tunesmith serve`` was asked for."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from tunesmith.errors import UsageError
from tunesmith.server.pool import EngineName

MB = 2**20


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The server's settings; the command line's flags have the same names.

    Attributes:
        data: Files, runs, tokens and the audit log live below it.
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
        token: A token with all rights, beside those of ``tunesmith serve token``.
        database: SQLAlchemy address of the index; default: SQLite in the data folder.
        storage: ``s3://bucket/prefix``, where files and finished runs are kept; default: the data folder alone.
        workers: Jobs that this server trains at once; 0 only takes and shows them.
        models: ``models.yaml``: names that clients use -> local models.
        organization: Stands in the names of tuned models, ``ft:base:organization:suffix:id``.
        allowed_hosts: Further values of the ``Host`` header (and of ``Origin``) to accept.
        memory_bytes: Memory that all running jobs may plan for; default: what is free when a job is to start.
        max_file_bytes: Largest file.
        max_upload_bytes: Largest file that is sent in parts.
        max_body_bytes: Largest body of any other request.
        max_unpacked_ratio: How many times its size a compressed file may unpack to.
        lease_seconds: How long a job stays with a worker that gives no sign of life.
        poll_seconds: How often a worker looks for orders and new jobs.
        grace_seconds: How long a stopped job may take to save itself.
        max_attempts: How often a job may die without having got further.
        max_failures: Wrong tokens from one address within a minute, before it has to wait.
        min_examples: Fewest rows of a training file.
        python_graders: Whether jobs may bring graders of Python, which run here in processes of their own.
        model_memory_bytes: What models that answer may take, with their caches; default: half of what is free.
        max_rows: Answers that one model writes at a time.
        queue_limit: Requests that may wait for one model; a further one gets 429.
        engine: What writes the text of bases and of adapters on them: ``own``, or ``vllm`` where that is installed.
    """

    data: Path
    host: str = "127.0.0.1"
    port: int = 8000
    token: SecretStr | None = None
    database: str | None = None
    storage: str | None = None
    workers: int = 1
    models: Path | None = None
    organization: str = "local"
    allowed_hosts: tuple[str, ...] = ()
    memory_bytes: int | None = None
    max_file_bytes: int = 512 * MB
    max_upload_bytes: int = 8192 * MB
    max_body_bytes: int = 32 * MB
    max_unpacked_ratio: int = 100
    lease_seconds: float = 30.0
    poll_seconds: float = 0.5
    grace_seconds: float = 60.0
    max_attempts: int = 3
    max_failures: int = 10
    min_examples: int = 10
    python_graders: bool = False
    model_memory_bytes: int | None = None
    max_rows: int = 64
    queue_limit: int = 256
    engine: EngineName = "own"

    @property
    def database_url(self) -> str:
        """Address of the database."""
        return self.database or f"sqlite:///{self.data.resolve() / 'index.sqlite'}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def refuse_open_door(self, *, has_tokens: bool) -> None:
        """Anyone could train and read here: a bind that others reach needs a token.

        Raises:
            UsageError: The address is not loopback and there is no token.
        """
        if not self.is_loopback and not has_tokens:
            raise UsageError(
                f"{self.host} can be reached from other machines, and no token is set",
                where="--host",
                fix="add `--token SECRET` (or TUNESMITH_TOKEN), or make tokens with `tunesmith serve token add NAME`",
            )
