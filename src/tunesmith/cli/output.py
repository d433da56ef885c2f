"""What commands print: data on stdout (a table for people, one JSON object for programs), talk on stderr."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, errors included.")]
Run = Annotated[str, typer.Argument(metavar="RUN", help="The folder of a run, or its name under `runs/`.")]

WIDE = 240  # columns of output that goes to a file or a pipe: nothing is wrapped for a screen that is not there


def stdout() -> Console:
    """The console for data."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else WIDE, highlight=False)


def stderr() -> Console:
    """The console for everything that is not data."""
    from rich.console import Console

    return Console(stderr=True, width=None if sys.stderr.isatty() else WIDE, highlight=False)


def print_json(value: Any) -> None:
    """Print one JSON value on one line. A number that JSON does not have (NaN, infinity) becomes ``null``."""
    print(json.dumps(_finite(value), ensure_ascii=False, default=str), flush=True)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str | None = None) -> None:
    """Print a table on stdout; cells are shown as they are, never read as markup."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*(Text("" if cell is None else str(cell)) for cell in row))
    stdout().print(table)


def print_pairs(pairs: Iterable[tuple[str, object]]) -> None:
    """Print names and values on stdout, one pair a line."""
    shown = [(name, value) for name, value in pairs if value is not None]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        print(f"{name:<{width}}  {value}")
