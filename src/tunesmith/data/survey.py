"""The one pass over all files: reads, checks each row, and enters it into the ledger."""

from __future__ import annotations

import codecs
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from tunesmith.data.checks import check_record, has_error, raw_text
from tunesmith.data.columns import Choice
from tunesmith.data.dropped import DroppedRows
from tunesmith.data.fitting import TOO_LONG, TOO_LONG_FIX
from tunesmith.data.labels import LabelBook
from tunesmith.data.ledger import PARTS, Ledger, hash64, normalised
from tunesmith.data.near_duplicates import NearIndex
from tunesmith.data.pair_checks import PairBook
from tunesmith.data.problems import Fault, Findings, LeftOut
from tunesmith.data.readers import Record, read
from tunesmith.data.row_file import RowSpool
from tunesmith.data.rows import CONTENT, Origin, Row, identity
from tunesmith.data.sources import ONE_ROW, Source, find_sources
from tunesmith.data.ways import Way, Ways
from tunesmith.errors import DataError
from tunesmith.events import Listener, Progress
from tunesmith.recipe import PICTURES, Recipe
from tunesmith.tasks import TASKS

if TYPE_CHECKING:
    from tunesmith.data.render import Rendered

RENDER_SAMPLE = 20_000
"""At most about this many rows of each part are rendered; more would cost as much as a part of the training."""

_LOOK_AHEAD, _MOST_AHEAD = 100, 10_000
"""Records from which it is settled how a source is read, and the most lines, bad ones included, kept for that."""
_PROGRESS_ROWS = 10_000
_encode = json.JSONEncoder(sort_keys=True, ensure_ascii=False).encode  # the same text as content_key hashes


@dataclass
class Survey:
    """What one pass over the data leaves behind.

    Attributes:
        ledger: An entry for every row without errors.
        findings: All faults of single rows and files.
        labels: The labels met, where each row has one.
        row_labels: Part -> label -> how often it occurs, where a row may have any number of labels.
        label_origins: The first place of each (part, label) of these.
        near: Index of near duplicates.
        pairs: What is known of preferences; ``None`` for other tasks.
        spool: The rows themselves; ``None`` if only a check is wanted.
        dropped: Takes the rows left out; ``None`` if nobody wants them.
        choices: The columns chosen, and for how many files which is the first.
        said: What the task said of how sources are read.
        rows_read: Part -> records met.
        unfinished: Sources of which no more than ``data.read_rows`` were read: there may be more in them.
        no_text: Element of pages -> characters of it that were left out as no text.
        pages: How many pages had such.
        num_left_out: Rows left out because of errors of their own.
        rendered: Part -> rows rendered.
    """

    ledger: Ledger
    findings: Findings
    labels: LabelBook = field(default_factory=LabelBook)
    row_labels: dict[str, Counter[str]] = field(default_factory=dict)
    label_origins: dict[tuple[str, str], Origin] = field(default_factory=dict)
    near: NearIndex = field(default_factory=NearIndex)
    pairs: PairBook | None = None
    spool: RowSpool | None = None
    dropped: DroppedRows | None = None
    choices: dict[Choice, list[Any]] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    rows_read: dict[str, int] = field(default_factory=dict)
    unfinished: list[str] = field(default_factory=list)
    no_text: Counter[str] = field(default_factory=Counter)
    pages: int = 0
    num_left_out: int = 0
    rendered: dict[str, int] = field(default_factory=dict)


Rules = Callable[[Record], tuple[Record, list[Fault]]]
"""What somebody else asks of a record: the record as the task shall read it, and what is wrong with it."""


class _Thinner:
    """Says of hashes whether they belong to a sample of bounded size, without knowing how many will come."""

    def __init__(self, size: int) -> None:
        self._size, self._bound, self._taken = size, 2**64, 0

    def takes(self, value: int) -> bool:
        if value >= self._bound:
            return False
        self._taken += 1
        if self._taken > self._size:
            self._bound, self._taken = self._bound // 2, self._taken // 2
        return True


