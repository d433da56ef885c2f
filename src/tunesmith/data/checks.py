"""What can be said of a row by itself: fields there, filled and of the right type, and the task's own rules."""

from __future__ import annotations

import json
from typing import Any

from tunesmith.data.columns import Choice
from tunesmith.data.conversations import REMEDIES
from tunesmith.data.pictures import READS_TEXT, embedded, holds_picture
from tunesmith.data.problems import Fault, kind_of
from tunesmith.data.readers import Record
from tunesmith.data.rows import Origin, Row
from tunesmith.tasks.base import Field, Reading, Task

_MISSING = object()
_KINDS = {list: "a list", dict: "an object", bool: "a truth value", int: "a number", float: "a number", bytes: "bytes"}


def check_record(record: Record, choice: Choice, task: Task, reading: Reading) -> tuple[Row, list[Fault]]:
    """Map a record to the task's fields, read it, and list everything that is wrong with it.

    Labels become text (``1`` -> ``"1"``, ``true`` -> ``"true"``); all other conversion is the reading's.

    Returns:
        The row, and its faults; a row with a fault of severity ``error`` must not be used.
    """
    fields: dict[str, Any] = {}
    faults: list[Fault] = []
    values, origin = record.values, record.origin
    for column in choice.columns:
        value = column.value(values, _MISSING)
        if column.field.kind == "text" and type(value) is str and not value.isspace() and value:
            fields[column.field.name] = value  # the common case, first for speed
            if "\ufffd" in value:
                faults.append(_replacement(column.field, origin))
            if value.startswith("data:image/"):
                faults.append(_encoded(column.field, origin))
        else:
            fault = _take(fields, column.field, value, origin)
            if fault is not None:
                faults.append(fault)
    row = Row(fields, origin)
    if reading.convert is not None and not has_error(faults):
        row, found = reading.convert(row)
        faults += found
    if not has_error(faults):
        faults += (
            Fault(code, message, origin, fix=REMEDIES.get(code), group=kind_of(message))
            for code, message in task.problems(row)
        )
    return row, faults


def mapped(record: Record, choice: Choice) -> Row:
    """A record under the names of the task's fields, unchecked."""
    return Row({c.field.name: c.value(record.values) for c in choice.columns}, record.origin)


def has_error(faults: list[Fault]) -> bool:
    """Whether a row with these faults must not be used."""
    return bool(faults) and any(fault.severity == "error" for fault in faults)  # mostly there is none: no generator


def _take(fields: dict[str, Any], field: Field, value: Any, origin: Origin) -> Fault | None:
    """Put a value under its field's name, or say why it cannot be."""
    blank = isinstance(value, str) and (not value or value.isspace())
    if value is _MISSING or value is None or (blank and not field.required):
        if not field.required:
            return None
        return Fault("missing-field", f"`{field.name}` is missing", origin, fix="fill it in", group=field.name)
    if field.kind == "label":
        value = _label(value)
    if field.kind in ("text", "label", "picture") or (field.kind == "turns" and not isinstance(value, list)):
        if not isinstance(value, str):
            if field.kind == "picture" and embedded(value) is not None:
                fields[field.name] = value
                return None
            if holds_picture(value):
                return _picture(field, origin)
            fix = "join the list into one text" if isinstance(value, list) else "write it as text"
            kind = _KINDS.get(type(value), type(value).__name__)
            message = f"`{field.name}` is {kind}, where text is wanted"
            return Fault("wrong-type", message, origin, fix=fix, group=f"{field.name} {kind}")
        if blank:
            return Fault("empty-field", f"`{field.name}` is empty", origin, fix="fill it in", group=field.name)
    fields[field.name] = value
    return None


def _picture(field: Field, origin: Origin) -> Fault:
    wanted, fix = "text", READS_TEXT
    if field.kind == "picture":
        wanted, fix = (
            "its path or its bytes",
            "save the pictures as files, in folders `label/picture.jpg` or named there",
        )
    message = f"`{field.name}` holds a picture, where {wanted} is wanted"
    return Fault("image-content", message, origin, fix=fix, group=field.name)


def _encoded(field: Field, origin: Origin) -> Fault:
    message = f"`{field.name}` is a picture in base64, of which a model of text learns nothing"
    return Fault("image-content", message, origin, severity="warning", fix=READS_TEXT, group=f"{field.name} base64")


def _label(value: Any) -> Any:
    """A label as text; what cannot be one is given back as it is."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return str(int(value))  # whole floats come from tables in which another row of the column is empty
    return value


def _replacement(field: Field, origin: Origin) -> Fault:
    return Fault(
        "replacement-character",
        f"`{field.name}` holds U+FFFD: the text was decoded with the wrong encoding before it was saved",
        origin,
        severity="warning",
        fix="export the text again from its source",
        group=field.name,
    )


def raw_text(record: Record) -> str:
    """The record as JSON text, for the file of rows left out."""
    return json.dumps(record.values, ensure_ascii=False, default=_shortened)


def _shortened(value: Any) -> str:
    """What JSON cannot hold, in words."""
    return f"<{len(value):,} bytes>" if isinstance(value, bytes) else repr(value)
