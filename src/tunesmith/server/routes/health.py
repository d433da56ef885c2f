"""Signs of life."""

from __future__ import annotations

from fastapi import APIRouter, Response

from tunesmith.server.auth import Admin
from tunesmith.server.services import Server

router = APIRouter(tags=["server"])


@router.get("/health")
def health() -> dict[str, str]:
    """Whether the server answers; needs no token."""
    return {"status": "ok"}


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}, "description": "In Prometheus' text format."}},
)
def metrics(server: Server, who: Admin) -> Response:
    """Counts of requests, jobs and files."""
    return Response(server.metrics.text(), media_type="text/plain; version=0.0.4")
