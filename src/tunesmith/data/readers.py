"""One reader a format: from a source to records with their place, row by row, in constant memory."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.data import extraction
from tunesmith.data.conll import read_sentences
from tunesmith.data.json_stream import DECODER, LONGEST_RECORD, BadValue, JsonStream
from tunesmith.data.lines import READ_ERRORS, DecodeFault, has_bom, open_bytes, read_chunks, read_lines, unreadable
from tunesmith.data.problems import Fault, kind_of
from tunesmith.data.rows import Origin
from tunesmith.data.sources import Source

_PARQUET_BATCH = 1024
_BYTES_BATCH = 32  # rows at a time where they hold pictures


@dataclass(frozen=True, slots=True)
class Record:
    """Columns and values as the file has them, before any mapping."""

    values: dict[str, Any]
    origin: Origin


def read(source: Source, encoding: str, rows: int | None = None) -> Iterator[Record | Fault]:
    """Records of a source in order, and faults where something could not be read.

    Args:
        source: A file or a hub data set.
        encoding: Of texts.
        rows: Stop behind so many rows, good or bad; nothing more of the source is read then.
    """
    readers: dict[str, Callable[[Source, str], Iterator[Record | Fault]]] = {
        "jsonl": _read_jsonl,
        "json": _read_json,
        "csv": _read_table,
        "tsv": _read_table,
        "parquet": _read_parquet,
        "text": _read_text,
        "conll": _read_conll,
        "document": _read_document,
        "picture": _read_picture,
        "passages": _read_passages,
        "hub": _read_hub,
    }
    items = readers[source.format](source, encoding)
    return items if rows is None else _first(items, rows)


def _first(items: Iterator[Record | Fault], rows: int) -> Iterator[Record | Fault]:
    for item in items:
        yield item
        rows -= isinstance(item, Record) or item.severity == "error"
        if not rows:
            return


def _numbered_lines(source: Source, encoding: str) -> Iterator[tuple[Origin, str] | Fault]:
    """Lines that hold something; an empty one between others is reported."""
    number, blank = 0, 0
    for line in read_lines(source, encoding):
        if isinstance(line, Fault):
            number += line.code != "byte-order-mark"
            yield line
            continue
        number += 1
        if line.isspace():
            blank += 1
            continue
        for skipped in range(number - blank, number):
            place = Origin(source.name, skipped)
            yield Fault("blank-line", "blank line between rows (skipped)", place, severity="warning")
        blank = 0
        yield Origin(source.name, number), line


def _read_jsonl(source: Source, encoding: str) -> Iterator[Record | Fault]:
    for line in _numbered_lines(source, encoding):
        if isinstance(line, Fault):
            yield line
            continue
        origin, text = line
        try:
            values = DECODER.decode(text.rstrip("\r\n"))
        except (ValueError, RecursionError) as error:
            document = origin.line == 1 and text.strip() in ("[", "{")
            what = f"not valid JSON: {_reason(error)}"
            yield Fault(
                "bad-json",
                what,
                origin,
                fix="this looks like one JSON document: data.format=json" if document else "one JSON object a line",
                raw=text,
                group=kind_of(what),
            )
            continue
        yield _record(values, origin, text)


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _record(values: Any, origin: Origin, raw: str | None = None) -> Record | Fault:
    if isinstance(values, dict):
        return Record(values, origin)
    return Fault(
        "not-an-object",
        f"expected an object with named fields, found {_kind(values)}",
        origin,
        fix='write each row as {"field": value, ...}',
        raw=raw if raw is not None else repr(values)[:1000],
    )


def _kind(value: Any) -> str:
    names: dict[type, str] = {list: "a list", str: "a text", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")


def _read_json(source: Source, encoding: str) -> Iterator[Record | Fault]:
    if encoding.lower().replace("-", "") == "utf8" and (bom := has_bom(source)):
        yield bom
    stream = JsonStream(read_chunks(source, encoding))
    try:
        start = stream.peek()
        if start == "[":
            yield from _elements(stream, source)
        elif start == "{":
            yield from _object(stream, source)
        elif start:
            raise BadValue("expected an array of objects", stream.line)
        if stream.peek():
            raise BadValue("something follows after the end of the data", stream.line)
    except BadValue as error:
        yield Fault(
            "bad-json",
            f"not valid JSON: {error}; the rest of the file was not read",
            Origin(source.name, error.line),
            fix='an array of objects, or {"data": [...]}; for one object a line use data.format=jsonl',
            whole_file=True,
        )
    except DecodeFault as stop:
        yield stop.fault


def _elements(stream: JsonStream, source: Source) -> Iterator[Record | Fault]:
    stream.take("[")
    if stream.peek() == "]":
        stream.take("]")
        return
    while True:
        stream.peek()
        origin = Origin(source.name, stream.line)
        yield _record(stream.value(), origin)
        if stream.peek() == "]":
            stream.take("]")
            return
        stream.take(",")


def _object(stream: JsonStream, source: Source) -> Iterator[Record | Fault]:
    """``{"data": [...]}``, or objects one after the other as JSON lines have them under the name ``.json``."""
    origin = Origin(source.name, stream.line)
    values: dict[str, Any] = {}
    found_data = False
    stream.take("{")
    while stream.peek() != "}":
        key = stream.value()
        stream.take(":")
        if key == "data" and stream.peek() == "[":
            found_data = True
            yield from _elements(stream, source)
        else:
            values[key] = stream.value()
        if stream.peek() != "}":
            stream.take(",")
    stream.take("}")
    if found_data:
        if values:
            yield Fault(
                "ignored-keys",
                f"besides `data` the file holds {', '.join(map(repr, list(values)[:5]))}, which are not read",
                origin,
                severity="warning",
                group=source.name,
            )
        return
    if stream.peek() != "{":
        yield Fault(
            "bad-json",
            f"one object without a list `data`; its keys: {', '.join(map(repr, list(values)[:5]))}",
            origin,
            fix='an array of objects, or {"data": [...]}',
            whole_file=True,
        )
        return
    yield Record(values, origin)
    while stream.peek() == "{":
        origin = Origin(source.name, stream.line)
        yield _record(stream.value(), origin)


def _read_table(source: Source, encoding: str) -> Iterator[Record | Fault]:
    """CSV and TSV with a header; the line of a record is its first one."""
    csv.field_size_limit(LONGEST_RECORD)  # the default of 128 KB is shorter than a long document
    waiting: list[Fault] = []
    reader = csv.reader(
        _lines_aside(source, encoding, waiting), delimiter="\t" if source.format == "tsv" else ",", strict=True
    )
    header: list[str] | None = None
    while True:
        origin = Origin(source.name, reader.line_num + 1)
        row: list[str] = []
        try:
            row = next(reader)
        except StopIteration:
            yield from waiting
            return
        except csv.Error as error:
            waiting.append(_bad_table(error, origin, reader.line_num))
        faults = tuple(waiting)
        waiting.clear()
        yield from faults
        bad = any(fault.severity == "error" for fault in faults)
        if header is None and (bad or row):
            if bad or (twice := next((name for name in row if name and row.count(name) > 1), None)) is not None:
                what = "the header cannot be read" if bad else f"the column {twice!r} occurs twice in the header"
                yield Fault("bad-header", what, origin, fix="give each column a name of its own", whole_file=True)
                return
            header = row
        elif header is not None and row and not bad:
            yield _table_row(header, row, origin)


def _table_row(header: list[str], row: list[str], origin: Origin) -> Record | Fault:
    if len(row) == len(header):
        return Record(dict(zip(header, row, strict=True)), origin)
    return Fault(
        "field-count",
        f"the row has another number of fields than the header ({len(row)} instead of {len(header)})",
        origin,
        fix='put fields that hold the delimiter or a newline between "quotes"',
        raw=",".join(row),
        group="row",
    )


def _lines_aside(source: Source, encoding: str, faults: list[Fault]) -> Iterator[str]:
    """Lines for the CSV reader; faults go aside, and a line that does not decode still keeps its quotes."""
    for line in read_lines(source, encoding):
        if not isinstance(line, Fault):
            yield line
            continue
        faults.append(line)
        if line.whole_file:
            return
        if line.raw is not None:
            yield line.raw


def _bad_table(error: csv.Error, origin: Origin, last_line: int) -> Fault:
    if "unexpected end of data" in str(error):
        swallowed = last_line - origin.line
        return Fault(
            "bad-csv",
            f"a quote that opens in this record is never closed (it swallows the {swallowed} lines that follow)",
            origin,
            fix='close the quote, or double it ("") if it is part of the text',
            whole_file=True,
        )
    return Fault(
        "bad-csv",
        f"not valid CSV: {error}",
        origin,
        fix='put the field between "quotes" and double the quotes inside it',
        group=str(error),
    )


def _read_parquet(source: Source, encoding: str) -> Iterator[Record | Fault]:
    """Row groups batch by batch; the line of a record is the number of its row."""
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(source.path) as file:
            named = _naming(_hub_features(file.schema_arrow))
            holds_bytes = any("binary" in str(kind) for kind in file.schema_arrow.types)
            for batch in file.iter_batches(batch_size=_BYTES_BATCH if holds_bytes else _PARQUET_BATCH):
                for values in batch.to_pylist():
                    number += 1
                    yield Record(named(values), Origin(source.name, number))
    except (pyarrow.ArrowException, *READ_ERRORS) as error:
        yield unreadable(source, number + 1, error)


def _read_text(source: Source, encoding: str) -> Iterator[Record | Fault]:
    """One row a line. The parts of the file's name are columns too, so that they can serve as labels."""
    assert source.path is not None
    name = {"file": source.path.stem, "suffix": source.path.suffix.lstrip("."), "folder": source.path.parent.name}
    for line in _numbered_lines(source, encoding):
        yield line if isinstance(line, Fault) else Record({"text": line[1].rstrip("\r\n"), **name}, line[0])


