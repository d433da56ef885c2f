"""The run directory: the one truth about a run, which every face reads.

Layout: ``recipe.yaml``, ``environment.json``, ``plan.json``, ``events.jsonl``, ``metrics.jsonl``,
``stages/1-<name>/checkpoints/``, ``model/``, ``predictions.jsonl``, ``summary.json``, ``report.json``, ``report.html``.
Files are written whole or not at all; logs only grow.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith import recipe_file
from tunesmith.disk import append_line, lines_of, read_log, write_text
from tunesmith.errors import NotFoundError, UsageError
from tunesmith.events import Event, Progress
from tunesmith.recipe import Recipe

if TYPE_CHECKING:
    from tunesmith.evaluation.intervals import Interval
    from tunesmith.models.model import Model
    from tunesmith.models.saving import ArtefactNotes
    from tunesmith.prediction.predicting import Prediction

DEFAULT_ROOT = Path("runs")
EVALUATIONS = "evaluations"  # folder in a run's folder: what `tunesmith eval --data` measured, each in a folder below
QUANTIZED = "quantized"  # the same of `tunesmith quantize`: each a run of its own
LOCK = ".lock"  # file in a run's folder that the process holds which works on it
LAST_WORDS = ("run_finished", "run_failed")
"""Types of the events with which a process ends its work on a run."""
_TO_BE_CHANGED = ("usage", "recipe", "data", "reward")
"""Codes of errors after which a run that has learned nothing is begun anew, with another recipe or other data."""


def new_run_folder(recipe: Recipe, root: Path = DEFAULT_ROOT) -> Path:
    """A folder name that says what and when, and that no other run has."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return root / f"{stamp}-{recipe.task}-{recipe.method}-{secrets.token_hex(2)}"


def refuse_occupied(folder: Path) -> None:
    """A folder holds one run. One that failed before it learned anything makes room for the next try.

    Raises:
        UsageError: There is a run already that holds something.
    """
    if not (folder / "recipe.yaml").exists():
        return
    if Run(folder).status != "failed" or _has_learned(folder):
        raise UsageError(
            "there is a run in this folder already",
            where=str(folder),
            fix=f"go on with it by `tunesmith resume {folder}`, remove it by `tunesmith runs rm {folder}`, or name "
            "another folder",
        )


def _has_learned(folder: Path) -> bool:
    """Whether a run left anything that it can be resumed from."""
    left = ("model", *(f"stages/*/{name}" for name in ("checkpoints/*", "merged", "adapter")))
    return any(next(folder.glob(name), None) for name in left)


def start_anew(folder: Path) -> None:
    """Take away the logs of a try that :func:`refuse_occupied` lets pass: they would count as this run's."""
    for name in ("events.jsonl", "metrics.jsonl") if (folder / "recipe.yaml").exists() else ():
        (folder / name).unlink(missing_ok=True)


