"""Commands that apply a tuned model: predict and chat."""

from __future__ import annotations

import gzip
import itertools
import json
import sys
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from tunesmith.cli.failures import print_error
from tunesmith.cli.output import Json, Run, print_json, stderr, stdout
from tunesmith.data.pictures import embedded, is_picture, located, unpacked_for_now
from tunesmith.data.sources import format_of
from tunesmith.errors import DataError
from tunesmith.recipe import PICTURES

if TYPE_CHECKING:
    from tunesmith.prediction.predicting import Prediction
    from tunesmith.runs import Run as StoredRun

TABLES = {"csv", "tsv", "json", "parquet", "conll"}  # their lines are no rows: the readers of training data read them
BLANK_SHOWN = 10  # blank lines that are named; all are counted
EXIT_WORDS = {"/exit", "/quit"}


def predict(
    run: Run,
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE", help="CSV, TSV, JSON, Parquet, JSON lines or plain lines, `.gz` too; default or `-`: stdin."
        ),
    ] = None,
    batch: Annotated[int, typer.Option("--batch", metavar="N", min=1, help="Rows read and answered at a time.")] = 256,
    as_json: Json = False,
) -> None:
    """Apply a tuned model to a file or to stdin.

    A line that is a JSON object is a row with the task's fields, or the columns that were trained on; any other line is
    the text itself. The output is one JSON object a row, in the order of the input, with `--json` or without, and names
    the row: by its `line` in the input, counted from 1, or by the `image` of a folder. Blank lines have no answer,
    which stderr says. In a terminal, texts with spans are shown with the spans in colours unless `--json` is given. A
    picture that cannot be read gets an `error` in place of an answer, and the exit code is then 3.
    """
    from tunesmith.prediction.predicting import unreadable
    from tunesmith.runs import open_run

    opened = open_run(run)
    name = "stdin" if file is None or str(file) == "-" else str(file)
    labels: list[str] = []
    num_bad = 0
    blank: list[int] = []
    rows = _of_run(opened, _rows(file, opened.recipe.data.encoding, blank))
    of_pictures = _is_of_pictures(file)
    if opened.recipe.task in PICTURES and not of_pictures:
        rows = ((line, _located(opened.under_field_names([row])[0], file)) for line, row in rows)
    for numbered in _batches(rows, batch):
        with unpacked_for_now():  # looked at and answered from one copy
            bad = unreadable(opened.recipe.task, [row for _, row in numbered])
            good = [pair for place, pair in enumerate(numbered) if place not in bad]
            with _named_lines(name, [line for line, _ in good]):
                predictions = iter(opened.predict([row for _, row in good]) if good else [])
        num_bad += len(bad)
        for place, (line, row) in enumerate(numbered):
            named = {"image": row["image"]} if isinstance(row, dict) and of_pictures else {"line": line}
            if place in bad:
                _print_bad(bad[place], str(named.get("image", f"{name}:{line}")), named)
                continue
            prediction = next(predictions)
            if prediction.spans is not None and sys.stdout.isatty() and not as_json:
                _print_marked(prediction, labels)
            else:
                print_json(named | prediction.as_dict())
    _say_blank(blank, name)
    if num_bad:
        raise typer.Exit(DataError.exit_code)


def _print_bad(error: DataError, place: str, named: dict[str, Any]) -> None:
    """A row without an answer: in its place on stdout, and for people on stderr."""
    error.where = place
    print_json(named | {"error": error.as_dict()})
    print_error(error, as_json=False)


def _say_blank(lines: list[int], name: str) -> None:
    """For people: which lines have no answer because nothing is there."""
    if not lines:
        return
    shown = ", ".join(f"{name}:{line}" for line in lines[:BLANK_SHOWN])
    more = f" and {len(lines) - BLANK_SHOWN:,} more" if len(lines) > BLANK_SHOWN else ""
    what = "1 blank line has no answer" if len(lines) == 1 else f"{len(lines):,} blank lines have no answer"
    stderr().print(f"{what}: {shown}{more}", markup=False, soft_wrap=True)


def _located(row: dict[str, Any] | str, file: Path | None) -> dict[str, Any] | str:
    """A row with the path of the picture that it names, found as in training data."""
    if file is None:
        return row
    if isinstance(row, str):
        return str(located(row, file))
    image = row.get("image")
    name = image if isinstance(image, str) else embedded(image)
    return {**row, "image": str(located(name, file))} if isinstance(name, str) else row


def _is_of_pictures(file: Path | None) -> bool:
    return file is not None and (file.is_dir() or is_picture(file))


def _print_marked(prediction: Prediction, labels: list[str]) -> None:
    """A text with its spans in colours, for people."""
    from tunesmith.data.spans import Span
    from tunesmith.evaluation.marks import in_terminal

    spans = [Span(**span) for span in prediction.spans or []]
    stdout().print(in_terminal(prediction.text or "", spans, labels), soft_wrap=True)