def _read_conll(source: Source, encoding: str) -> Iterator[Record | Fault]:
    """One row a sentence; its line is that of its first token."""
    for sentence in read_sentences(source, encoding):
        yield sentence if isinstance(sentence, Fault) else Record(*sentence)


def _read_picture(source: Source, encoding: str) -> Iterator[Record | Fault]:
    """The path and the folder's name; whether it can be read is the task's business."""
    yield Record({"image": str(source.path), "label": source.label}, Origin(source.name, 0))


def _read_document(source: Source, encoding: str) -> Iterator[Record | Fault]:
    """The whole file as one row, with its folder as the label where there is one."""
    assert source.path is not None
    origin = Origin(source.name, 1)
    parts: list[str] = []
    try:
        with open_bytes(source) as file:
            too_big = len(file.read(LONGEST_RECORD + 1)) > LONGEST_RECORD
    except READ_ERRORS as error:
        yield unreadable(source, 1, error)
        return
    if too_big:
        yield Fault("record-too-long", f"a text of more than {LONGEST_RECORD >> 20} MB", origin, fix="split the file")
        return
    for item in extraction.read_whole(source, encoding):
        if isinstance(item, Fault):
            yield item
            if item.severity == "error":
                return
        else:
            parts.append(item.text)
    name = {"file": source.path.stem, "folder": source.path.parent.name}
    label = {} if source.label is None else {"label": source.label}
    yield Record({"text": "".join(parts), **name, **label}, origin)


