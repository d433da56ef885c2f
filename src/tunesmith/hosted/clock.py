"""The day by which models are open or shut down and prices old; one place, so that tests can stand still in it."""

from __future__ import annotations

from datetime import date


def today() -> date:
    """The day on this machine."""
    return date.today()
