"""Rows that are left out: written to a file with reason and origin, and counted aloud."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, TypeVar

from tunesmith.data.rows import Origin, Row
from tunesmith.errors import DataError
from tunesmith.events import Listener, Notice

Found = TypeVar("Found")

OR_LEAVE_OUT = "leave such rows out: `data.drop_bad: true`"


class DroppedRows:
    """Writes rows left out, with reason and origin, to a JSONL file that appears when it is complete.

    Args:
        path: The file; it is not made if no row is left out.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._part = path.with_name(path.name + ".part")
        self._file: IO[str] | None = None

    def add(self, origin: Origin, reasons: list[str], row: str) -> None:
        """Write one row; ``row`` is its text as the file has it."""
        if self._file is None:
            self._part.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self._part, "w", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
        entry = {"file": origin.file, "line": origin.line, "reasons": reasons, "row": row}
        self._file.write(json.dumps(entry, ensure_ascii=False) + "\n")

    def finish(self) -> None:
        """Put the file in its place; a file of an earlier run never stays behind."""
        if self._file is None:
            self._path.unlink(missing_ok=True)
        else:
            self._file.close()
            self._part.replace(self._path)
            self._file = None

    def close(self) -> None:
        """Remove what was not finished."""
        if self._file is not None:
            self._file.close()
            self._part.unlink(missing_ok=True)


def each_rendered(
    rows: Sequence[Row], render: Callable[[Row], Found], leave_out: Callable[[Row, DataError], None] | None
) -> Iterator[tuple[int, Found]]:
    """What is rendered of each row, with the row's number from 0.

    Args:
        rows: To render.
        render: Raises :class:`DataError` for a row from which nothing can be learned as the recipe wants it.
        leave_out: Told of such a row, which is then passed over; ``None``: it is an error.

    Raises:
        DataError: As ``render`` does; it says that such rows can be left out.
    """
    for number, row in enumerate(rows):
        try:
            found = render(row)
        except DataError as error:
            if leave_out is None:
                error.where = error.where or str(row.origin)
                error.fix = f"{error.fix}; or {OR_LEAVE_OUT}" if error.fix else OR_LEAVE_OUT
                raise
            leave_out(row, error)
        else:
            yield number, found


def sieved(
    rows: Sequence[Row], render: Callable[[Row], Found], dropped_to: Path | None, what: str, on_event: Listener
) -> Iterator[tuple[int, Found]]:
    """The same; rows that cannot be rendered are written to a file, and their number is told at the end.

    Args:
        rows: To render.
        render: As above.
        dropped_to: The file (``data.drop_bad``); ``None``: such a row is an error.
        what: What the rows are rendered for.
        on_event: Told how many are left out.

    Raises:
        DataError: As ``render`` does without a file, or if no row at all can be rendered.
    """
    if dropped_to is None:
        yield from each_rendered(rows, render, None)
        return
    dropped, errors, count = DroppedRows(dropped_to), list[DataError](), 0

    def leave_out(row: Row, error: DataError) -> None:
        nonlocal count
        count += 1
        if not errors:
            error.where = error.where or str(row.origin)
            errors.append(error)
        dropped.add(row.origin, [error.what], json.dumps(row.fields, ensure_ascii=False))

    try:
        yield from each_rendered(rows, render, leave_out)
        dropped.finish()
    finally:
        dropped.close()
    if count and count == len(rows):
        raise errors[0]
    if count:
        message = f"{count:,} of {len(rows):,} rows are left out ({what}), written to {dropped_to}: {errors[0].what}"
        on_event(Notice(level="warning", message=message, where=errors[0].where, fix=errors[0].fix))
