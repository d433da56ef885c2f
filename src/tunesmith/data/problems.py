"""What is wrong with data: single faults as they are found, and the report that groups them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from tunesmith.data import common_words
from tunesmith.data.rows import Origin
from tunesmith.errors import DataError

Severity = Literal["error", "warning"]

PLACES = 10
"""How many places a problem names; it counts all."""

KINDS_PER_CODE = 50
"""How many differing messages of one code are kept apart, so that a report stays readable and memory bounded."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong in one place.

    Attributes:
        code: Stable name of the kind, e.g. ``bad-json``.
        message: What is wrong. Where messages of one ``group`` differ, a report shows what they share.
        origin: File and line; ``None`` for what concerns the whole set.
        severity: ``error`` or ``warning``.
        fix: How to mend it.
        raw: The offending text, for the file of rows left out.
        group: Faults of one code and one group are counted together.
        whole_file: The rest of the file could not be read, so leaving out a row does not help.
    """

    code: str
    message: str
    origin: Origin | None
    severity: Severity = "error"
    fix: str | None = None
    raw: str | None = None
    group: str = ""
    whole_file: bool = False


@dataclass(frozen=True, slots=True)
class LeftOut(Fault):
    """What was left out of a page because it is no text, as it should be: a note of the check, none of its problems.

    Attributes:
        characters: Element -> characters of it, white space aside.
    """

    characters: Mapping[str, int] = field(default_factory=dict)


def kind_of(message: str) -> str:
    """What faults that differ in their numbers alone have in common: their ``group``."""
    return re.sub(r"\d+", "#", message)


@dataclass(frozen=True)
class Problem:
    """All faults of one kind.

    Attributes:
        code: Stable name of the kind.
        severity: ``error`` stops training, ``warning`` does not.
        message: What is wrong.
        where: The first places, at most :data:`PLACES`.
        count: How many there are in all.
        fix: How to mend it.
        dropped: How many rows were left out because of it (only with ``data.drop_bad``).
        stage: Whose data it is in; empty where there is one stage.
        in_rows: Whether leaving out rows (``data.drop_bad``) mends it.
    """

    code: str
    severity: Severity
    message: str
    where: list[Origin]
    count: int
    fix: str | None = None
    dropped: int = 0
    stage: str = ""
    in_rows: bool = False

    def as_dict(self) -> dict[str, Any]:
        """The problem as ``tunesmith check --json`` prints it."""
        return {
            "code": self.code,
            "severity": self.severity,
            "message": self.message,
            "where": [str(origin) for origin in self.where],
            "count": self.count,
            "fix": self.fix,
            "dropped": self.dropped,
            **({"stage": self.stage} if self.stage else {}),
        }


class Findings:
    """Collects faults and groups them, in bounded memory."""

    def __init__(self, *, drop_bad: bool) -> None:
        self.drop_bad = drop_bad
        self._groups: dict[tuple[str, str], Problem] = {}
        self._firsts: dict[tuple[str, str], tuple[str, str | None]] = {}  # message and fix of the first of a group
        self._kinds: dict[str, int] = {}

    def add(self, fault: Fault) -> bool:
        """Count one fault.

        Returns:
            Whether the row it concerns has to be left out (an error in a single row).
        """
        row_error = fault.severity == "error" and not fault.whole_file and fault.origin is not None
        dropped = int(row_error and self.drop_bad)
        self._count(
            fault.code,
            "warning" if dropped else fault.severity,
            fault.message,
            [fault.origin] if fault.origin else [],
            1,
            fix=fault.fix,
            dropped=dropped,
            group=fault.group,
            in_rows=row_error,
        )
        return row_error

    def add_many(
        self,
        code: str,
        severity: Severity,
        message: str,
        where: list[Origin],
        count: int,
        *,
        fix: str | None = None,
        dropped: int = 0,
        group: str = "",
        in_rows: bool = False,
    ) -> None:
        """Count many faults that were found together."""
        if count:
            self._count(code, severity, message, where, count, fix=fix, dropped=dropped, group=group, in_rows=in_rows)

    def _count(
        self,
        code: str,
        severity: Severity,
        message: str,
        where: list[Origin],
        count: int,
        *,
        fix: str | None,
        dropped: int,
        group: str,
        in_rows: bool,
    ) -> None:
        key = (code, group)
        known = self._groups.get(key)
        if known is None:
            if self._kinds.get(code, 0) >= KINDS_PER_CODE:
                key, message = (code, "\0others"), f"further cases of {code}"
                known = self._groups.get(key)
            self._kinds[code] = self._kinds.get(code, 0) + (known is None)
        if known is None:
            self._groups[key] = Problem(code, severity, message, where[:PLACES], count, fix, dropped, "", in_rows)
            self._firsts[key] = message, fix
        else:
            self._groups[key] = replace(
                known,
                message=common_words.common(known.message, message),
                fix=common_words.common(known.fix, fix) if known.fix and fix else known.fix,
                severity="error" if "error" in (severity, known.severity) else "warning",
                where=known.where if len(known.where) == PLACES else [*known.where, *where][:PLACES],
                count=known.count + count,
                dropped=known.dropped + dropped,
                in_rows=known.in_rows or in_rows,
            )

    @property
    def has_errors(self) -> bool:
        """Whether anything found so far stops training."""
        return any(problem.severity == "error" for problem in self._groups.values())

    def problems(self) -> list[Problem]:
        """Everything found, errors first, in the order of discovery."""
        return sorted(map(self._told, self._groups), key=lambda problem: problem.severity)

    def _told(self, key: tuple[str, str]) -> Problem:
        """A problem whose details are those of all its rows, or named as those of the first."""
        problem, (message, fix) = self._groups[key], self._firsts[key]
        told = common_words.with_details(problem.message, message)
        return replace(
            problem,
            message=f"{told} (left out: {problem.dropped})" if problem.dropped else told,
            fix=common_words.with_details(problem.fix, fix) if problem.fix and fix else problem.fix,
        )


@dataclass(frozen=True)
class CheckReport:
    """What ``tunesmith check`` knows about a data set.

    Attributes:
        problems: Errors first.
        rows: Split -> rows that will be used.
        rows_read: Part of the recipe (``train``, ...) -> records found in its files, good or bad.
        rows_left_out: Reason -> rows not used (``errors``, ``duplicates``, ``max_rows``, ``leaks``).
        classes: Split -> label -> rows; empty for tasks without labels. Where a row may have any number of labels: part
            of the recipe -> label -> how often it occurs.
        lengths: Split -> ``characters`` or ``tokens`` -> ``count``, ``mean``, ``min``, ``p50`` ... ``max``.
        columns: Which column was taken for which field in which files, and how it was chosen.
        notes: Limits of this check, e.g. that near duplicates were sought in a sample.
        stages: With several stages each one's own report, by name; all else but the problems is then the last one's.
    """

    problems: list[Problem]
    rows: dict[str, int]
    rows_read: dict[str, int]
    rows_left_out: dict[str, int] = field(default_factory=dict)
    classes: dict[str, dict[str, int]] = field(default_factory=dict)
    lengths: dict[str, dict[str, Mapping[str, float]]] = field(default_factory=dict)
    columns: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    stages: dict[str, CheckReport] = field(default_factory=dict)

    @staticmethod
    def of_stages(reports: Mapping[str, CheckReport], last: CheckReport) -> CheckReport:
        """One report of all stages, whose problems say where they belong; the last one's where there is no other."""
        if len(reports) == 1:
            return last
        found = [replace(problem, stage=name) for name, report in reports.items() for problem in report.problems]
        return replace(last, problems=sorted(found, key=lambda problem: problem.severity), stages=dict(reports))

    @property
    def errors(self) -> list[Problem]:
        """Problems that stop training."""
        return [problem for problem in self.problems if problem.severity == "error"]

    @property
    def warnings(self) -> list[Problem]:
        """Problems that do not."""
        return [problem for problem in self.problems if problem.severity == "warning"]

    def as_dict(self) -> dict[str, Any]:
        """The report as ``tunesmith check --json`` prints it."""
        return {
            "ok": not self.errors,
            "problems": [problem.as_dict() for problem in self.problems],
            "rows": self.rows,
            "rows_read": self.rows_read,
            "rows_left_out": self.rows_left_out,
            "classes": self.classes,
            "lengths": self.lengths,
            "columns": self.columns,
            "notes": self.notes,
            **({"stages": {name: report.as_dict() for name, report in self.stages.items()}} if self.stages else {}),
        }

    def raise_errors(self) -> None:
        """Stop if the data cannot be used.

        Raises:
            DataError: Names the first error with its place, its count, and how many others there are.
        """
        errors = self.errors
        if not errors:
            return
        first = errors[0]
        more = f" ({first.count} such rows)" if first.count > 1 else ""
        others = len(errors) - 1
        tail = f"; and {others} other kind{'s' if others > 1 else ''} of error: see `tunesmith check`" if others else ""
        stage = f"stage {first.stage}: " if first.stage else ""
        raise DataError(
            f"{stage}{first.message}{more}{tail}", where=str(first.where[0]) if first.where else None, fix=first.fix
        )
