"""Questions to whoever sits at the terminal."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from tunesmith.catalog import Entry


def confirmed(question: str) -> bool:
    """Whether the answer is yes; the end of stdin is a no, as in a script that has nobody to answer."""
    try:
        return typer.confirm(question, err=True)
    except typer.Abort:
        return False


def require_yes(question: str) -> None:
    """Go on only after a yes.

    Raises:
        InterruptedRun: The answer is another, or there is none, as in a script that forgot ``--yes``.
    """
    from tunesmith.errors import InterruptedRun

    if not confirmed(question):
        raise InterruptedRun("nothing was removed", fix="answer y, or give --yes")


@contextmanager
def asked_for_terms(*, as_json: bool) -> Iterator[None]:
    """Within the block a model's terms are shown and asked for, if this is a terminal and no program reads along."""
    if as_json or not _somebody_is_there():
        yield
        return
    from tunesmith.catalog import terms

    with terms.asked_by(_accepts):
        yield


def _somebody_is_there() -> bool:
    try:
        return sys.stdin.isatty() and sys.stderr.isatty()
    except (AttributeError, ValueError):  # closed, or not there at all
        return False


def _accepts(entry: Entry) -> bool:
    """Show the terms and ask. A server's threads ask nobody: their callers are elsewhere."""
    from tunesmith.catalog import terms

    if threading.current_thread() is not threading.main_thread():
        return False
    print(terms.text_of(entry), file=sys.stderr)
    return confirmed(f"Accept these terms of {entry.name}?")
