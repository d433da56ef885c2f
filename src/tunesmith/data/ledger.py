"""A short record of every row, on disk, so that whole-set questions are answered in constant memory."""

from __future__ import annotations

import hashlib
import os
import struct
import tempfile
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.rows import Origin

ENTRY = np.dtype(
    [
        ("input", "<u8"),  # hash of the normalised input: duplicates, contradictions, leakage and splits go by it
        ("target", "<u8"),  # hash of the target
        ("content", "<u8"),  # hash of all fields: Row.key
        ("offset", "<u8"),  # bytes into the spool of rows
        ("size", "<u4"),  # bytes there
        ("file", "<u4"),
        ("line", "<u4"),
        ("label", "<u4"),
        ("characters", "<u4"),
        ("tokens", "<u4"),  # 0: not rendered
        ("cut", "<u4"),  # tokens that truncation takes away
        ("part", "<u4"),  # index into PARTS: where the recipe named the row's file
        ("group", "<u8"),  # hash of what a split must not tear apart: the input, or the value of `data.group_by`
    ]
)
_PACK = struct.Struct("<QQQQIIIIIIIIQ").pack
assert struct.calcsize("<QQQQIIIIIIIIQ") == ENTRY.itemsize

PARTS = ("train", "validation", "test")
Entries = NDArray[np.void]

_CHUNK_ROWS = 65_536
_FLUSH_BYTES = 2**20


def normalised(text: str) -> str:
    """The text as duplicates are judged: no case, white space as single spaces, one Unicode spelling."""
    folded = " ".join(text.casefold().split())
    return folded if folded.isascii() else unicodedata.normalize("NFC", folded)


def hash64(data: bytes) -> int:
    """A 64-bit hash, the same in every process (so that BLAKE2b's hex digits equal ``content_key``)."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


def mixed(values: NDArray[np.uint64], salt: str) -> NDArray[np.uint64]:
    """Hashes turned into other, independent ones by a salt (finaliser of SplitMix64, Steele et al. 2014)."""
    z = values ^ np.uint64(hash64(salt.encode()))
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


class Ledger:
    """Entries of fixed size in a temporary file without a name, which vanishes with the process.

    Args:
        folder: Where the file lies; default: the system's folder for temporary files.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - lives as long as the ledger
        self._pending = bytearray()
        self.files: list[str] = []
        self.num_rows = 0

    def add(self, values: Sequence[int], origin: Origin, group: int | None = None) -> None:
        """Append an entry.

        Args:
            values: ``input``, ``target``, ``content``, ``offset``, ``size``, ``label``, ``characters``, ``tokens``,
                ``cut`` and ``part``.
            origin: Place of the row.
            group: Hash of what the split must keep on one side; default: ``input``.
        """
        if not self.files or self.files[-1] != origin.file:
            self.files.append(origin.file)
        self._pending += _PACK(
            *values[:5], len(self.files) - 1, origin.line, *values[5:], values[0] if group is None else group
        )
        self.num_rows += 1
        if len(self._pending) >= _FLUSH_BYTES:
            self._flush()

    def chunks(self) -> Iterator[tuple[int, Entries]]:
        """All entries in order: position of the first, and an array of :data:`ENTRY`."""
        self._flush()
        size = _CHUNK_ROWS * ENTRY.itemsize
        for first in range(0, self.num_rows, _CHUNK_ROWS):
            yield first, np.frombuffer(os.pread(self._file.fileno(), size, first * ENTRY.itemsize), ENTRY)

    def entry(self, position: int) -> Any:
        """One entry."""
        self._flush()
        data = os.pread(self._file.fileno(), ENTRY.itemsize, position * ENTRY.itemsize)
        return np.frombuffer(data, ENTRY)[0]

    def origin(self, position: int) -> Origin:
        """Place of the row at this position."""
        entry = self.entry(position)
        return Origin(self.files[int(entry["file"])], int(entry["line"]))

    def close(self) -> None:
        """Give the disk space back."""
        self._file.close()

    def _flush(self) -> None:
        if self._pending:
            self._file.write(self._pending)
            self._file.flush()
            self._pending.clear()
