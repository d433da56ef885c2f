"""How the rows of a file are read: by which columns, and what the task makes of them; one way for each shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tunesmith.data.checks import mapped
from tunesmith.data.columns import Choice, Column, choose_columns
from tunesmith.data.pictures import READS_TEXT, names_picture
from tunesmith.data.problems import PLACES, Fault
from tunesmith.data.readers import Record
from tunesmith.data.rows import Origin, Row
from tunesmith.data.shapes import names, other_choice, stands_in, usual_choice
from tunesmith.data.sources import Source
from tunesmith.events import Listener, Notice
from tunesmith.recipe import Data
from tunesmith.tasks import Reading, Task

if TYPE_CHECKING:
    from tunesmith.data.survey import Survey

_MOST_COLUMNS = 1_000


@dataclass
class Way:
    """How the records of a source that have one shape are read.

    Attributes:
        choice: Its columns.
        told: Those that the user was told of.
        reading: What the task makes of rows.
        sample: The first rows, from which that was settled.
        seen: All columns met so far, but for the next.
        void: Those that held nothing so far and have no place.
        places: The first rows that were read so.
        rows: How many there are in all.
    """

    choice: Choice
    told: Choice
    reading: Reading
    sample: list[Row]
    seen: set[str]
    void: set[str] = field(default_factory=set)
    places: list[Origin] = field(default_factory=list)
    rows: int = 0

    def count(self, origin: Origin) -> None:
        """A row was read so."""
        self.rows += 1
        if len(self.places) < PLACES:
            self.places.append(origin)


class Ways:
    """The ways to read one source, the usual one first.

    Args:
        source: The file.
        task: Whose columns are looked for.
        data: Says which columns are meant.
        survey: Its findings and the choices of columns are added to.
        on_event: Told about guessed columns.
    """

    def __init__(self, source: Source, task: Task, data: Data, survey: Survey, on_event: Listener) -> None:
        self._source, self._task, self._data = source, task, data
        self._survey, self._on_event = survey, on_event
        self._ways: list[Way] = []

    def settle(self, sample: Sequence[Record]) -> bool:
        """Find out from the first records how all are read. Returns whether they can be; if not, a finding says why."""
        records = [record.values for record in sample]
        header = _header(self._source, sample[0].origin)
        choice = usual_choice(records, self._chooser(header))
        fault = choice if isinstance(choice, Fault) else _no_group(names(records), self._data.group_by, header)
        if isinstance(choice, Fault) or fault is not None:
            assert fault is not None
            self._survey.findings.add(fault)
            return False
        groups: dict[Choice, list[Record]] = {choice: []}
        for record in sample:
            groups.setdefault(self._choice_of(record, list(groups)), []).append(record)
        for own, rows in groups.items():
            self._ways.append(self._way(own, rows))
        return True

    def _chooser(self, origin: Origin) -> Callable[[Sequence[str]], Choice | Fault]:
        """What takes the task's columns out of some names, which were met here."""
        return lambda columns: choose_columns(columns, self._task, self._data.columns, origin)

    def _way(self, choice: Choice, sample: Sequence[Record]) -> Way:
        """A way to read records, settled by the first ones that are read so, and by those of the same form before."""
        rows = [mapped(record, choice) for record in sample]
        self._judge_names(rows, choice)
        alike = [row for way in self._ways if way.choice.fields_needed == choice.fields_needed for row in way.sample]
        return Way(choice, choice, self._reading([*rows, *alike]), rows, set(choice.names))

    def of(self, record: Record) -> Way:
        """The way to read a record: the usual one, unless it is whole by columns of its own only."""
        choice = self._choice_of(record, [way.choice for way in self._ways])
        way = next((way for way in self._ways if way.choice is choice), None)
        if way is None:
            way = self._way(choice, [record])
            self._ways.append(way)
        elif not way.seen.issuperset(record.values):
            self._widen(way, record)
        if not way.rows:
            self._remember(way.told)
        way.count(record.origin)
        return way

    def finish(self) -> None:
        """All records are read: enter the columns that were taken in the end; say so if there are several shapes."""
        for way in self._ways:
            if way.choice != way.told:
                self._forget(way.told)
                self._survey.choices.setdefault(way.choice, [self._source.name, 0])[1] += 1
        self._judge_shapes()

    def _choice_of(self, record: Record, known: Sequence[Choice]) -> Choice:
        """The columns of a record: known ones, the usual ones first, unless it has others."""
        usual, *others = known
        values = record.values
        if not usual.lacks(values):
            return usual
        for other in others:
            if not other.lacks(values) and stands_in(other, usual, values):
                return other
        own = other_choice(values, usual, self._chooser(record.origin))
        return usual if own is None else next((other for other in others if other.needed == own.needed), own)

    def _judge_shapes(self) -> None:
        found = sorted((way for way in self._ways if way.rows), key=lambda way: -way.rows)
        for way in found[1:]:
            own, usual = (", ".join(f"`{name}`" for name in each.choice.needed) for each in (way, found[0]))
            have = "a row has" if way.rows == 1 else "rows have"
            self._survey.findings.add_many(
                "mixed-shapes",
                "warning",
                f"{have} {own}, where {found[0].rows:,} rows of the file have {usual}: each is read by its own columns",
                way.places,
                way.rows,
                fix="look whether they belong there; nothing needs to be done if they do",
                group=f"{self._source.name} {own}",
            )

    def _widen(self, way: Way, record: Record) -> None:
        """A record has columns that no earlier one had: they are taken if the task has a place for them."""
        if len(way.seen) > _MOST_COLUMNS:
            return
        values = record.values
        new = [name for name in values if name not in way.seen and (name not in way.void or values[name] is not None)]
        if not new or self._takes(way, new, record):
            return
        late = []
        for name in new[:_MOST_COLUMNS]:
            if self._takes(way, [name], record):
                continue
            if values[name] is None:
                way.void.add(name)
            else:
                way.seen.add(name)
                late.append(name)
        if not late:
            return
        names = ", ".join(f"`{name}`" for name in late)
        fault = Fault(
            "late-column",
            f"{names}: no earlier row fills it, and with it the columns would be read another way, so it is not used",
            record.origin,
            severity="warning",
            fix="say which columns are meant: `data.columns.FIELD=COLUMN`",
            group=names,
        )
        self._survey.findings.add(fault)

    def _takes(self, way: Way, new: list[str], record: Record) -> bool:
        """Add columns to a way, unless it would become another one with them."""
        found = self._chooser(_header(self._source, record.origin))([*way.choice.names, *new])
        if isinstance(found, Fault) or not _fixed(way.choice) <= _fixed(found):
            return False
        way.seen.update(new)
        way.choice = found
        if _fixed(found) > _fixed(way.told):
            if way.rows:
                self._forget(way.told)
                self._remember(found)
            way.told = found
        return True

    def _judge_names(self, sample: list[Row], choice: Choice) -> None:
        """Say so if a field of text holds nothing but names of pictures."""
        for name in (column.field.name for column in choice.columns if column.field.kind == "text"):
            texts = [row.fields[name] for row in sample]
            if texts and all(isinstance(text, str) and names_picture(text) for text in texts):
                origin, message = sample[0].origin, f"`{name}` holds names of pictures, not texts: {texts[0][:60]!r}"
                fault = Fault("image-content", message, origin, severity="warning", fix=READS_TEXT, group=origin.file)
                self._survey.findings.add(fault)

    def _reading(self, sample: list[Row]) -> Reading:
        reading = self._task.reading(sample, self._data)
        if reading.said and reading.said not in self._survey.said:  # once, not for every file of a folder
            self._survey.said.append(reading.said)
            self._on_event(Notice(level="info", message=reading.said, where=self._source.name))
        return reading

    def _remember(self, choice: Choice) -> None:
        known = self._survey.choices.setdefault(choice, [self._source.name, 0])
        known[1] += 1
        if known[1] == 1 and any(column.how == "guessed" for column in choice.columns):
            fix = "to choose others: data.columns.FIELD=COLUMN"
            self._on_event(Notice(level="info", message=str(choice), where=self._source.name, fix=fix))

    def _forget(self, choice: Choice) -> None:
        """A source is read in another way after all."""
        known = self._survey.choices[choice]
        known[1] -= 1
        if not known[1]:
            del self._survey.choices[choice]


def _fixed(choice: Choice) -> set[Column]:
    """The columns with a field of their own."""
    return {column for column in choice.columns if column.field.kind != "rest"}


def _no_group(columns: list[str], name: str | None, origin: Origin) -> Fault | None:
    """What is wrong if the column of ``data.group_by`` is not there."""
    if name is None or name in columns:
        return None
    found = ", ".join(f"`{column}`" for column in columns) or "none"
    message = f"there is no column {name!r}, which `data.group_by` names; columns found: {found}"
    fix = "name a column that every file has, or leave `data.group_by` out"
    return Fault("columns", message, origin, fix=fix, group=f"group {origin.file}", whole_file=True)


def _header(source: Source, first: Origin | None) -> Origin:
    """Where the columns stand: the header of a table, else the first record."""
    if source.format in ("csv", "tsv") or first is None:
        return Origin(source.name, 1)
    return first
