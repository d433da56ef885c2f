"""Reading texts with ratings."""

from __future__ import annotations

from collections.abc import Sequence

from tunesmith.data.pairs import Rated
from tunesmith.data.problems import Fault
from tunesmith.data.readers import read
from tunesmith.data.sources import find_sources
from tunesmith.errors import DataError


def read_rated(files: Sequence[str], *, text: str, rating: str, group: str | None = None) -> list[Rated]:
    """Read texts and ratings from files of any known format.

    Args:
        files: As in ``data.train``.
        text: Column of the texts.
        rating: Column of the ratings.
        group: Column of what the texts answer.

    Raises:
        DataError: A row cannot be read, or lacks a column, or its rating is no number; the place is ``file:line``.
    """
    found = []
    for source in find_sources(list(files), key="files"):
        for record in read(source, "utf-8"):
            if isinstance(record, Fault):
                if record.severity == "error":
                    raise DataError(record.message, where=str(record.origin), fix=record.fix)
                continue
            wanted = [text, rating] + ([group] if group else [])
            missing = next((name for name in wanted if record.values.get(name) is None), None)
            if missing is not None:
                columns = ", ".join(f"`{name}`" for name in record.values)
                raise DataError(f"no `{missing}` here", where=str(record.origin), fix=f"columns: {columns}")
            try:
                score = float(record.values[rating])
            except (TypeError, ValueError):
                what = f"the rating is {record.values[rating]!r}, which is no number"
                raise DataError(what, where=str(record.origin), fix="mend it or leave the row out") from None
            found.append(Rated(str(record.values[text]), score, str(record.values[group]) if group else None))
    return found
