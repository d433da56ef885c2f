"""The application: routes behind the gate, errors in one form, workers beside it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from importlib.metadata import version

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool

from tunesmith.server import errors
from tunesmith.server.gate import Gate
from tunesmith.server.routes import (
    chat,
    completions,
    embeddings,
    files,
    graders,
    health,
    jobs,
    models,
    pages,
    responses,
    uploads,
)
from tunesmith.server.services import Services, open_services
from tunesmith.server.settings import Settings
from tunesmith.server.worker import Workers


def create_app(settings: Settings) -> FastAPI:
    """The server as an ASGI application; its workers live from start-up to shut-down.

    Raises:
        UsageError: See :func:`tunesmith.server.services.open_services`.
    """
    services = open_services(settings)
    app = FastAPI(
        title="Tunesmith",
        summary="The OpenAI API on your own hardware",
        version=version("tunesmith"),
        docs_url=None,
        redoc_url=None,
        lifespan=_lifespan,
        responses={"4XX": {"model": errors.ErrorBody, "description": "The request cannot be answered."}},
    )
    app.state.services = services
    errors.add_handlers(app)
    for module in (health, pages, files, uploads, jobs, graders, models, chat, completions, embeddings, responses):
        app.include_router(module.router)
    app.add_middleware(Gate, settings=settings, tokens=services.tokens, observe=services.metrics.observe)
    return app


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    services: Services = app.state.services
    workers = Workers(services)
    workers.start()
    try:
        yield
    finally:
        await run_in_threadpool(workers.stop)
        await run_in_threadpool(services.pool.close)
        services.database.close()
