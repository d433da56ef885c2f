"""What routes work with, made once for an app."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from tunesmith.server.audit import Audit
from tunesmith.server.auth import Tokens
from tunesmith.server.database import Database
from tunesmith.server.folders import Folders
from tunesmith.server.metrics import Metrics
from tunesmith.server.pool import Limits, Pool
from tunesmith.server.pool_metrics import PoolMetrics
from tunesmith.server.registry import Registry
from tunesmith.server.remote import Remote
from tunesmith.server.settings import Settings


@dataclass(frozen=True)
class Services:
    """The parts of a running server."""

    settings: Settings
    folders: Folders
    database: Database
    tokens: Tokens
    registry: Registry
    audit: Audit
    metrics: Metrics
    pool: Pool


def open_services(settings: Settings) -> Services:
    """Open the data folder and the database.

    Raises:
        UsageError: ``models.yaml`` or the address of database or storage is malformed; the bind needs a token.
        ResourceError: Folder, database or storage cannot be opened.
    """
    remote = Remote(settings.storage) if settings.storage else None
    if remote:
        remote.check()
    folders = Folders(settings.data, remote)
    folders.make()
    tokens = Tokens(settings.data, settings.token)
    settings.refuse_open_door(has_tokens=bool(tokens))
    database = Database(settings.database_url)
    registry = Registry(database, folders, settings.models)
    limits = Limits(
        memory_bytes=settings.model_memory_bytes,
        max_rows=settings.max_rows,
        queue_limit=settings.queue_limit,
        engine=settings.engine,
    )
    audit, metrics, pool = Audit(settings.data), Metrics(database), Pool(limits)
    metrics.registry.register(PoolMetrics(pool))
    return Services(settings, folders, database, tokens, registry, audit, metrics, pool)


def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


Server = Annotated[Services, Depends(_services)]
"""The parameter type of routes that need the server's parts."""
