"""Two pages for people: the jobs, and what the API takes. Whole in themselves; what they show they ask the API for."""

from __future__ import annotations

import secrets
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import HTMLResponse, RedirectResponse

router = APIRouter(include_in_schema=False)
PAGES = Path(__file__).parent.parent / "pages"


@router.get("/")
def home() -> RedirectResponse:
    """The jobs."""
    return RedirectResponse("/dashboard")


@router.get("/dashboard")
def dashboard() -> HTMLResponse:
    """The jobs with their losses, as they come. The page asks for a token where the API wants one."""
    return _page("dashboard.html")


@router.get("/docs")
def docs() -> HTMLResponse:
    """The description of the API for reading."""
    return _page("docs.html")


def _page(name: str) -> HTMLResponse:
    """A page whose scripts and styles are its own, which loads nothing and talks to nobody else."""
    nonce = secrets.token_urlsafe(16)
    style = (PAGES / "page.css").read_text(encoding="utf-8")
    text = (PAGES / name).read_text(encoding="utf-8").replace("STYLE", style).replace("NONCE", nonce)
    policy = (
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )
    headers = {"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff"}
    return HTMLResponse(text, headers=headers)
