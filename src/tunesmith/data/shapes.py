"""Which shape a row has where a file mixes several: conversations under two names, say, or questions among prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tunesmith.data.columns import Choice
from tunesmith.data.problems import Fault

Choose = Callable[[Sequence[str]], Choice | Fault]
"""The columns that a task takes out of these names, or why it can take none."""


def usual_choice(records: Sequence[Mapping[str, Any]], choose: Choose) -> Choice | Fault:
    """The columns by which most records are whole; those of all records together where these have one shape.

    Names that are in doubt stay a fault: columns are taken from a part of the records only if each record is whole by
    columns of its own.
    """
    together = choose(names(records))
    if isinstance(together, Choice) and not any(together.lacks(values) for values in records):
        return together
    shapes: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for values in records:
        own = choose(_filled(values))
        if isinstance(own, Choice):
            shapes.setdefault(own.needed, []).append(values)
    if not shapes or (isinstance(together, Choice) and set(shapes) == {together.needed}):
        return together
    if isinstance(together, Fault) and sum(map(len, shapes.values())) < len(records):
        return together
    most = max(shapes.values(), key=len)
    for columns in (names(most), _filled(most[0])):
        usual = choose(columns)
        if isinstance(usual, Choice) and not any(usual.lacks(values) for values in most):
            return usual
    return together


def other_choice(values: Mapping[str, Any], usual: Choice, choose: Choose) -> Choice | None:
    """The columns of a record that lacks some of the usual ones; ``None`` if no others stand in for these."""
    for columns in (_filled(values), list(values)):
        own = choose(columns)
        if isinstance(own, Choice) and own.needed != usual.needed and stands_in(own, usual, values):
            return own
    return None


def stands_in(other: Choice, usual: Choice, values: Mapping[str, Any]) -> bool:
    """Whether a record that lacks some of the usual columns may be read by others.

    A column that is there and holds nothing is a fault of the record: no other takes its place in the same form.
    """
    absent = all(name not in values for name in usual.needed if name not in other.needed)
    return absent or other.fields_needed != usual.fields_needed


def names(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """All columns of some records, in the order in which they occur."""
    return list(dict.fromkeys(name for values in records for name in values))


def _filled(values: Mapping[str, Any]) -> list[str]:
    return [name for name, value in values.items() if value is not None]
