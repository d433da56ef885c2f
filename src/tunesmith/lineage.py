"""Runs that begin where other runs ended: a finished run as the base model of another recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tunesmith import disk, runs
from tunesmith.errors import UsageError

MERGED = "merged"
"""Folder in a run's folder: its adapter merged into the base, made when another run first begins from it."""


def run_folder(model: str) -> Path | None:
    """The folder of the run that a recipe names as its model; ``None`` if it names another kind of model."""
    path = disk.path_of(model)
    return path if (path / "recipe.yaml").is_file() else None


def model_of_run(folder: Path) -> Path:
    """A plain model folder of a finished run: its model, or its adapter merged into what that was trained on.

    Raises:
        UsageError: The run has no model yet.
    """
    _refuse_unfinished(folder)
    from tunesmith.models.merging import merge_artefact
    from tunesmith.models.saving import read_notes

    if not read_notes(folder / "model").adapter:
        return folder / "model"
    merged = folder / MERGED
    if not merged.is_dir():
        merge_artefact(folder / "model", merged)
    return merged


def ancestors(model: str) -> list[dict[str, Any]]:
    """The runs that lie behind a model, the oldest first; empty for a model that no run made.

    Returns:
        For each run its id, folder, task, method, base model and metrics.

    Raises:
        UsageError: The run has not finished.
    """
    folder = run_folder(model)
    if folder is None:
        return []
    _refuse_unfinished(folder)
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    run = runs.Run(folder)
    recipe = run.recipe
    own = {
        "run": run.id,
        "path": str(folder),
        "task": recipe.task,
        "method": recipe.method,
        "model": recipe.model,
        "metrics": summary["metrics"],
    }
    return [*summary.get("lineage", []), own]


def _refuse_unfinished(folder: Path) -> None:
    if not (folder / "model" / "tunesmith.json").is_file() or not (folder / "summary.json").is_file():
        raise UsageError(
            "the run has not finished: there is no model yet that another could begin from",
            where=str(folder),
            fix=f"let it finish first: {runs.Run(folder).how_to_finish()}",
        )


def as_text(lineage: list[dict[str, Any]], last: str) -> str:
    """One line: the first base model, each run with its task, and what came out."""
    steps = [lineage[0]["model"], *(f"{step['run']} ({step['task']}, {step['method']})" for step in lineage), last]
    return " → ".join(steps)