def _read_passages(source: Source, encoding: str) -> Iterator[Record | Fault]:
    """Passages of a document, each with the line (or page) where it begins."""
    assert source.path is not None
    name = {"file": source.path.stem, "folder": source.path.parent.name}
    for item in extraction.read_passages(source, encoding):
        yield item if isinstance(item, Fault) else Record({"text": item.text, **name}, Origin(source.name, item.line))


def _read_hub(source: Source, encoding: str) -> Iterator[Record | Fault]:
    """A hub data set, streamed; the line of a record is the number of its row.

    Raises:
        ResourceError: The hub cannot be reached, or the stream breaks off.
    """
    from tunesmith import catalog

    data = _undecoded(catalog.hub_dataset(source.name.removeprefix("hub:")))
    named = _naming(getattr(data, "features", None) or {})
    for number, values in enumerate(catalog.hub_rows(data, source.name), 1):
        yield _record(named(values), Origin(source.name, number))


def _undecoded(rows: Any) -> Any:
    """A hub data set with its pictures as the hub has them, which is as Parquet files hold them."""
    import datasets

    for column, feature in (getattr(rows, "features", None) or {}).items():
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(column, datasets.Image(decode=False))
    return rows


def _hub_features(schema: Any) -> dict[str, Any]:
    """The features that the hub's library writes into a Parquet file; empty if another program wrote it."""
    if b"huggingface" not in (schema.metadata or {}):
        return {}
    import datasets

    return dict(datasets.Features.from_arrow_schema(schema))


def _naming(features: dict[str, Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A function that turns the numbers of named classes, alone or in lists, into their names."""
    names = {
        column: found
        for column, feature in features.items()
        if (found := getattr(feature, "names", None) or getattr(getattr(feature, "feature", None), "names", None))
    }

    def name(value: Any, of: Sequence[str]) -> Any:
        if isinstance(value, list):
            return [name(each, of) for each in value]
        return of[value] if type(value) is int and 0 <= value < len(of) else value  # -1 stands for "not known"

    def named(values: dict[str, Any]) -> dict[str, Any]:
        return values | {column: name(values[column], of) for column, of in names.items() if column in values}

    return named if names else lambda values: values
