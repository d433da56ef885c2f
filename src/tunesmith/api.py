"""The Python face: the same five steps as the command line, in one call."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith import recipe_file, runs
from tunesmith.errors import UsageError
from tunesmith.events import Listener
from tunesmith.recipe import Recipe
from tunesmith.runs import Run

if TYPE_CHECKING:
    from tunesmith.adapter_set import AdapterSet
    from tunesmith.planning import Plan

ROW_FILES = {"train": "rows.jsonl", "validation": "rows-validation.jsonl", "test": "rows-test.jsonl"}
"""Where the rows of each part that were given in memory lie in the run's folder: there a resume finds them."""

_ONE_VALUE = (type(None), str, Real)  # nothing, a name or a share, which may be a number of NumPy


def tune(
    data: Any = None,
    /,
    *,
    task: str,
    model: str,
    method: str = "supervised",
    validation: Any = None,
    test: Any = None,
    run_dir: str | Path | None = None,
    on_event: Listener | None = None,
    **keys: Any,
) -> Run:
    """Tune a model and measure it.

    Args:
        data: A file, a folder, ``hub:name`` or a catalog name, a list of these; or rows in memory: a list of
            dictionaries, a pandas DataFrame, a ``datasets.Dataset``, anything that gives one dictionary a row.
        task: As in a recipe.
        model: As in a recipe.
        method: As in a recipe.
        validation: Data to make choices on: a share of `data`, or names or rows as there. Default: as in a recipe.
        test: Data to measure on, in the same forms.
        run_dir: The run's folder; default: a new one below ``runs/``.
        on_event: Told everything that happens; default: a progress bar.
        **keys: Further keys of a recipe: ``training={"epochs": 1}``, ``evaluate=...``; ``data={"columns": ...}`` has
            those of the data besides the above. Without a first argument `data` may also be what that would be.

    Raises:
        TunesmithError: What is wrong, where, and how to mend it.
    """
    from tunesmith import pipeline, progress
    from tunesmith.data import in_memory

    further = keys.pop("data", None)
    if not isinstance(further, Mapping):
        further = {} if further is None else {"train": further}
    given = _data_keys(data, validation, test, dict(further))
    rows = {part: value for part, value in given.items() if isinstance(value, Iterator)}
    named = given | {part: [ROW_FILES[part]] for part in rows}
    chosen = recipe_file.parse({"task": task, "model": model, "method": method, **keys, "data": named})
    folder = Path(run_dir) if run_dir is not None else runs.new_run_folder(chosen)
    runs.refuse_occupied(folder)  # before rows in memory are written over those of the run that is there
    files = {part: [str(in_memory.write_rows(value, folder / ROW_FILES[part]))] for part, value in rows.items()}
    chosen = chosen.model_copy(update={"data": chosen.data.model_copy(update=files)})
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
    from tunesmith.adapter_set import AdapterSet

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

    def _repr_html_(self) -> str:
        """In a notebook: the verdict, and the runs beside each other."""
        from tunesmith import display

        return display.html(self.verdict, display.of_comparison(self), display.of_sequence(self))


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


def _data_keys(train: Any, validation: Any, test: Any, further: dict[str, Any]) -> dict[str, Any]:
    """The keys of ``data``: names, shares, and where rows were given an iterator over them.

    Raises:
        UsageError: A part is given twice.
    """
    from tunesmith.data.in_memory import names_or_rows

    parts = {"train": train, "validation": validation, "test": test}
    told = {part: value for part, value in parts.items() if value is not None}
    twice = next((part for part in told if part in further), None)
    if twice is not None:
        fix = "give them first, or by `data=`" if twice == "train" else f"give it by `{twice}=`, or in `data`"
        raise UsageError(f"the {twice} data are given twice", where=f"data.{twice}", fix=fix)
    given = {**further, **told}
    numbers = {part: given[part] for part in parts if isinstance(given.get(part), Real)}
    shares = {part: float(number) for part, number in numbers.items() if not isinstance(number, int)}
    names = {part: names_or_rows(given[part]) for part in parts if not isinstance(given.get(part), _ONE_VALUE)}
    return given | shares | names