class EventLog:
    """Appends events to ``events.jsonl``, and the numbers of steps and validations to ``metrics.jsonl``."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._events = folder / "events.jsonl"
        self._metrics = folder / "metrics.jsonl"

    def __call__(self, event: Event) -> None:
        """Write one event; progress of small things is not worth a line."""
        if isinstance(event, Progress):
            return
        line = event.as_dict()
        append_line(self._events, line)
        if line["type"] in ("step", "validated"):
            append_line(self._metrics, line)


def read_events(folder: Path) -> Iterator[dict[str, Any]]:
    """The events of a run; a line that was cut by a kill is left out."""
    return read_log(folder / "events.jsonl")


def _last_word(folder: Path) -> dict[str, Any] | None:
    """The event with which the last process ended its work on a run; ``None`` if it has not, or was killed."""
    path = folder / "events.jsonl"
    for line in _lines_from_the_end(path) if path.is_file() else ():
        try:
            event: dict[str, Any] = json.loads(line)
        except ValueError:  # cut by a kill
            continue
        if event["type"] in LAST_WORDS:
            return event
        if event["type"] in ("run_started", "step"):  # after its last word a run may be measured, but not tuned
            return None
    return None


def _lines_from_the_end(path: Path, block: int = 1 << 16) -> Iterator[bytes]:
    """The lines of a file, the last one first."""
    with path.open("rb") as file:
        position, rest = file.seek(0, os.SEEK_END), b""
        while position > 0:
            size = min(block, position)
            position -= size
            file.seek(position)
            rest, *whole = (file.read(size) + rest).split(b"\n")
            yield from reversed(whole)
        yield rest


def is_at_work(folder: Path) -> bool | None:
    """Whether a process works on a run at this moment: it holds the lock.

    Returns:
        ``None`` where that cannot be tried, as in an archive that cannot be written to.
    """
    import filelock

    lock = folder / LOCK
    if not lock.is_file():
        return False
    try:
        with filelock.FileLock(lock, timeout=0.3):  # somebody else may be looking whether it is held
            return False
    except filelock.Timeout:
        return True
    except OSError:
        return None


def worked_seconds(folder: Path, until: float | None = None) -> float:
    """What all processes that worked on a run took, by the times of their events.

    A process begins with ``run_started``. It ends with its last word; one that was killed ends with its last event
    before the run was begun again or measured again.

    Args:
        folder: The run's.
        until: When the process that is at work now ends; default: with its last event so far.
    """
    spans: list[tuple[float, float]] = []
    at_work = False
    for event in read_events(folder):
        if event["type"] == "run_started":
            spans.append((event["time"], event["time"]))
            at_work = True
        elif event["type"] == "measured_again":
            at_work = False
        elif at_work:
            spans[-1] = (spans[-1][0], event["time"])
            at_work = event["type"] not in LAST_WORDS
    if at_work and until is not None:
        spans[-1] = (spans[-1][0], until)
    return sum(max(0.0, end - start) for start, end in spans)  # somebody may have set the clock back


class Run:
    """A run on disk. Nothing is loaded before it is asked for.

    Args:
        path: The run's folder.

    Raises:
        NotFoundError: There is no run in this folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not (self.path / "recipe.yaml").is_file():
            raise NotFoundError(
                "no run here: recipe.yaml is missing", where=str(path), fix="list the runs with `tunesmith runs list`"
            )
        self._loaded: tuple[Model, ArtefactNotes] | None = None

    @property
    def id(self) -> str:
        """Name of the run's folder; that of an evaluation or a quantized model begins with that of its run."""
        path = self.path.resolve()
        inside = path.parent.name in (EVALUATIONS, QUANTIZED)
        return f"{path.parents[1].name}/{path.name}" if inside else path.name

    @property
    def recipe(self) -> Recipe:
        """The recipe, as it was run."""
        return recipe_file.load(self.path / "recipe.yaml")

    @property
    def made_in(self) -> str | None:
        """The folder that the run was started in, from which relative paths of its recipe are named."""
        path = self.path / "environment.json"
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return found.get("folder")

    @property
    def status(self) -> str:
        """``finished``, ``interrupted`` or ``failed`` by the last word of its events.

        Without one ``started`` while a process is at work, ``stopped`` where none is any more (it was killed), and
        ``unknown`` where that cannot be found out.
        """
        word = _last_word(self.path)
        if word is None:
            return {True: "started", False: "stopped", None: "unknown"}[is_at_work(self.path)]
        if word["type"] == "run_finished":
            return "finished"
        return "interrupted" if word["interrupted"] else "failed"

    @property
    def failure(self) -> dict[str, str | None] | None:
        """What a failed run ended with, as errors are told: ``code``, ``what``, ``where``, ``fix``; else ``None``."""
        word = _last_word(self.path)
        failed = word is not None and word["type"] == "run_failed" and not word["interrupted"]
        return dict(word["error"]) if word is not None and failed else None

    @property
    def metrics(self) -> dict[str, Interval]:
        """Metrics of the tuned model on the test rows; empty before the run is finished."""
        return _intervals(self._summary().get("metrics", {}))

    @property
    def baselines(self) -> dict[str, dict[str, Interval]]:
        """The same of each system it was compared with."""
        return {name: _intervals(metrics) for name, metrics in self._summary().get("baselines", {}).items()}

    @property
    def verdict(self) -> str:
        """Whether tuning paid off, in one sentence; empty before the run is finished."""
        return str(self._summary().get("verdict", ""))

    @property
    def model_folder(self) -> Path:
        """What users load: a PEFT adapter or a full model; an evaluation has that of its run."""
        of_run = self.path.parent.parent if self.path.parent.name == EVALUATIONS else self.path
        return of_run / "model"

    def evaluations(self) -> list[Run]:
        """What ``tunesmith eval --data`` measured of it on other files, the newest first."""
        return list_runs(self.path / EVALUATIONS)

    def summary(self) -> dict[str, Any]:
        """What ``tunesmith tune --json`` prints.

        Raises:
            UsageError: The run is not finished.
        """
        summary = self._summary()
        if not summary:
            failure = self.failure
            what = f"the run failed: {described(failure)}" if failure else f"the run is not finished ({self.status})"
            raise UsageError(what, where=str(self.path), fix=self.how_to_finish())
        return summary

    def how_to_finish(self) -> str:
        """What to do about a run that is not finished."""
        resume = f"tunesmith resume {self.path}"
        failure = self.failure
        if failure is None:
            return {
                "started": "wait for the process that works on it",
                "unknown": f"wait for the process that works on it or, if none is running, {resume}",
            }.get(self.status, resume)
        fix = failure["fix"] or ""
        if failure["code"] in _TO_BE_CHANGED and not _has_learned(self.path):
            return f"{fix or 'mend the recipe or the data'}; then `tunesmith tune` again"
        return fix if "tunesmith resume" in fix else f"{fix}; then {resume}" if fix else resume

    def report(self) -> Path:
        """The path of ``report.html``."""
        return self.path / "report.html"

    def predict(self, rows: Sequence[Any], *, max_new_tokens: int | None = None) -> list[Prediction]:
        """Answer rows with the tuned model.

        Args:
            rows: Texts, or dictionaries (or a DataFrame) with the task's input fields (``text``, ``prompt`` or
                ``messages``), or with the columns that were trained on.
            max_new_tokens: Longest answer of a generating model; default: as in the recipe.

        Raises:
            NotFoundError: The run has no model yet.
            DataError: A row is empty, or lacks the input field.
            UsageError: One text was given in place of a list.
        """
        if isinstance(rows, str):  # else each of its letters would be a row
            raise UsageError("`predict` takes a list of rows, and this is one text", fix="run.predict([text])")
        from tunesmith.data.in_memory import to_answer
        from tunesmith.prediction.predicting import predict

        if self._loaded is None:
            from tunesmith.models.precision import default_device
            from tunesmith.models.saving import load_artefact

            self._loaded = load_artefact(self.model_folder, device=default_device())
        generation = self.recipe.evaluate.generation
        if max_new_tokens is not None:
            generation = generation.model_copy(update={"max_new_tokens": max_new_tokens})
        return predict(*self._loaded, self.under_field_names(to_answer(rows)), generation)

    def under_field_names(self, rows: Sequence[Any]) -> list[Any]:
        """Rows with the columns that were trained on under the names of the task's fields; texts as they are.

        A column that only bears the name of a field, where another one was trained on, gives way.
        """
        fields = self._fields()

        def renamed(row: dict[str, Any]) -> dict[str, Any]:
            known = {fields[column]: value for column, value in row.items() if column in fields}
            return {key: value for key, value in row.items() if key not in fields and key not in known} | known

        return [renamed(row) if isinstance(row, dict) else row for row in rows]

    def remedy_of_file(self, fix: str | None) -> str | None:
        """The remedy for a file that is read as the run's own data were, whose recipe is settled.

        Args:
            fix: What a recipe would mend.
        """
        key = re.search(r"\bdata\.(columns|encoding|format|drop_bad)\b", fix or "")
        if fix is None or key is None:
            return fix
        if key[1] == "drop_bad":
            mend, other, _ = fix.partition("; or ")
            return f"{mend}; or leave such rows out of the file" if other else "leave such rows out of the file"
        data = self.recipe.data
        if key[1] == "format":
            how = "by the end of its name" if data.format == "auto" else f"as {data.format}"
        elif key[1] == "encoding":
            how = f"in {data.encoding.upper()}"
        else:
            columns = ", ".join(f"`{column}`" for column in self._fields())
            how = "by the names of its columns" + (f": {columns}" if columns else "")
        return f"change the file: it is read as the run's own data were, {how}"

    def unload(self) -> None:
        """Let go of the model that :meth:`predict` has loaded."""
        self._loaded = None

    def _fields(self) -> dict[str, str]:
        """The user's column -> the task's field, as the data that were trained on have it."""
        path = self.path / "data.json"
        if not path.is_file():
            return {}
        files = json.loads(path.read_text(encoding="utf-8")).get("columns", [])
        return {how["column"]: field for file in files for field, how in file["fields"].items()}

    def _summary(self) -> dict[str, Any]:
        path = self.path / "summary.json"
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, {self.status})"

    def _repr_html_(self) -> str:
        """In a notebook: the verdict, metrics beside those of the baselines, what stages gave, and the report."""
        from tunesmith import display

        summary = self._summary()
        if not summary:
            return display.html(self.status, str(self.path))
        return display.html(self.verdict, display.of_run(summary), *display.of_stages(summary), str(self.report()))


