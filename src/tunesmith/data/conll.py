"""CoNLL files: a token a line with its tag in the last column, and a blank line between sentences."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.data.lines import READ_ERRORS, open_bytes, read_lines
from tunesmith.data.problems import Fault
from tunesmith.data.rows import Origin
from tunesmith.data.sources import Source
from tunesmith.data.tag_schemes import OUTSIDE, is_tag

_SNIFFED_BYTES = 16_384
_DOCUMENT = "-DOCSTART-"
_LONG_SENTENCE = 100  # tokens; a file that is one such sentence most likely lacks its blank lines


@dataclass
class _Sentence:
    """The lines of one sentence, as far as they were read."""

    origin: Origin
    rows: list[list[str]] = field(default_factory=list)
    broken: bool = False


def read_sentences(source: Source, encoding: str) -> Iterator[tuple[dict[str, Any], Origin] | Fault]:
    """Sentences as ``{"tokens", "tags"}`` with the place of their first line.

    Further columns between token and tag are there as ``column 2``, ``column 3`` and so on. Lines that begin a document
    (``-DOCSTART-``) and comments (``# ...`` before a sentence) are no tokens. A sentence with a line that cannot be
    read is left out as a whole.
    """
    sentence: _Sentence | None = None
    number, width, sentences, longest = 0, 0, 0, 0
    for line in itertools.chain(read_lines(source, encoding), [""]):
        if isinstance(line, Fault):
            number += line.code != "byte-order-mark"
            sentence = sentence or (_Sentence(Origin(source.name, number)) if line.severity == "error" else None)
            if sentence is not None and line.severity == "error":
                sentence.broken = True
            yield line
            continue
        number += 1
        columns = _columns(line)
        if not columns or columns[0] == _DOCUMENT:
            if sentence is not None and not sentence.broken:
                yield _values(sentence), sentence.origin
            sentences += sentence is not None
            longest = max(longest, len(sentence.rows) if sentence is not None else 0)
            sentence = None
        elif sentence is not None or not _is_comment(columns):
            sentence = sentence or _Sentence(Origin(source.name, number))
            width = width or len(columns)
            if len(columns) != width or width < 2:
                if not sentence.broken:
                    yield _bad_line(line, Origin(source.name, number), len(columns), width)
                sentence.broken = True
            sentence.rows.append(columns)
    if sentences == 1 and longest > _LONG_SENTENCE:
        message = f"the whole file is one sentence of {longest:,} tokens: no blank line ends one"
        fix = "put a blank line behind each sentence"
        yield Fault("one-sentence", message, Origin(source.name, 1), severity="warning", fix=fix, group=source.name)


def looks_like_conll(path: Path) -> bool:
    """Whether a file's first lines all have a token and, in the last of equally many columns, a tag."""
    try:
        with open_bytes(Source(str(path), "conll", path)) as file:
            head = file.read(_SNIFFED_BYTES)
    except READ_ERRORS:
        return False
    if len(head) == _SNIFFED_BYTES:
        head = head.rpartition(b"\n")[0]  # a line cut in two says nothing
    lines = head.decode("utf-8-sig", "replace").split("\n")
    rows = [columns for line in lines if (columns := _columns(line)) and columns[0] != _DOCUMENT]
    rows = [columns for columns in rows if not _is_comment(columns)]
    widths = {len(columns) for columns in rows}
    return len(widths) == 1 and min(widths) > 1 and all(is_tag(columns[-1]) for columns in rows)


def _columns(line: str) -> list[str]:
    """Tabs separate columns, or else spaces: a token may be a space of its own kind (U+00A0)."""
    text = line.rstrip("\r\n")
    if not text.strip():
        return []
    return text.rstrip("\t ").split("\t") if "\t" in text.strip("\t") else text.split()


def _is_comment(columns: list[str]) -> bool:
    return columns[0].split(" ")[0] == "#" and not is_tag(columns[-1])


def _values(sentence: _Sentence) -> dict[str, Any]:
    token, *between, tag = zip(*sentence.rows, strict=True)
    return {
        "tokens": list(token),
        "tags": list(tag),
        **{f"column {number}": list(column) for number, column in enumerate(between, 2)},
    }


def _bad_line(line: str, origin: Origin, found: int, wanted: int) -> Fault:
    message = "the line holds a token without a tag" if found < 2 else "the line has another number of columns"
    more = f" (found {found}, elsewhere {wanted})" if wanted > 1 else ""
    return Fault(
        "field-count",
        message + more,
        origin,
        fix=f"write the token and, behind a tab, its tag (`{OUTSIDE}` outside of every span)",
        raw=line,
        group=f"{found}",
    )
