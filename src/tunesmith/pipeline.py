"""The five steps, in order: task, data, model, tune, evaluate. Everything is left in the run directory."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import filelock

from tunesmith import catalog, disk, environment, home, lineage, runs
from tunesmith.data.judge import LEAK_ERROR_SHARE
from tunesmith.data.pictures import unpacked_into
from tunesmith.data.prepare import PreparedData, of_stages, prepare
from tunesmith.data.survey import Rules
from tunesmith.errors import DataError, InterruptedRun, ResourceError, TunesmithError, UsageError
from tunesmith.events import Event, Listener, MeasuredAgain, Notice, Phase, RunFailed, RunFinished, RunStarted, nobody
from tunesmith.recipe import Quantize, Recipe
from tunesmith.runs import EventLog, Run
from tunesmith.tasks import TASKS

if TYPE_CHECKING:
    from tunesmith.planning import Plan


def run(
    recipe: Recipe,
    *,
    run_dir: str | Path | None = None,
    on_event: Listener = nobody,
    data: Sequence[PreparedData] | None = None,
) -> Run:
    """Walk the five steps.

    Args:
        recipe: What to do.
        run_dir: The run's folder; default: a new one below ``runs/``.
        on_event: Told everything that happens; the same is written to ``events.jsonl``.
        data: Of each stage, where they are read and split already, as for several short runs on parts of them.

    Raises:
        TunesmithError: What is wrong, where, and how to mend it. What was done so far stays in the run's folder.
    """
    from tunesmith.evaluation.metrics import truth

    recipe = recipe.resolved()
    folder = Path(run_dir) if run_dir is not None else runs.new_run_folder(recipe)
    runs.refuse_occupied(folder)
    if not recipe.data.train:
        raise UsageError("there is nothing to train on", where="data.train", fix="name a file: `data: {train: FILE}`")
    truth(TASKS[recipe.task], [], None, recipe.evaluate)  # a mistyped metric must not end hours of training
    if recipe.method == "hosted":  # what the provider would refuse whatever the data are leaves no folder behind
        from tunesmith.hosted.run import rules_and_table

        rules_and_table(recipe)
    else:
        catalog.require_models(recipe.named_models())
    behind = lineage.ancestors(recipe.model)
    runs.start_anew(folder)
    disk.write_text(folder / "recipe.yaml", recipe.to_yaml())
    facts = environment.describe() | {"folder": str(Path.cwd())} | ({"lineage": behind} if behind else {})
    disk.write_json(folder / "environment.json", facts)
    return _walk(folder, recipe, on_event, resumed=False, data=data)


def resume(run_dir: str | Path, *, on_event: Listener = nobody) -> Run:
    """Go on with a run where its newest whole checkpoint left it, bit for bit on the same machine.

    Raises:
        CheckpointError: Data, recipe or library versions have changed since; the differences are named.
        NotFoundError: There is no run in this folder.
    """
    opened = runs.open_run(run_dir)
    if opened.status == "finished":
        return opened
    return _walk(opened.path, opened.recipe, on_event, resumed=True)


def evaluate(opened: Run, *, data: list[str] | None = None, on_event: Listener = nobody) -> Run:
    """Measure a finished run again, on its own test rows or on other files.

    The result of other files goes to a folder of its own inside the run, so that nothing is overwritten.

    Raises:
        DataError: The data are bad, or some of their rows were trained on.
        UsageError: The run is not finished.
    """
    from tunesmith.evaluation.evaluate import evaluate_run
    from tunesmith.evaluation.results import time_taken_before
    from tunesmith.models.precision import default_device
    from tunesmith.models.saving import load_artefact
    from tunesmith.training.outcome import Trained

    opened.summary()
    recipe = home.recipe_from_here(opened)
    if recipe.method == "hosted":
        fix = "name the rows to measure on when it is tuned: `--test FILE`"
        raise UsageError("the model of this run is at a provider, not here", where=str(opened.path), fix=fix)
    log = _both(EventLog(opened.path), on_event)
    folder = opened.path
    if data is None:
        with home.sent_home(opened, recipe):
            prepared = _prepare(recipe, folder, on_event)
    else:
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"test": data})})
        with home.sent_home(opened, recipe), _told_of_files(opened, data):
            prepared = _prepare(recipe, folder / runs.EVALUATIONS, on_event)
        _refuse_trained_on(prepared)
        digest = hashlib.sha256(prepared.fingerprint.encode()).hexdigest()[:8]
        folder = folder / runs.EVALUATIONS / digest
        disk.write_text(folder / "recipe.yaml", recipe.to_yaml())
    model, _ = load_artefact(opened.model_folder, device=default_device(), on_event=on_event)
    summary = opened.summary()
    trained = Trained(summary, summary.get("tuning_seconds", 0.0), model)
    if not runs.is_at_work(opened.path):  # what a process at work writes from now on is still its own
        log(MeasuredAgain())
    evaluate_run(folder, recipe, prepared, trained, log, before=time_taken_before(opened.path, summary))
    return Run(folder)


@contextlib.contextmanager
def _told_of_files(opened: Run, files: Sequence[str]) -> Iterator[None]:
    """What is wrong with other files to measure on is told in words of the command, which changes no recipe."""
    try:
        yield
    except DataError as error:
        if error.where == "data.test":
            error.where = "--data"
        elif any((error.where or "").startswith(name) for name in files):
            error.fix = opened.remedy_of_file(error.fix)
        raise


def _walk(
    folder: Path,
    recipe: Recipe,
    on_event: Listener,
    *,
    resumed: bool,
    data: Sequence[PreparedData] | None = None,
) -> Run:
    log = EventLog(folder)
    tell = _both(log, on_event)
    found_from_here = home.sent_home(Run(folder), recipe)
    with _only_process(folder), _told_of_failure(tell, folder), found_from_here, _terminated_like_interrupted():
        tell(RunStarted(run=folder.name, task=recipe.task, model=recipe.model, method=recipe.method, resumed=resumed))
        if recipe.method == "hosted":
            verdict = _hosted(folder, recipe, tell)
            tell(RunFinished(verdict=verdict, seconds=runs.worked_seconds(folder, until=time.time())))
            return Run(folder)
        _require_terms(recipe)
        from tunesmith.models.cutting import base_folder

        if recipe.learns_from_rewards:
            from tunesmith.prediction.rewarded import check_judges

            check_judges(recipe)
        prepared = _prepare_stages(recipe, folder, tell) if data is None else data
        tell(Phase(step="model", message=f"base model {recipe.model}"))
        base = base_folder(recipe, tell)
        _refuse_unusable_teachers(recipe, base)
        from tunesmith.training.feasible import refuse_infeasible

        refuse_infeasible(recipe, base, prepared)
        prepared = _measurable(recipe, base, prepared, folder, tell)
        planned = _plan(folder, recipe, base, prepared, tell)
        from tunesmith.evaluation.evaluate import evaluate_run
        from tunesmith.planning.measured import Stopwatch
        from tunesmith.training.stages import tune_stages

        watch = Stopwatch(tell)
        trained = tune_stages(folder, recipe, base, prepared, watch)
        disk.write_json(folder / "plan.json", {"planned": planned.as_dict(), "measured": watch.compared(planned)})
        verdict = evaluate_run(folder, recipe, prepared[-1], trained, tell, stages=prepared)
        shutil.rmtree(folder / "tokens", ignore_errors=True)
        if recipe.quantize is not None:
            _quantize(Run(folder), recipe.quantize, tell)
        tell(RunFinished(verdict=verdict, seconds=runs.worked_seconds(folder, until=time.time())))
    return Run(folder)


def _quantize(run: Run, choice: Quantize, tell: Listener) -> None:
    """Quantize what was tuned, unless a process that was killed has; its run has its own first and last word."""
    from tunesmith.compression.quantize import quantize

    def pass_on(event: Event) -> None:
        if not isinstance(event, RunStarted | RunFinished):
            tell(event)

    if not (run.path / runs.QUANTIZED / choice.to).exists():
        quantize(run, choice, on_event=pass_on)


def _hosted(folder: Path, recipe: Recipe, tell: Listener) -> str:
    """The same five steps with a provider in the fourth, which also has a say in the second."""
    from tunesmith.hosted.run import rules_and_table, tune_and_measure

    rules, table = rules_and_table(recipe, folder)
    prepared = _prepare(recipe, folder, tell, rules=rules)
    return tune_and_measure(folder, recipe, prepared, rules, table, tell)


# --- step 2: data ---------------------------------------------------------------------------


def _prepare(recipe: Recipe, folder: Path, tell: Listener, *, rules: Rules | None = None) -> PreparedData:
    tell(Phase(step="task", message=f"{recipe.task}: {TASKS[recipe.task].what}"))
    tell(Phase(step="data", message=", ".join(recipe.data.train)))
    with unpacked_into(folder / "pictures"):
        prepared = prepare(recipe, rules=rules, on_event=tell, dropped_to=folder / "dropped.jsonl", scratch=None)
    disk.write_json(folder / "data.json", prepared.report.as_dict() | {"fingerprint": prepared.fingerprint})
    return prepared


def _prepare_stages(recipe: Recipe, folder: Path, tell: Listener) -> list[PreparedData]:
    """The data of each stage; stages that learn the same thing from the same data share them."""

    def prepare_one(view: Recipe, number: int) -> PreparedData:
        own = (view.task, view.data) == (recipe.task, recipe.data)  # they belong to the run, others to their stage
        return _prepare(view, folder if own else folder / "stages" / f"{number}-{view.stages[0].name}", tell)

    return of_stages(recipe, prepare_one)


def _measurable(
    recipe: Recipe, base: Path, prepared: Sequence[PreparedData], folder: Path, tell: Listener
) -> list[PreparedData]:
    """The data of each stage without held-out rows that its model cannot be asked."""
    from tunesmith.evaluation.held_out import measurable

    known: dict[tuple[int, str, Path], PreparedData] = {}
    found = []
    for stage, data in zip(recipe.stages, prepared, strict=True):
        model = catalog.model_folder(stage.model) if stage.model is not None else base
        key = (id(data), stage.objective or "", model)
        if key not in known:
            place = folder / f"dropped-held-out-{stage.name}.jsonl"
            known[key] = measurable(recipe.of_stage(stage), data, model, place, tell)
        found.append(known[key])
    return found


def _refuse_trained_on(prepared: PreparedData) -> None:
    """The model has seen these rows: what ``data.drop_bad`` takes out of the training data now does not undo that."""
    measured_on = {row.origin.file for row in prepared.test}
    for problem in prepared.report.problems:
        leaked = problem.code == "leakage" and problem.where[0].file in measured_on
        if leaked and problem.count >= LEAK_ERROR_SHARE * len(prepared.test):
            raise DataError(
                f"{problem.count:,} of the rows to measure on were trained or chosen on",
                where=", ".join(str(place) for place in problem.where),
                fix="leave them out of the file: a model is flattered by what it has seen",
            )


def _require_terms(recipe: Recipe) -> None:
    """Terms are accepted before anything is done, also those of a model that only the evaluation needs."""
    for name in dict.fromkeys(recipe.named_models().values()):
        catalog.require_terms(name)


def _refuse_unusable_teachers(recipe: Recipe, base: Path) -> None:
    """A teacher that cannot teach this student is found out before anything is trained."""
    for stage in recipe.stages:
        if stage.objective == "distill":
            from tunesmith.objectives.teacher import refuse_unusable

            refuse_unusable(recipe.of_stage(stage), stage, base)


def _plan(folder: Path, recipe: Recipe, base: Path, prepared: Sequence[PreparedData], tell: Listener) -> Plan:
    """Say what the tuning will take before it begins; what it took is put beside it afterwards."""
    from tunesmith import planning

    planned = planning.forecast(recipe, base, prepared, tell)
    disk.write_json(folder / "plan.json", {"planned": planned.as_dict(), "measured": None})
    for line in planned.advice:
        tell(Notice(level="info" if planned.fits else "warning", message=line))
    return planned


# --- keeping ---------------------------------------------------------------------------


@contextlib.contextmanager
def _only_process(folder: Path) -> Iterator[None]:
    """Two processes must not write one run."""
    lock = filelock.FileLock(folder / runs.LOCK, timeout=1)  # somebody may be looking whether it is held
    try:
        with lock:
            yield
    except filelock.Timeout as error:
        raise UsageError(
            "another process is working on this run", where=str(folder), fix="wait for it, or stop it"
        ) from error


@contextlib.contextmanager
def _told_of_failure(tell: Listener, folder: Path) -> Iterator[None]:
    """Whatever ends a run early is its last event."""

    def last_event(error: dict[str, str | None], interrupted: bool = False) -> None:
        with contextlib.suppress(ResourceError):  # on a full disk the first error is the one to show
            tell(RunFailed(error=error, interrupted=interrupted))

    try:
        yield
    except InterruptedRun as error:
        error.fix = f"tunesmith resume {folder}"
        last_event(error.as_dict(), interrupted=True)
        raise
    except KeyboardInterrupt as error:
        stopped = InterruptedRun("stopped before the next checkpoint", fix=f"tunesmith resume {folder}")
        last_event(stopped.as_dict(), interrupted=True)
        raise stopped from error
    except TunesmithError as error:
        last_event(error.as_dict())
        raise
    except Exception as error:
        last_event({"code": "crash", "what": f"{type(error).__name__}: {error}", "where": None, "fix": None})
        raise


@contextlib.contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM outside the loop (which has a handler of its own) ends a run as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _both(first: Listener, second: Listener) -> Listener:
    def tell(event: Event) -> None:
        first(event)
        second(event)

    return tell