class Surveyor:
    """Walks through all parts of a recipe's data.

    Args:
        recipe: Task and data.
        survey: Filled as the walk goes on.
        render: Turns a row into tokens, to measure lengths and find rows that teach nothing.
        rules: Those of a provider, say.
        on_event: Told about guessed columns and progress.
    """

    def __init__(
        self,
        recipe: Recipe,
        survey: Survey,
        *,
        render: Callable[[Row], Rendered] | None,
        rules: Rules | None = None,
        on_event: Listener,
    ) -> None:
        self._data = recipe.data
        self._task = TASKS[recipe.task]
        self._survey = survey
        if self._task.answer == "pair":
            survey.pairs = PairBook()
        self._render = render
        self._rules = rules
        self._on_event = on_event

    def walk(self) -> None:
        """Read everything.

        Raises:
            DataError: A file does not exist, or ``data.encoding`` is unknown.
        """
        try:
            codecs.lookup(self._data.encoding)
        except LookupError as error:
            raise DataError(f"unknown encoding {self._data.encoding!r}", where="data.encoding", fix="utf-8") from error
        parts = {"train": self._data.train, "validation": self._data.validation, "test": self._data.test}
        sources = {
            part: find_sources(
                specs,
                file_format=self._data.format,
                key=f"data.{part}",
                documents=self._task.answer == "likelihood",
                text_task="" if self._task.name in PICTURES else self._task.name,
                on_event=self._on_event,
            )
            for part, specs in parts.items()
            if isinstance(specs, list)
        }
        for part, found in sources.items():
            self._survey.rows_read[part] = 0
            thinner = _Thinner(RENDER_SAMPLE)
            for source in found:
                self._read(source, PARTS.index(part), thinner)

    def _read(self, source: Source, part: int, thinner: _Thinner) -> None:
        items = self._items(source)
        ahead = _ahead(items)
        if not ahead:
            message = "the file holds no rows"
            self._survey.findings.add(Fault("empty-file", message, Origin(source.name, 1), severity="warning"))
            return
        sample = [item for item in ahead if isinstance(item, Record)]
        ways = Ways(source, self._task, self._data, self._survey, self._on_event)
        settled = bool(sample) and ways.settle(sample)
        for item in itertools.chain(ahead, items if settled or not sample else ()):
            if isinstance(item, Fault):
                self._fault(item, part)
                continue
            if not sample:
                sample = [item]
                settled = ways.settle(sample)
            if settled:  # without columns nothing can be said about the rows of this file
                self._record(item, ways.of(item), part, thinner)
        ways.finish()

    def _items(self, source: Source) -> Iterator[Record | Fault]:
        """Records and faults of a source, as many as are wanted; what was left out of pages is added up."""
        survey, wanted = self._survey, self._data.read_rows
        rows = 0
        for item in read(source, self._data.encoding, wanted):
            if isinstance(item, LeftOut):
                survey.no_text.update(item.characters)
                survey.pages += 1
                continue
            rows += isinstance(item, Record) or item.severity == "error"
            yield item
        if rows == wanted and source.format not in ONE_ROW:
            survey.unfinished.append(source.name)

    def _fault(self, fault: Fault, part: int) -> None:
        row_error = self._survey.findings.add(fault)
        if fault.severity == "error":
            self._count(part)
        if row_error and fault.origin:
            self._leave_out(fault.origin, [fault], fault.raw or "")

    def _record(self, record: Record, way: Way, part: int, thinner: _Thinner) -> None:
        self._count(part)
        asked: list[Fault] = []
        original = record
        if self._rules is not None:
            record, asked = self._rules(record)
        row, faults = check_record(record, way.choice, self._task, way.reading)
        faults += asked
        group = None
        if self._data.group_by is not None:
            group, missing = _group(record, self._data.group_by)
            faults += missing
        if not has_error(faults):
            faults += self._enter(row, part, thinner, group)
        for fault in faults:
            self._survey.findings.add(fault)
        if has_error(faults):
            self._leave_out(record.origin, faults, raw_text(original))

    def _enter(self, row: Row, part: int, thinner: _Thinner, group: int | None) -> list[Fault]:
        """Put a row into the ledger, unless its text or its rendering is bad."""
        survey = self._survey
        text, target = self._task.input_text(row), self._task.target_text(row)
        try:
            plain = normalised(str(row.fields.get(CONTENT, text)))
            content = _encode(row.fields).encode()
            input_hash, target_hash = hash64(plain.encode()), hash64(target.encode())
        except UnicodeEncodeError:
            return [_surrogate(row.origin)]
        except (TypeError, ValueError) as error:
            fix = "write what it holds as texts, numbers and lists"
            what = f"the row cannot be written as JSON: {error}"
            return [Fault("wrong-type", what, row.origin, fix=fix, group="json")]
        content_hash = hash64(content if CONTENT not in row.fields else _encode(identity(row.fields)).encode())
        tokens, cut, faults = 0, 0, list[Fault]()
        if self._render is not None and thinner.takes(content_hash):
            tokens, cut, faults = self._measure(row, part)
            if has_error(faults):
                return faults
        label = self._label(row, part, target)
        position = survey.ledger.num_rows
        offset = survey.spool.add(content) if survey.spool else 0
        numbers = (input_hash, target_hash, content_hash, offset, len(content))
        survey.ledger.add((*numbers, label, len(text) + len(target), tokens, cut, part), row.origin, group)
        if survey.pairs is not None:
            survey.pairs.add(row)
        if CONTENT not in row.fields:
            survey.near.add(plain, input_hash, position, part)
        return faults

    def _label(self, row: Row, part: int, target: str) -> int:
        """Enter the row's labels. One label a row gets its number, by which the split is stratified; else 0."""
        survey = self._survey
        if self._task.answer == "label":
            return survey.labels.number(target)
        labels = self._task.labels(row)
        survey.row_labels.setdefault(PARTS[part], Counter()).update(labels)
        for label in labels:
            survey.label_origins.setdefault((PARTS[part], label), row.origin)
        return 0

    def _measure(self, row: Row, part: int) -> tuple[int, int, list[Fault]]:
        assert self._render is not None
        self._survey.rendered[PARTS[part]] = self._survey.rendered.get(PARTS[part], 0) + 1
        try:
            rendered = self._render(row)
        except DataError as error:
            return 0, 0, [Fault("unlearnable", error.what, row.origin, fix=error.fix, group=error.what)]
        tokens = len(rendered.input_ids) + rendered.cut_tokens
        if not rendered.cut_tokens:
            return tokens, 0, []
        fault = Fault(
            "truncated",
            f"{TOO_LONG}: its end is cut off",
            row.origin,
            severity="warning",
            fix="raise `data.max_length`, split long rows, or refuse them with `data.truncate: false`",
        )
        if not self._data.truncate:
            fault = replace(fault, code="too-long", severity="error", message=TOO_LONG, fix=TOO_LONG_FIX)
        return tokens, rendered.cut_tokens, [fault]

    def _leave_out(self, origin: Origin, faults: list[Fault], raw: str) -> None:
        self._survey.num_left_out += 1
        if self._survey.dropped is not None:
            reasons = [f"{fault.code}: {fault.message}" for fault in faults if fault.severity == "error"]
            self._survey.dropped.add(origin, reasons, raw.rstrip("\r\n"))

    def _count(self, part: int) -> None:
        read = self._survey.rows_read
        read[PARTS[part]] += 1
        if read[PARTS[part]] % _PROGRESS_ROWS == 0:
            self._on_event(Progress(what="reading data", done=sum(read.values()), total=None))


