"""Uploads go from the socket to the disk in pieces: no body is ever in memory, and none exceeds its cap."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from tunesmith.server.errors import ApiError

MAX_FIELD_BYTES = 64 * 1024
MAX_HEADER_BYTES = 16 * 1024
MAX_PARTS = 32
NAME_LENGTH = 255


@dataclass
class Received:
    """A form, with its file on the disk.

    Attributes:
        fields: Name -> text of the parts that are no file.
        filename: As the client calls the file, without folders; ``None`` if the form held no file.
        content_type: As the client says.
        bytes: Size of the file.
        sha256: Of the file.
        md5: Of the file: what clients of uploads compare.
    """

    fields: dict[str, str] = field(default_factory=dict)
    filename: str | None = None
    content_type: str | None = None
    bytes: int = 0
    sha256: str = ""
    md5: str = ""


async def receive_form(
    chunks: AsyncIterator[bytes], content_type: str | None, *, file_field: str, target: Path, limit: int
) -> Received:
    """Read a ``multipart/form-data`` body whose part ``file_field`` is written to ``target``.

    Raises:
        ApiError: 413 over the cap, 400 for a malformed body; the partial file is removed.
    """
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise ApiError(400, "The body must be multipart/form-data.", code="invalid_content_type")
    try:
        with target.open("xb") as file:
            form = _Form(options[b"boundary"], file_field, file, limit)
            async for chunk in chunks:
                if chunk:
                    await run_in_threadpool(form.feed, chunk)
        return form.result()
    except FormParserError as error:
        target.unlink(missing_ok=True)
        raise ApiError(400, f"The body is no valid multipart/form-data: {error}", code="invalid_multipart") from error
    except ClientDisconnect as error:
        target.unlink(missing_ok=True)
        raise ApiError(400, "The upload broke off.", code="incomplete_body") from error
    except BaseException:
        target.unlink(missing_ok=True)
        raise


class _Form:
    """The state of one body that is being read."""

    def __init__(self, boundary: bytes, file_field: str, file: BinaryIO, limit: int) -> None:
        self._file_field, self._file, self._limit = file_field, file, limit
        self._received = Received()
        self._sha256, self._md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
        self._headers: dict[bytes, bytes] = {}
        self._header_name, self._header_value = b"", b""
        self._field: str | None = None
        self._text = bytearray()
        self._in_file = self._has_file = self._complete = False
        self._parts = 0
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._part_begins,
                "on_header_field": self._header_field,
                "on_header_value": self._header_text,
                "on_header_end": self._header_ends,
                "on_headers_finished": self._headers_end,
                "on_part_data": self._data,
                "on_part_end": self._part_ends,
                "on_end": self._ends,
            },
        )

    def feed(self, chunk: bytes) -> None:
        self._parser.write(chunk)

    def result(self) -> Received:
        if not self._complete:
            raise ApiError(400, "The body ends before its last boundary.", code="incomplete_body")
        self._received.sha256, self._received.md5 = self._sha256.hexdigest(), self._md5.hexdigest()
        return self._received

    def _part_begins(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise ApiError(400, f"The form has more than {MAX_PARTS} parts.", code="invalid_multipart")
        self._headers, self._field, self._in_file, self._text = {}, None, False, bytearray()

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]
        self._check_header()

    def _header_text(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]
        self._check_header()

    def _check_header(self) -> None:
        known = sum(len(name) + len(value) for name, value in self._headers.items())
        if known + len(self._header_name) + len(self._header_value) > MAX_HEADER_BYTES:
            raise ApiError(400, "The headers of a part are too long.", code="invalid_multipart")

    def _header_ends(self) -> None:
        self._headers[self._header_name.lower()] = self._header_value
        self._header_name, self._header_value = b"", b""

    def _headers_end(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition"))
        self._field = options.get(b"name", b"").decode("utf-8", "replace")
        self._in_file = self._field == self._file_field
        if not self._in_file:
            return
        if self._has_file:
            raise ApiError(400, f"The form has more than one '{self._file_field}'.", param=self._file_field)
        self._has_file = True
        self._received.filename = clean_filename(options.get(b"filename", b"").decode("utf-8", "replace"))
        self._received.content_type = self._headers.get(b"content-type", b"").decode("latin-1") or None

    def _data(self, data: bytes, start: int, end: int) -> None:
        piece = data[start:end]
        if not self._in_file:
            self._text += piece
            if len(self._text) > MAX_FIELD_BYTES:
                raise ApiError(413, f"The field '{self._field}' is too long.", param=self._field)
            return
        self._received.bytes += len(piece)
        if self._received.bytes > self._limit:
            raise ApiError(413, f"The file is larger than {self._limit} bytes.", param=self._file_field)
        self._sha256.update(piece)
        self._md5.update(piece)
        self._file.write(piece)

    def _part_ends(self) -> None:
        if not self._in_file and self._field:
            self._received.fields[self._field] = self._text.decode("utf-8", "replace")

    def _ends(self) -> None:
        self._complete = True


def clean_filename(name: str) -> str:
    """A name to show: no folders, no control characters, of bounded length. No path is ever made from it."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    return "".join(sign for sign in last if sign.isprintable())[:NAME_LENGTH] or "file"


def refuse_bomb(path: Path, filename: str, *, limit: int, ratio: int) -> None:
    """Unpack a compressed file, keeping nothing, to see that it stays within its caps.

    Raises:
        ApiError: 413 if it does not, 400 if it cannot be unpacked.
    """
    if not filename.lower().endswith(".gz"):
        return
    allowed = min(limit, ratio * path.stat().st_size)
    unpacked = 0
    try:
        with gzip.open(path, "rb") as file:
            while piece := file.read(2**20):
                unpacked += len(piece)
                if unpacked > allowed:
                    raise ApiError(413, f"The file unpacks to more than {allowed} bytes.", param="file")
    except (OSError, EOFError, zlib.error) as error:
        raise ApiError(400, f"The file is no valid gzip: {error}", param="file", code="invalid_file") from error
