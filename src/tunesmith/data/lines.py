"""Text files as decoded lines or chunks; every byte that does not decode is named by line and offset."""

from __future__ import annotations

import codecs
import gzip
import zlib
from collections.abc import Iterator
from typing import IO, Any, cast

from tunesmith.data.json_stream import LONGEST_RECORD
from tunesmith.data.problems import Fault
from tunesmith.data.rows import Origin
from tunesmith.data.sources import Source

_CHUNK = 2**20
_WIDE = ("utf-16", "utf-32")  # a newline byte inside a character: such files cannot be cut into lines first
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
READ_ERRORS = (OSError, EOFError, zlib.error)
"""What reading a damaged or vanished file raises (gzip's own error is an OSError)."""


def open_bytes(source: Source) -> IO[bytes]:
    """The bytes of a source, unpacked if its name ends in ``.gz``."""
    assert source.path is not None
    if source.path.name.lower().endswith(".gz"):
        return cast(IO[bytes], gzip.open(source.path, "rb"))
    return open(source.path, "rb")


def read_lines(source: Source, encoding: str) -> Iterator[str | Fault]:
    """Lines with their newline, each decoded on its own.

    A line that does not decode comes as a :class:`Fault` whose ``raw`` is the line with replacement characters; a
    byte-order mark comes as a warning before the first line and is no part of it.
    """
    if codecs.lookup(encoding).name.startswith(_WIDE):
        yield from _read_wide_lines(source, encoding)
        return
    offset, number = 0, 0
    try:
        with open_bytes(source) as file:
            while line := file.readline(LONGEST_RECORD + 1):
                number += 1
                start = offset
                offset += len(line)
                if number == 1:
                    if fault := _wide_mark(line, source):
                        yield fault
                        return
                    if line.startswith(codecs.BOM_UTF8):
                        yield _bom(source)
                        line, start = line[len(codecs.BOM_UTF8) :], len(codecs.BOM_UTF8)
                if len(line) > LONGEST_RECORD:
                    yield too_long(source, number)
                    return
                try:
                    yield line.decode(encoding)
                except UnicodeDecodeError as error:
                    yield _undecodable(source, number, start, error, line.decode(encoding, "replace"))
    except READ_ERRORS as error:
        yield unreadable(source, number + 1, error)


def read_chunks(source: Source, encoding: str) -> Iterator[str]:
    """Decoded pieces of a file that is not made of lines.

    Raises:
        DecodeFault: Carries the fault to report; what follows cannot be read.
    """
    name = codecs.lookup(encoding).name
    decoder = codecs.getincrementaldecoder("utf-8-sig" if name == "utf-8" else name)()
    offset, line = 0, 1
    try:
        with open_bytes(source) as file:
            while True:
                chunk = file.read(_CHUNK)
                if not offset and not name.startswith(_WIDE) and (fault := _wide_mark(chunk, source)):
                    raise DecodeFault(fault)
                pending = len(decoder.getstate()[0])
                try:
                    text = decoder.decode(chunk, final=not chunk)
                except UnicodeDecodeError as error:
                    line += error.object[: error.start].count(b"\n")
                    fault = _undecodable(source, line, offset - pending, error, "", whole_file=True)
                    raise DecodeFault(fault) from error
                offset += len(chunk)
                line += text.count("\n")
                if text:
                    yield text
                if not chunk:
                    return
    except READ_ERRORS as error:
        raise DecodeFault(unreadable(source, line, error)) from error


class DecodeFault(Exception):
    """Reading stopped; ``fault`` says why."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.message)
        self.fault = fault


def has_bom(source: Source) -> Fault | None:
    """The warning for a file that begins with the UTF-8 byte-order mark."""
    try:
        with open_bytes(source) as file:
            return _bom(source) if file.read(3) == codecs.BOM_UTF8 else None
    except READ_ERRORS:
        return None  # reported by whoever reads on


def too_long(source: Source, line: int) -> Fault:
    """The fault of a record that nobody wrote as one."""
    return Fault(
        "record-too-long",
        f"a record of more than {LONGEST_RECORD >> 20} MB",
        Origin(source.name, line),
        fix="check `data.format`, and for tables whether a quote is never closed",
        whole_file=True,
    )


def unreadable(source: Source, line: int, error: BaseException) -> Fault:
    """The fault of a file that breaks off or cannot be opened."""
    return Fault(
        "unreadable",
        f"the file cannot be read from here on: {error}",
        Origin(source.name, line),
        fix="restore the file from its source",
        whole_file=True,
    )


def _read_wide_lines(source: Source, encoding: str) -> Iterator[str | Fault]:
    rest = ""
    try:
        for chunk in read_chunks(source, encoding):
            *lines, rest = (rest + chunk).split("\n")
            yield from (f"{line}\n" for line in lines)
    except DecodeFault as stop:
        yield stop.fault
        return
    if rest:
        yield rest


def _bom(source: Source) -> Fault:
    return Fault(
        "byte-order-mark",
        "the file begins with a byte-order mark (it was skipped)",
        Origin(source.name, 1),
        severity="warning",
        fix="save the file as UTF-8 without BOM",
    )


def _wide_mark(start: bytes, source: Source) -> Fault | None:
    for mark, encoding in _BYTE_ORDER_MARKS:
        if start.startswith(mark):
            return Fault(
                "wrong-encoding",
                f"the file begins with the byte-order mark of {encoding.upper()}",
                Origin(source.name, 1),
                fix=f"data.encoding={encoding}",
                whole_file=True,
            )
    return None


def _undecodable(
    source: Source, line: int, offset: int, error: UnicodeDecodeError, raw: str, *, whole_file: bool = False
) -> Fault:
    would_do = _decodes_as(error.object)
    return Fault(
        "wrong-encoding",
        f"not valid {error.encoding.upper()}: byte 0x{error.object[error.start]:02x} at offset {offset + error.start}",
        Origin(source.name, line),
        fix=f"{would_do} would decode it: data.encoding={would_do}, or save the file as UTF-8",
        raw=raw,
        group="bytes",
        whole_file=whole_file,
    )


def _decodes_as(data: Any) -> str:
    """The likeliest encoding of bytes that are no UTF-8; Latin-1 decodes everything and so comes last."""
    if b"\0" in data[:1000]:
        return "utf-16"
    try:
        data.decode("cp1252")
    except UnicodeDecodeError:
        return "latin-1"
    return "cp1252"