def _ahead(items: Iterator[Record | Fault]) -> list[Record | Fault]:
    """The first items, until there are records enough among them."""
    found: list[Record | Fault] = []
    records = 0
    for item in itertools.islice(items, _MOST_AHEAD):
        found.append(item)
        records += isinstance(item, Record)
        if records == _LOOK_AHEAD:
            break
    return found


def _group(record: Record, name: str) -> tuple[int | None, list[Fault]]:
    """Hash of the value by which a row is grouped, or what is wrong with it."""
    value = record.values.get(name)
    if value is None or value == "":
        message = f"`{name}` is missing, by which rows are grouped"
        return None, [Fault("missing-field", message, record.origin, fix="fill it in", group=f"group {name}")]
    return hash64(f"group {json.dumps(value, sort_keys=True, default=repr)}".encode("utf-8", "surrogatepass")), []


def _surrogate(origin: Origin) -> Fault:
    return Fault(
        "lone-surrogate",
        "the text holds half of a character (a lone surrogate such as \\ud800), which no encoding can write",
        origin,
        fix="write the character whole, or remove it",
    )


def iterate_choices(survey: Survey) -> Iterator[dict[str, Any]]:
    """The columns chosen, for the report."""
    for choice, (first, files) in survey.choices.items():
        yield {"file": first, "files": files, **choice.as_dict()}
