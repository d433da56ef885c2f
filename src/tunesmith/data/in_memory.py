"""Rows in memory (dictionaries, a DataFrame, a Dataset) as a file, which a run can read again when it is resumed."""

from __future__ import annotations

import datetime
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith import disk
from tunesmith.errors import DataError

_TIMES = (datetime.date, datetime.time)  # a datetime is a date, and so is a Timestamp of pandas
_SPANS = (datetime.timedelta, np.timedelta64)


def names_or_rows(data: Any) -> list[str] | Iterator[Any]:
    """What was given as data: names (a file, a folder, ``hub:name``, a list of these), or rows, one after the other."""
    if isinstance(data, str | Path):
        return [str(data)]
    if isinstance(data, list) and not data:
        return []
    rows = _of_frame(data) if hasattr(data, "itertuples") else iter(data)
    first = list(itertools.islice(rows, 1))
    if not first or not isinstance(first[0], str | Path):
        return itertools.chain(first, rows)
    names = [*first, *rows]
    wrong = next((number for number, name in enumerate(names) if not isinstance(name, str | Path)), None)
    if wrong is not None:
        raise DataError(
            f"names of data and rows are mixed: beside {str(names[0])!r} there is a `{type(names[wrong]).__name__}`",
            where=f"row {wrong + 1}",
            fix="give names alone, or rows alone",
        )
    return [str(name) for name in names]


def write_rows(rows: Iterable[Any], path: Path) -> Path:
    """Write rows as JSON lines, whole or not at all, one at a time in memory; row 17 is line 17.

    Missing values (NaN, NaT, ``pandas.NA``) become ``null``, dates ISO text, and NumPy's numbers and arrays plain ones.

    Raises:
        DataError: A row is no dictionary, or holds something that is no plain data; its number is the place.
        ResourceError: The disk is full.
    """
    disk.write_parts(path, (_line(row, number) for number, row in enumerate(rows, 1)))
    return path


def to_answer(rows: Any) -> list[Any]:
    """Rows without their answers, for a model: texts, dictionaries, or a DataFrame; what is missing is left out.

    Raises:
        DataError: A row is missing as a whole; its number is the place.
    """
    found: list[Any] = []
    for number, row in enumerate(_of_frame(rows) if hasattr(rows, "itertuples") else rows, 1):
        if _is_missing(row):
            raise DataError("the row is empty", where=f"input:{number}", fix="leave it out, or give its text")
        if isinstance(row, Mapping):
            row = {_text(name): value for name, value in row.items() if not _is_missing(value)}
        found.append(row)
    return found


def _of_frame(frame: Any) -> Iterator[dict[str, Any]]:
    """Rows of a pandas DataFrame; each column keeps its type, so whole numbers stay whole beside fractions."""
    names = [_text(name) for name in frame.columns]
    twice = _twice(names)
    if twice is not None:
        fix = "give each column a name of its own: one of them would be lost"
        raise DataError(f"the DataFrame has two columns {twice!r}", where="DataFrame", fix=fix)
    return (dict(zip(names, values, strict=True)) for values in frame.itertuples(index=False, name=None))


def _line(row: Any, number: int) -> bytes:
    if not isinstance(row, Mapping):
        raise DataError(
            f"the row is no dictionary, but of the type `{type(row).__name__}`",
            where=f"row {number}",
            fix='give rows such as {"text": ..., "label": ...}',
        )
    fields = {_text(name): _plain(value, _text(name), number) for name, value in row.items()}
    if len(fields) < len(row):
        raise _merged("the row", row, number)
    # Half a character (a lone surrogate) is escaped as JSON has it: the checks name the row.
    return (json.dumps(fields, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8", "backslashreplace")


def _plain(value: Any, column: str, number: int) -> Any:
    """A value as JSON can hold it."""
    if isinstance(value, str):
        return _text(value)
    if _is_missing(value):
        return None
    if isinstance(value, Mapping):
        fields = {_text(key): _plain(inside, column, number) for key, inside in value.items()}
        if len(fields) < len(value):
            raise _merged(f"`{column}`", value, number)
        return fields
    if isinstance(value, list | tuple):
        return [_plain(inside, column, number) for inside in value]
    if isinstance(value, float) and math.isinf(value):
        return str(value)  # JSON has no infinity: where a number is wanted, the checks refuse it by name
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, _TIMES):
        return value.isoformat()
    if isinstance(value, np.floating):
        return _plain(float(value), column, number)
    if isinstance(value, (np.datetime64, Decimal, *_SPANS)):
        return str(value)
    if hasattr(value, "tolist"):  # numbers and arrays of NumPy, tensors
        return _plain(value.tolist(), column, number)
    raise DataError(
        f"`{column}` holds a `{type(value).__name__}`, which is no plain data",
        where=f"row {number}",
        fix=f"leave the column `{column}` out, or turn it into text or numbers",
    )


def _text(value: Any) -> str:
    """A name as text; a member of an ``Enum`` of texts is its text, not the member's name."""
    return str.__str__(value) if isinstance(value, str) else str(value)


def _twice(names: list[str]) -> str | None:
    return next((name for name in names if names.count(name) > 1), None)


def _merged(what: str, fields: Mapping[Any, Any], number: int) -> DataError:
    """Names that differ in type alone, such as 1 and "1", are one name in JSON."""
    twice = _twice([_text(name) for name in fields])
    fix = "give each field a name of its own: one of them would be lost"
    return DataError(f"{what} has two fields {twice!r}", where=f"row {number}", fix=fix)


def _is_missing(value: Any) -> bool:
    """Whether a value stands for none: NaN and NaT, of whatever type, are the values that do not equal themselves."""
    if value is None or type(value).__name__ == "NAType":  # `pandas.NA`, which does not say whether it equals itself
        return True
    kinds = (float, Decimal, np.floating, np.datetime64, *_TIMES, *_SPANS)
    return isinstance(value, kinds) and bool(value != value)
