"""The Python face: the same five steps as the command line, in one call."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith import disk, recipe_file, runs
from tunesmith.errors import DataError, UsageError
from tunesmith.events import Listener
from tunesmith.recipe import Recipe
from tunesmith.runs import Run

if TYPE_CHECKING:
    from tunesmith.models.adapter_set import AdapterSet
    from tunesmith.planning import Plan


def tune(
    data: Any,
    *,
    task: str,
    model: str,
    method: str = "supervised",
    run_dir: str | Path | None = None,
    on_event: Listener | None = None,
    **keys: Any,
) -> Run:
    """Tune a model and measure it.

    Args:
        data: A file, a folder, ``hub:name`` or a catalog name, a list of these; or rows in memory: a list of
            dictionaries, a pandas DataFrame, a ``datasets.Dataset``.
        task: As in a recipe.
        model: As in a recipe.
        method: As in a recipe.
        run_dir: The run's folder; default: a new one below ``runs/``.
        on_event: Told everything that happens; default: a progress bar.
        **keys: Further keys of a recipe: ``training={"epochs": 1}``, ``evaluate=...``, ``data`` without ``train``.

    Raises:
        TunesmithError: What is wrong, where, and how to mend it.
    """
    from tunesmith import pipeline, progress

    tree = {"task": task, "model": model, "method": method, **keys}
    chosen = recipe_file.parse(tree | {"data": {"train": []} | dict(keys.get("data", {}))})
    folder = Path(run_dir) if run_dir is not None else runs.new_run_folder(chosen)
    runs.refuse_occupied(folder)  # before rows in memory are written over those of the run that is there
    train = _files(data, folder)
    chosen = chosen.model_copy(update={"data": chosen.data.model_copy(update={"train": train})})
    if on_event is not None:
        return pipeline.run(chosen, run_dir=folder, on_event=on_event)
    with progress.shown() as shown:
        return pipeline.run(chosen, run_dir=folder, on_event=shown)


def load(path: str | Path) -> Run:
    """Open a run on disk."""
    return runs.open_run(path)


def load_adapters(named: Mapping[str, str | Path | Run]) -> AdapterSet:
    """Load the adapters of several runs on the base that they share, to switch, combine and merge them.

    Args:
        named: Name -> run, by its folder or its name below ``runs/``.

    Raises:
        UsageError: The runs do not share a base, or their models are no adapters that can be switched.
        NotFoundError: There is no such run.
    """
    from tunesmith.models.adapter_set import AdapterSet

    opened = {name: run if isinstance(run, Run) else runs.open_run(run) for name, run in named.items()}
    return AdapterSet({name: run.model_folder for name, run in opened.items()})


def plan(recipe: Recipe) -> Plan:
    """Parameters, memory, tokens and time of a recipe, before anything is trained."""
    from tunesmith import planning

    return planning.plan(recipe)


@dataclass(frozen=True)
class RunComparison:
    """Several runs on the same test rows; the first is what the others are compared with.

    Attributes:
        metric: The primary metric.
        rows: One dictionary a run: ``name``, ``value``, and for all but the first ``difference``, ``p``, ``outcome``.
        verdict: One sentence.
        sequence: Of runs that learned the same tasks in turn: how their average over the tasks, backward transfer and
            forgetting differ, one dictionary each: ``name``, ``values`` and ``differences`` to the first, an interval a
            run. Empty for others.
    """

    metric: str
    rows: list[dict[str, Any]]
    verdict: str
    sequence: list[dict[str, Any]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """The comparison as ``tunesmith compare --json`` prints it."""
        found: dict[str, Any] = {"metric": self.metric, "runs": self.rows, "verdict": self.verdict}
        return found | ({"sequence": self.sequence} if self.sequence else {})


def compare(*paths: str | Path | Run) -> RunComparison:
    """Compare finished runs row by row.

    Raises:
        UsageError: Fewer than two runs, other tasks, or other test rows.
    """
    from tunesmith.evaluation.run_comparison import compare_forgetting, compare_runs

    if len(paths) < 2:
        raise UsageError("a comparison needs two runs or more", fix="tunesmith compare RUN RUN")
    opened = [p if isinstance(p, Run) else runs.open_run(p) for p in paths]
    return RunComparison(*compare_runs(opened), compare_forgetting(opened))


def _files(data: Any, folder: Path) -> list[str]:
    """Names of sources; rows in memory are written into the run's folder, where a resume finds them."""
    if isinstance(data, str | Path):
        return [str(data)]
    if hasattr(data, "to_dict") and hasattr(data, "columns"):  # a pandas DataFrame
        data = data.to_dict(orient="records")
    values = list(data)
    if values and all(isinstance(value, str | Path) for value in values):
        return [str(value) for value in values]
    path = folder / "rows.jsonl"
    disk.write_text(path, "".join(_line(value, number) for number, value in enumerate(_mappings(values), 1)))
    return [str(path)]


def _mappings(values: Iterable[Any]) -> Iterable[Mapping[str, Any]]:
    for number, value in enumerate(values, 1):
        if not isinstance(value, Mapping):
            raise DataError(
                f"the row is no dictionary, but of the type `{type(value).__name__}`",
                where=f"row {number}",
                fix='give rows such as {"text": ..., "label": ...}',
            )
        yield value


def _line(row: Mapping[str, Any], number: int) -> str:
    try:
        return json.dumps(dict(row), ensure_ascii=False, default=_plain) + "\n"
    except TypeError as error:
        raise DataError(f"row {number} cannot be written as JSON: {error}", where=f"row {number}") from error


def _plain(value: Any) -> Any:
    """NumPy numbers and arrays as plain ones."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__} is not plain data")
