"""``/v1/models``: what can be asked, and what was tuned here can be deleted."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool

from tunesmith.server.auth import Inferrer, Tuner
from tunesmith.server.errors import ApiError
from tunesmith.server.registry import Served
from tunesmith.server.services import Server

router = APIRouter(tags=["models"])


@router.get("/v1/models")
async def list_models(server: Server, who: Inferrer) -> dict[str, Any]:
    """List the bases, then the tuned models, newest first."""
    found = await run_in_threadpool(server.registry.all, who)
    return {"object": "list", "data": [_model(served) for served in found]}


@router.get("/v1/models/{name:path}")
async def retrieve_model(name: str, server: Server, who: Inferrer) -> dict[str, Any]:
    """Show one model; a checkpoint, too, by its name."""
    return _model(await run_in_threadpool(server.registry.find, name, who))


@router.delete("/v1/models/{name:path}")
async def delete_model(name: str, server: Server, who: Tuner) -> dict[str, Any]:
    """Delete a tuned model, with its checkpoints, for good."""
    served = await run_in_threadpool(server.registry.find, name, who)
    if served.folder is None:
        raise ApiError(403, f"'{name}' is a base model of this server.", code="model_not_deletable", param="model")
    if not who.sees(served.owner or ""):
        raise ApiError(403, f"'{name}' belongs to another project.", code="insufficient_permissions", param="model")
    await run_in_threadpool(server.registry.remove, served)
    for loaded in server.pool.names():
        if loaded == name or loaded.startswith(f"{name}:ckpt-step-"):
            await server.pool.drop(loaded)
    server.audit(who, "delete model", name)
    return {"id": name, "object": "model", "deleted": True}


def _model(served: Served) -> dict[str, Any]:
    return {
        "id": served.id,
        "object": "model",
        "created": served.created_at,
        "owned_by": served.owner or "tunesmith",
    }
