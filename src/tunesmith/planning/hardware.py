"""The table of machines: the one that comes with Tunesmith, and the user's own on top of it."""

from __future__ import annotations

import datetime
import difflib
import os
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError

from tunesmith import strict_yaml
from tunesmith.errors import NotFoundError, UsageError
from tunesmith.strict import Part
from tunesmith.yaml_lines import Lines, as_usage_error, places

THIS = "this"
"""The name by which a user's table gives the machine that plans a price."""
STALE_DAYS = 60


class Hardware(Part):
    """One machine; see the comments of ``machines.yaml``."""

    name: str
    title: str
    kind: Literal["gpu", "cpu"]
    memory_gb: float = Field(gt=0)
    bandwidth_gb: float = Field(gt=0)
    bf16_tflops: float = Field(gt=0)
    fp32_tflops: float = Field(gt=0)
    link_gb: float = Field(default=0.0, ge=0)
    source: str = "your own table"
    checked: datetime.date | None = None
    price_per_hour: float | None = Field(default=None, ge=0)
    price_source: str = "your own table"
    price_date: datetime.date | None = None

    @property
    def price_note(self) -> str:
        """Where the price is from, of when, and whether that is long ago."""
        if self.price_per_hour is None:
            return ""
        if self.price_date is None:
            return self.price_source
        age = (datetime.date.today() - self.price_date).days
        old = f"; {age} days old: look it up again" if age > STALE_DAYS else ""
        return f"{self.price_source}, {self.price_date}{old}"


def machines(own: Path | None = None) -> dict[str, Hardware]:
    """All machines by name.

    Args:
        own: The user's table; default: :func:`own_table`, if there is one.

    Raises:
        UsageError: The user's table is malformed, or a figure in it cannot be.
        NotFoundError: The table that was asked for is not there.
    """
    shipped = resources.files("tunesmith.planning").joinpath("machines.yaml").read_text(encoding="utf-8")
    table = _entries(shipped, "machines.yaml")
    path = own or own_table()
    if own is not None and not own.is_file():
        raise NotFoundError("there is no table of machines", where=str(own), fix="name a file for --machines")
    lines: Lines = {}
    if path.is_file():
        text = _read(path)
        entries, lines = _entries(text, str(path)), places(text, str(path))
        for name, entry in entries.items():
            # the price's source is that of the price: it does not outlive it
            known = {k: v for k, v in table.get(name, {}).items() if "price_per_hour" not in entry or "price" not in k}
            table[name] = known | entry
    return {name: _checked(name, entry, str(path), lines) for name, entry in table.items() if name != THIS}


def price_of_this(own: Path | None = None) -> Hardware | None:
    """What the user's table says about the machine that plans: only its price counts."""
    path = own or own_table()
    text = _read(path) if path.is_file() else None
    entry = None if text is None else _entries(text, str(path)).get(THIS)
    if text is None or entry is None:
        return None
    unknown = {"title": "this machine", "kind": "cpu", **dict.fromkeys(_FIGURES, 1.0)}
    return _checked(THIS, unknown | entry, str(path), places(text, str(path)))


def find(name: str, own: Path | None = None) -> Hardware:
    """A machine by name.

    Raises:
        NotFoundError: There is none of this name; those that there are, are named.
    """
    known = machines(own)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        meant = f"did you mean `{near[0]}`? " if near else ""
        raise NotFoundError(
            f"no machine is called {name!r}",
            where="--machine",
            fix=f"{meant}Known are {', '.join(known)}; others go into a file for --machines",
        )
    return known[name]


def own_table() -> Path:
    """Where the user's own table is looked for: the folder of configurations, which need not be there."""
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "tunesmith" / "machines.yaml"


_FIGURES = ("memory_gb", "bandwidth_gb", "bf16_tflops", "fp32_tflops")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        fix = "save it as UTF-8, or remove it"
        raise UsageError("the table of machines is no UTF-8 text", where=str(path), fix=fix) from error


def _entries(text: str, where: str) -> dict[str, dict[str, Any]]:
    try:
        tree = strict_yaml.load(text)
    except yaml.YAMLError as error:
        line = getattr(getattr(error, "problem_mark", None), "line", None)
        place = where if line is None else f"{where}:{line + 1}"
        raise UsageError("the table of machines is no YAML", where=place, fix="mend or remove it") from error
    found = tree.get("machines") if isinstance(tree, dict) else None
    if not isinstance(found, dict) or not all(isinstance(entry, dict) for entry in found.values()):
        raise UsageError(
            "the table has no machines", where=where, fix="write `machines:`, and below it a name with its figures"
        )
    return found


def _checked(name: str, entry: dict[str, Any], where: str, lines: Lines) -> Hardware:
    try:
        return Hardware.model_validate({"name": name, **entry})
    except ValidationError as error:
        fix = "see the comments of the table that comes with Tunesmith, or remove the line"
        raise as_usage_error(error, lines, fix=fix, under=("machines", name), file=where) from error
