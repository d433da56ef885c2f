"""The one shape that all data takes after it was read: a row with its place of origin."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a row came from: a file (or data set name) and its line, counted from 1; 0 if the file is the row."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


PICTURE, CONTENT = "image", "content_digest"
"""A field that only names its content, by a path, and the one that tells of the content itself."""


@dataclass(frozen=True, slots=True)
class Row:
    """One example under the task's field names, e.g. ``{"text": ..., "label": ...}``."""

    fields: dict[str, Any]
    origin: Origin

    @property
    def key(self) -> str:
        """16 hexadecimal digits that identify the row's content."""
        return content_key(identity(self.fields))


def identity(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields by which rows are the same: what only names content does not count, for it may lie elsewhere."""
    return {**fields, PICTURE: fields[CONTENT]} if CONTENT in fields else fields


def content_key(value: Any) -> str:
    """Hash any JSON-like value to 16 hexadecimal digits, the same in every process."""
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
