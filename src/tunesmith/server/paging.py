"""Lists a page at a time: newest first, ``after`` the id of the last thing seen."""

from __future__ import annotations

from typing import Any, TypeVar

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from tunesmith.server.database import Row
from tunesmith.server.errors import ApiError

Found = TypeVar("Found", bound=Row)


def page(
    session: Session,
    query: Select[Found],
    table: Any,
    after: str | None,
    limit: int,
    *,
    oldest_first: bool = False,
) -> tuple[list[Found], bool]:
    """The rows of one page, and whether there are more.

    Args:
        session: A transaction.
        query: Which rows of ``table`` may be listed.
        table: A table with ``id`` and the growing ``number``.
        after: The last id of the page before.
        limit: Rows of a page.
        oldest_first: The other order.

    Raises:
        ApiError: 400, ``after`` names nothing in the list.
    """
    if after is not None:
        cursor = session.scalar(select(table.number).where(table.id == after))
        if cursor is None:
            raise ApiError(400, f"There is nothing of the id '{after}' to go on after.", param="after")
        query = query.where(table.number > cursor if oldest_first else table.number < cursor)
    ordered = query.order_by(table.number.asc() if oldest_first else table.number.desc())
    rows = list(session.scalars(ordered.limit(limit + 1)))
    return rows[:limit], len(rows) > limit