def open_run(path: str | Path) -> Run:
    """Open a run by its folder, or by its name below ``runs/``.

    Raises:
        NotFoundError: There is no such run.
    """
    below = DEFAULT_ROOT / str(path)
    if not (Path(path) / "recipe.yaml").is_file() and (below / "recipe.yaml").is_file():
        return Run(below)
    return Run(path)


def described(failure: Mapping[str, str | None]) -> str:
    """What a run ended with, and where, on one line."""
    place = f"{failure['where']}: " if failure["where"] else ""
    return f"{place}{failure['what']}"


def list_runs(root: str | Path = DEFAULT_ROOT) -> list[Run]:
    """The runs of a folder, newest first."""
    root = Path(root)
    folders = [path.parent for path in root.glob("*/recipe.yaml")] if root.is_dir() else []
    return [Run(path) for path in sorted(folders, key=lambda path: path.stat().st_mtime, reverse=True)]


def remove(run: Run) -> None:
    """Delete a run's folder for good."""
    shutil.rmtree(run.path)


def stage_folder(run: Path, recipe: Recipe, number: int) -> Path:
    """Folder of a stage (from 0) in a run's folder: its checkpoints, and what later stages need of it."""
    return run / "stages" / f"{number + 1}-{recipe.stages[number].name}"


