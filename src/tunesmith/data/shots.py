"""Few examples: so many of each label, drawn by a seed. What is drawn for k is part of what is drawn for more."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tunesmith.data.rows import Origin, Row
from tunesmith.errors import DataError
from tunesmith.recipe import Data, InContext
from tunesmith.tasks.base import Task

if TYPE_CHECKING:
    from tunesmith.data.prepare import PreparedData

_NAMED = 5


@dataclass(frozen=True)
class Shown:
    """Examples that a model is shown before each question.

    Attributes:
        rows: All of them, or with ``choose: nearest`` those to choose from.
        settings: How many, which, and whether labels are calibrated.
    """

    rows: Sequence[Row]
    settings: InContext

    def save(self, path: Path) -> None:
        """Write them as JSON."""
        rows = [{"fields": row.fields, "file": row.origin.file, "line": row.origin.line} for row in self.rows]
        content = {"settings": self.settings.model_dump(mode="json"), "rows": rows}
        path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

    @staticmethod
    def load(path: Path) -> Shown:
        """Read back what :meth:`save` wrote."""
        content = json.loads(path.read_text(encoding="utf-8"))
        rows = [Row(row["fields"], Origin(row["file"], row["line"])) for row in content["rows"]]
        return Shown(rows, InContext.model_validate(content["settings"]))


def shots_per_label(rows: Sequence[Row], k: int, task: Task, seed: int) -> list[Row]:
    """Up to k rows of each label, in the drawn order; of a task without one label a row, k rows in all."""
    taken: Counter[str] = Counter()
    chosen = []
    for n in np.random.default_rng([seed, 1]).permutation(len(rows)).tolist():
        label = task.target_text(rows[n]) if task.answer == "label" else ""
        if taken[label] < k:
            taken[label] += 1
            chosen.append(rows[n])
    return chosen


def few_shot(prepared: PreparedData, task: Task, data: Data) -> PreparedData:
    """The data with ``data.shots`` training rows of each label; the test rows stay as they are.

    A share of the training data for validation is given up: choices made on many labelled rows are no few-shot
    learning (Perez et al. 2021, arXiv 2105.11447). Validation data of its own, which somebody asked for, are kept.

    Raises:
        DataError: A label has fewer training rows than that.
    """
    assert data.shots is not None
    counts = Counter(task.target_text(row) if task.answer == "label" else "" for row in prepared.train)
    found = too_few(counts, data.shots, task.answer == "label")
    if found is not None:
        raise DataError(found[0], where="data.shots", fix=found[1])
    train = shots_per_label(prepared.train, data.shots, task, data.shots_seed)
    validation: Sequence[Row] = prepared.validation if isinstance(data.validation, list) else []
    unused = len(prepared.train) + len(prepared.validation) - len(train) - len(validation)
    left_out = {**prepared.report.rows_left_out, **({"shots": unused} if unused else {})}
    report = dataclasses.replace(
        prepared.report,
        rows={**prepared.report.rows, "train": len(train), "validation": len(validation)},
        rows_left_out=left_out,
        classes=_classes(prepared, task, {"train": train, "validation": validation}),
        notes=[*prepared.report.notes, f"{len(train)} training rows: {data.shots} of each label (`data.shots`)"],
    )
    drawn = f"{prepared.fingerprint} {data.shots} {data.shots_seed}".encode()
    fingerprint = hashlib.blake2b(drawn, digest_size=16).hexdigest()
    return dataclasses.replace(prepared, train=train, validation=validation, report=report, fingerprint=fingerprint)


def too_few(counts: Mapping[str, int], k: int, has_labels: bool) -> tuple[str, str] | None:
    """What is wrong and what to do if there are not k training rows (of each label); else ``None``.

    Args:
        counts: Label -> training rows; without labels the number of all under any name.
        k: ``data.shots``.
        has_labels: Whether each row has one label.
    """
    short = sorted((count, label) for label, count in counts.items() if count < k)
    if not short:
        return None
    fix = f"use `data.shots: {short[0][0]}`, or label more examples"
    if not has_labels:
        return f"`data.shots: {k}` asks for more than the {short[0][0]} training rows", fix
    named = ", ".join(f"{label!r} has {count}" for count, label in short[:_NAMED])
    more = f", and {len(short) - _NAMED} more labels have too few" if len(short) > _NAMED else ""
    return f"`data.shots: {k}` asks for {k} examples of each label, but of the training rows {named}{more}", fix


def _classes(prepared: PreparedData, task: Task, parts: dict[str, Sequence[Row]]) -> dict[str, dict[str, int]]:
    """The balance of the classes, with the parts that changed counted again."""
    if not prepared.report.classes:
        return {}
    classes = {part: counts for part, counts in prepared.report.classes.items() if part not in parts}
    for part, rows in parts.items():
        if rows:
            counts = Counter(task.target_text(row) for row in rows)
            classes[part] = {label: counts[label] for label in prepared.labels or []}
    return classes