@contextmanager
def _named_lines(name: str, lines: list[int]) -> Iterator[None]:
    """Let an error about the n-th row of a batch (``input:n``) name the file and its line instead."""
    try:
        yield
    except DataError as error:
        batch, _, number = (error.where or "").rpartition(":")
        if batch == "input" and number.isdigit() and 0 < int(number) <= len(lines):
            error.where = f"{name}:{lines[int(number) - 1]}"
        raise


def _of_run(run: StoredRun, rows: Iterator[tuple[int, dict[str, Any] | str]]) -> Iterator[tuple[int, Any]]:
    """Rows whose errors name no key of a recipe, which nobody can change here."""
    try:
        yield from rows
    except DataError as error:
        error.fix = run.remedy_of_file(error.fix)
        raise


def _rows(
    file: Path | None, encoding: str = "utf-8", blank: list[int] | None = None
) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Rows of a file or of stdin with their lines, counted from 1; blank lines are left out.

    Args:
        file: ``None`` or ``-`` for stdin.
        encoding: Of texts.
        blank: Gets the numbers of blank lines between rows.

    Raises:
        DataError: A line looks like a JSON object and is none, the encoding is another, a `.gz` file is
            damaged, or a table cannot be read.
    """
    if file is not None and _is_of_pictures(file):
        paths = sorted(path for path in file.rglob("*") if is_picture(path)) if file.is_dir() else [file]
        yield from ((number, {"image": str(path)}) for number, path in enumerate(paths, 1))
        return
    if file is not None and format_of(file) in TABLES:
        yield from _records(file, encoding)
        return
    try:
        if file is None or str(file) == "-":
            yield from _parsed(sys.stdin, "stdin", blank)
            return
        with _opened(file, encoding) as lines:
            yield from _parsed(lines, str(file), blank)
    except UnicodeDecodeError as error:
        name = "stdin" if file is None else str(file)
        fix = f"save it as {'UTF-8' if file is None else encoding.upper()}"
        raise DataError(f"the text is not {error.encoding}", where=name, fix=fix) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"this is no whole gzip file: {error}", where=str(file), fix="restore the file from its source"
        ) from error


def _opened(file: Path, encoding: str) -> TextIO:
    """The lines of a file, unpacked if its name ends in `.gz`, as in training data."""
    encoding = "utf-8-sig" if encoding == "utf-8" else encoding
    if file.name.lower().endswith(".gz"):
        return gzip.open(file, "rt", encoding=encoding)
    return file.open(encoding=encoding)


def _parsed(
    lines: Iterable[str], name: str, blank: list[int] | None = None
) -> Iterator[tuple[int, dict[str, Any] | str]]:
    last = 0
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text:
            continue
        if blank is not None:  # those behind the last row put nothing out of step
            blank.extend(range(last + 1, number))
        last = number
        if any("\ud800" <= character <= "\udfff" for character in text):  # what stdin makes of bytes that are no UTF-8
            raise DataError("the text is not utf-8", where=f"{name}:{number}", fix="save it as UTF-8")
        if not text.startswith("{"):
            yield number, text
            continue
        try:
            yield number, json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(
                f"not valid JSON: {error.msg} at column {error.colno}",
                where=f"{name}:{number}",
                fix="each line is one JSON object, or plain text that does not begin with `{`",
            ) from error


def _records(file: Path, encoding: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a file with columns, read as training data are; a row that cannot be read has no answer, so it stops."""
    from tunesmith.data.problems import Fault
    from tunesmith.data.readers import read
    from tunesmith.data.sources import find_sources

    for source in find_sources([str(file)], key="FILE"):
        for record in read(source, encoding):
            if not isinstance(record, Fault):
                yield record.origin.line, record.values
            elif record.severity == "error":
                raise DataError(record.message, where=str(record.origin or file), fix=record.fix)


def _batches(rows: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(rows)
    while taken := list(itertools.islice(iterator, size)):
        yield taken


def chat(
    run: Run,
    system: Annotated[
        str | None, typer.Option("--system", metavar="TEXT", help="A system message for this conversation.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Talk to a tuned model.

    An empty line, `/exit` or Ctrl-D ends it; `/new` starts afresh. A classifier answers each line with its label.
    """
    from tunesmith.models.saving import read_notes
    from tunesmith.prediction.predicting import asked_task
    from tunesmith.runs import open_run

    opened = open_run(run)
    notes = read_notes(opened.model_folder)
    task = asked_task(notes.task, notes.form)
    converses = task is not None and any(field.name == "messages" for form in task.forms for field in form)
    start = [{"role": "system", "content": system}] if system else []
    turns = list(start)
    while (line := _read_line()) is not None:
        if line == "/new":
            turns = list(start)
            continue
        turns.append({"role": "user", "content": line})
        [prediction] = opened.predict([{"messages": turns}] if converses else [line])
        turns.append({"role": "assistant", "content": prediction.answer})
        if as_json:
            print_json(prediction.as_dict())
        else:
            print(prediction.answer, flush=True)


def _read_line() -> str | None:
    """The next line of the user, or None at the end of the conversation."""
    if sys.stdin.isatty():
        stderr().print("you> ", end="", style="bold cyan")
    line = sys.stdin.readline().strip()
    return None if not line or line in EXIT_WORDS else line