def stage_result(run: Path, recipe: Recipe, number: int) -> Path:
    """What a stage (from 0) leaves for later ones: a plain model, or with an adapter for each stage its adapter.

    The last stage of a chain leaves the run's own model instead.
    """
    apart = recipe.sequence.adapters != "chain"
    return stage_folder(run, recipe, number) / ("adapter" if apart else "merged")


def stage_models(folder: Path, recipe: Recipe) -> dict[str, Path]:
    """Name of each stage of a resolved recipe -> where it leaves its model for later stages.

    Args:
        folder: The run's, or that of one of its evaluations.
        recipe: Resolved.
    """
    run = folder.parents[1] if folder.parent.name == EVALUATIONS else folder
    return {stage.name: stage_result(run, recipe, number) for number, stage in enumerate(recipe.stages)}


@dataclass(frozen=True)
class StoredAnswer:
    """One test row with what the tuned model said: a line of ``predictions.jsonl``."""

    key: str
    where: str
    input: str
    reference: str
    answer: str
    probabilities: list[float] | None
    nats: float | None
    reference_bytes: float | None
    references: list[str] | None = None  # all of them, where a row has several
    spans: list[list[Any]] | None = None  # found: [start, end, label, text, score]
    reference_spans: list[list[Any]] | None = None
    tokens: float | None = None
    correct: float | None = None
    right: float | bool | None = None  # what the reference is to the metrics, where it is a number or a yes or no
    labels: list[str] | None = None  # given to the row, where it may have several
    score: float | None = None
    gap: float | None = None
    log_odds: bool = False
    reward: float | None = None
    judged: float | None = None


def write_answers(folder: Path, answers: Sequence[StoredAnswer]) -> None:
    """Keep the tuned model's answers, so that runs can be compared row by row later."""
    lines = [json.dumps(asdict(stored), ensure_ascii=False) for stored in answers]
    write_text(folder / "predictions.jsonl", "\n".join(lines) + "\n")


def read_answers(run: Run) -> list[StoredAnswer]:
    """Read them back.

    Raises:
        UsageError: The run is not finished.
    """
    path = run.path / "predictions.jsonl"
    if not path.is_file():
        raise UsageError("the run has no predictions yet", where=str(run.path), fix=run.how_to_finish())
    return [StoredAnswer(**json.loads(line)) for line in lines_of(path)]


def _intervals(values: dict[str, dict[str, float]]) -> dict[str, Interval]:
    from tunesmith.evaluation.intervals import Interval

    return {name: Interval(**value) for name, value in values.items()}
