"""Several labels a text: read from lists, from text with separators, and from columns of 0 and 1."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.data.problems import Fault
from tunesmith.data.rows import Row
from tunesmith.errors import DataError

SEPARATORS = {"semicolon": ";", "bar": "|", "comma": ","}
"""Looked for in this order: a comma may be part of a label's name."""

_TRUE = {"1", "1.0", "true", "yes", "x"}
_FALSE = {"0", "0.0", "false", "no", ""}


def separator_of(texts: Sequence[str]) -> str | None:
    """The separator that labels written as text have, from some of them; ``None`` if there is none."""
    return next((mark for mark in SEPARATORS.values() if any(mark in text for text in texts)), None)


def convert(row: Row, *, separator: str | None, names: Sequence[str]) -> tuple[Row, list[Fault]]:
    """A row whose labels are a sorted list without repeats, or what is wrong with them.

    Args:
        row: With the labels as the source has them.
        separator: Parts labels that are one text.
        names: Names of labels that are numbers, the first of number 0; may be empty.
    """
    value = row.fields["labels"]
    try:
        found = _of_columns(value) if isinstance(value, Mapping) else _of_text(value, separator)
        labels = sorted({_named(label, names) for label in found})
    except ValueError as error:
        return row, [Fault("bad-labels", str(error), row.origin, fix="write a list of labels, or `a;b`")]
    faults = []
    if separator is None and isinstance(value, str) and (mark := separator_of(labels)) and not _is_list(value):
        message = f"the labels hold {mark!r}, which those of the first rows do not: they are taken as one label"
        fix = f"if it parts labels: `data.label_separator: {mark!r}`"
        faults.append(Fault("late-separator", message, row.origin, severity="warning", fix=fix, group=mark))
    if labels and not all(labels):
        return row, [Fault("empty-field", "a label is empty", row.origin, fix="fill it in", group="labels")]
    return Row({**row.fields, "labels": labels}, row.origin), faults


def unknown_label(label: str, row: Row, labels: Sequence[str]) -> DataError:
    """The error for a label that training cannot have taught."""
    return DataError(
        f"the label {label!r} does not occur in the training data",
        where=str(row.origin),
        fix=f"known labels: {', '.join(list(labels)[:10])}",
    )


def _of_columns(value: Mapping[str, Any]) -> list[str]:
    """Names of the columns that hold 1 or true."""
    found = []
    for name, cell in value.items():
        text = "" if cell is None else str(cell).strip().lower()
        if text not in _TRUE | _FALSE:
            raise ValueError(f"the column `{name}` holds {cell!r}, where 0 or 1 is wanted")
        if text in _TRUE:
            found.append(name)
    return found


def _of_text(value: Any, separator: str | None) -> list[Any]:
    if isinstance(value, str) and _is_list(value):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f"the labels are no JSON list: {error.msg} at column {error.colno}") from error
    if isinstance(value, str):
        parts = value.split(separator) if separator else [value]
        return [part.strip() for part in parts if part.strip()]
    if isinstance(value, list | tuple):
        return list(value)
    raise ValueError(f"the labels are {value!r}, where a list or a text is wanted")


def _is_list(value: str) -> bool:
    """Whether labels are written as a list of JSON."""
    return value.lstrip().startswith("[")


def _named(label: Any, names: Sequence[str]) -> str:
    if isinstance(label, bool) or not isinstance(label, str | int | float):
        raise ValueError(f"{label!r} is no label")
    if isinstance(label, str):
        return label.strip()
    if isinstance(label, float) and not label.is_integer():  # 1e999 is infinite
        raise ValueError(f"{label!r} is no label")
    number = int(label)
    if not names:
        return str(number)
    if not 0 <= number < len(names):
        raise ValueError(f"the label {number} has no name in `data.label_names`, which has {len(names)}")
    return names[number]
