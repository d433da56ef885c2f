"""Signs of life."""

from __future__ import annotations

from fastapi import APIRouter

router = APIRouter(tags=["server"])


@router.get("/health")
def health() -> dict[str, str]:
    """Whether the server answers; needs no token."""
    return {"status": "ok"}
