"""Rows on disk that look like a list, for sets that memory cannot hold."""

from __future__ import annotations

import json
import mmap
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.rows import Origin, Row

PLACE = np.dtype([("offset", "<u8"), ("size", "<u4"), ("file", "<u4"), ("line", "<u4")])
"""Where a row's bytes lie, and where the row came from."""

_BUFFER = 2**20


class RowSpool:
    """Takes rows as JSON bytes, one after the other, into a temporary file without a name."""

    def __init__(self, folder: Path | None = None) -> None:
        self._file = tempfile.TemporaryFile(dir=folder, buffering=_BUFFER)  # noqa: SIM115 - lives as long as the spool
        self.num_bytes = 0

    def add(self, fields: bytes) -> int:
        """Append a row's fields; returns their offset."""
        offset = self.num_bytes
        self._file.write(fields)
        self.num_bytes += len(fields)
        return offset

    def read(self, offset: int, size: int) -> bytes:
        """The bytes of one row, while the spool is still being filled."""
        self._file.seek(offset)
        data = self._file.read(size)
        self._file.seek(self.num_bytes)
        return data

    def finish(self) -> mmap.mmap | bytes:
        """Everything written, mapped into memory; the file goes away with the map."""
        self._file.flush()
        mapped = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ) if self.num_bytes else b""
        self._file.close()
        return mapped


class RowFile(Sequence[Row]):
    """A sequence of rows that are decoded when they are asked for.

    Args:
        data: What :meth:`RowSpool.finish` gave.
        places: One :data:`PLACE` a row, in the order of the sequence.
        files: Names that ``places["file"]`` indexes.
    """

    def __init__(self, data: mmap.mmap | bytes, places: NDArray[Any], files: Sequence[str]) -> None:
        self._data = data
        self._places = places
        self._files = files

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> RowFile: ...
    def __getitem__(self, index: int | slice) -> Row | RowFile:
        if isinstance(index, slice):
            return RowFile(self._data, self._places[index], self._files)
        return self._row(self._places[index])

    def __iter__(self) -> Iterator[Row]:
        return map(self._row, self._places)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # as a list: equal by content

    def _row(self, place: Any) -> Row:
        offset = int(place["offset"])
        fields = json.loads(self._data[offset : offset + int(place["size"])])
        return Row(fields, Origin(self._files[int(place["file"])], int(place["line"])))
