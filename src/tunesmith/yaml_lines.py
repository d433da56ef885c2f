"""Where the keys of a YAML file stand, and what is wrong with their values, in words and with that place."""

from __future__ import annotations

import yaml
from pydantic import ValidationError

from tunesmith.errors import UsageError
from tunesmith.recipe_file import line_numbers

Lines = dict[tuple[str, ...], str]
"""Path of each key -> ``file:line``."""


def places(text: str, name: str) -> Lines:
    """The places of all keys of a document that is YAML."""
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    return {keys: f"{name}:{line}" for keys, line in line_numbers(node).items()}


def as_usage_error(
    error: ValidationError, lines: Lines, *, fix: str, under: tuple[str, ...] = (), file: str | None = None
) -> UsageError:
    """The first thing that is wrong with a table, at the line of the key or of what should hold it.

    Args:
        error: What the schema says.
        lines: Places of the keys.
        fix: How such a table is written.
        under: Keys above what was held against the schema.
        file: Said where no line is known.
    """
    problem = error.errors(include_url=False)[0]
    path = (*under, *(str(step) for step in problem["loc"]))
    where = next((lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in lines), file)
    more = error.error_count() - 1
    tail = f" (and {more} more)" if more else ""
    key, given = ".".join(path), problem["input"]
    if problem["type"] == "missing":
        return UsageError(f"`{key}` is missing{tail}", where=where, fix=f"add `{path[-1]}: ...` there; {fix}")
    value = f"is {given!r}: " if isinstance(given, str | int | float) else ""
    return UsageError(f"`{key}` {value}{problem['msg']}{tail}", where=where, fix=fix)
