"""Which column of a file is which field of the task: as told, by name, or guessed and said aloud."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tunesmith.data.problems import Fault
from tunesmith.data.rows import Origin
from tunesmith.recipe import PICTURES
from tunesmith.tasks.base import Field, Task


@dataclass(frozen=True)
class Column:
    """The column taken for a field. ``how`` is ``given``, ``exact`` (same name) or ``guessed`` (a known alias).

    ``several`` names the columns where they are more than one; ``column`` then lists them for readers.
    """

    field: Field
    column: str
    how: str
    several: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The columns."""
        return self.several or (self.column,)

    def value(self, values: Mapping[str, Any], missing: Any = None) -> Any:
        """The field's value in a record: of several columns a mapping from each to what it holds."""
        if not self.several:
            return values.get(self.column, missing)
        return {name: values.get(name) for name in self.several}


@dataclass(frozen=True)
class Choice:
    """The columns of a file: those taken, in the order of the task's fields, and those left aside."""

    columns: tuple[Column, ...]
    ignored: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """All columns, taken or not."""
        return (*(name for column in self.columns for name in column.names), *self.ignored)

    @cached_property
    def needed(self) -> tuple[str, ...]:
        """The columns that every row must have."""
        return tuple(c.column for c in self.columns if c.field.required and not c.several)

    @property
    def fields_needed(self) -> tuple[str, ...]:
        """The fields that these stand for: the form of the task."""
        return tuple(c.field.name for c in self.columns if c.field.required and not c.several)

    def lacks(self, values: Mapping[str, Any]) -> bool:
        """Whether a record is not whole by these columns."""
        return any(values.get(name) is None for name in self.needed)

    def as_dict(self) -> dict[str, Any]:
        """For the report."""
        return {
            "fields": {c.field.name: {"column": c.column, "how": c.how} for c in self.columns},
            "ignored": list(self.ignored),
        }

    def __str__(self) -> str:
        taken = ", ".join(
            f"`{c.field.name}`" + ("" if c.column == c.field.name else f" from the column `{c.column}` ({c.how})")
            for c in self.columns
        )
        aside = f"; not used: {', '.join(self.ignored[:10])}" if self.ignored else ""
        return f"columns: {taken}{aside}"


class _NoColumn(Exception):
    """A form of the task does not fit the columns; ``near`` if the user had this form in mind."""

    def __init__(self, message: str, fix: str, *, near: bool = False) -> None:
        super().__init__(message)
        self.fix = fix
        self.near = near


def choose_columns(
    columns: Sequence[str], task: Task, given: Mapping[str, str | list[str]], origin: Origin
) -> Choice | Fault:
    """Choose columns for the first of the task's forms that fits.

    Args:
        columns: Names found in the file (in the first records, where the format has no header).
        task: Supplies fields and aliases.
        given: ``data.columns``: field -> column.
        origin: Where the columns were seen, for the fault.

    Returns:
        The choice; or a fault that lists the columns if a required field has none or several.
    """
    known = {field.name for form in task.forms for field in form}
    wrong = next((name for name in given if name not in known), None)
    if wrong is not None:
        close = difflib.get_close_matches(wrong, known, n=1)
        hint = f"did you mean `data.columns.{close[0]}`? " if close else ""
        fix = f"{hint}fields: {', '.join(sorted(known))}"
        return _fault(f"`data.columns.{wrong}` names no field of the task {task.name!r}", fix, origin)
    failures: list[_NoColumn] = []
    for form in task.forms:
        try:
            chosen = _fit(form, columns, given)
        except _NoColumn as failure:
            failures.append(failure)
        else:
            taken = {name for column in chosen for name in column.names}
            aside = tuple(name for name in columns if name not in taken)
            rest = next((field for field in form if field.kind == "rest"), None)
            if rest is not None and aside and rest not in [column.field for column in chosen]:
                return Choice((*chosen, Column(rest, ", ".join(aside), "exact", aside)), ())
            return Choice(chosen, aside)
    nearest = next((f for f in failures if f.near), failures[-1])
    found = ", ".join(f"`{name}`" for name in columns) or "none"
    return _fault(
        f"{nearest}; columns found: {found}",
        _picture_hint(columns, task) + nearest.fix + _separator_hint(columns),
        origin,
    )


def _fit(form: Sequence[Field], columns: Sequence[str], given: Mapping[str, str | list[str]]) -> tuple[Column, ...]:
    if any(name not in {field.name for field in form} for name in given):
        raise _NoColumn("`data.columns` names fields of another form", "name the fields of one form only")
    reserved = {name for field in form for name in _names(given.get(field.name, field.name))}
    chosen = []
    for field in form:
        column = _find(field, columns, given, reserved)
        if column is not None:
            chosen.append(column)
        elif field.required:
            raise _NoColumn(
                f"no column for `{field.name}` ({field.what})", f"say which: data.columns.{field.name}=COLUMN"
            )
    return tuple(chosen)


def _names(column: str | list[str]) -> list[str]:
    return [column] if isinstance(column, str) else column


def _find(
    field: Field, columns: Sequence[str], given: Mapping[str, str | list[str]], reserved: set[str]
) -> Column | None:
    if field.name in given:
        names = _names(given[field.name])
        if len(names) > 1 and field.kind != "labels":
            raise _NoColumn(
                f"`data.columns.{field.name}` names several columns, and `{field.name}` is one", "name one", near=True
            )
        column = next((name for name in names if name not in columns), names[0])
        if column not in columns:
            close = difflib.get_close_matches(column, columns, n=1)
            raise _NoColumn(
                f"there is no column {column!r}, which `data.columns.{field.name}` names",
                f"did you mean {close[0]!r}?" if close else f"name one that exists in data.columns.{field.name}",
                near=True,
            )
        several = tuple(names) if field.kind == "labels" and isinstance(given[field.name], list) else ()
        return Column(field, ", ".join(names), "given", several)
    if field.name in columns:
        return Column(field, field.name, "exact")
    likely = [name for name in columns if name not in reserved and name.strip().lower() in (field.name, *field.aliases)]
    if len(likely) > 1:
        found = ", ".join(f"`{name}`" for name in likely)
        raise _NoColumn(
            f"several columns fit `{field.name}` ({field.what}): {found}",
            f"say which: data.columns.{field.name}={likely[0]}",
            near=True,
        )
    return Column(field, likely[0], "guessed") if likely else None


def _picture_hint(columns: Sequence[str], task: Task) -> str:
    here = "image" in columns and task.name not in PICTURES
    return "for the pictures use `task: image-classification`; for texts " if here else ""


def _separator_hint(columns: Sequence[str]) -> str:
    if len(columns) == 1 and ";" in columns[0]:
        return "; the file seems to be separated by semicolons: save it with commas"
    if len(columns) == 1 and "\t" in columns[0]:
        return "; the file seems to be separated by tabs: data.format=tsv"
    return ""


def _fault(message: str, fix: str, origin: Origin) -> Fault:
    return Fault("columns", message, origin, fix=fix, group=f"{origin.file}", whole_file=True)
