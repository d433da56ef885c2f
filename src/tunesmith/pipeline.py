"""The five steps, in order: task, data, model, tune, evaluate. Everything is left in the run directory."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import secrets
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import filelock

from tunesmith import catalog, environment, runs
from tunesmith.data.prepare import PreparedData, prepare
from tunesmith.errors import InterruptedRun, ResourceError, TunesmithError, UsageError
from tunesmith.events import Event, Listener, Notice, Phase, RunFailed, RunFinished, RunStarted, nobody
from tunesmith.recipe import NoParameters, Recipe, Stage
from tunesmith.runs import EventLog, Run
from tunesmith.tasks import TASKS

if TYPE_CHECKING:
    from tunesmith.models.model import Model
    from tunesmith.training.loop import StageResult


def run(recipe: Recipe, *, run_dir: str | Path | None = None, on_event: Listener = nobody) -> Run:
    """Walk the five steps.

    Args:
        recipe: What to do.
        run_dir: The run's folder; default: a new one below ``runs/``.
        on_event: Told everything that happens; the same is written to ``events.jsonl``.

    Raises:
        TunesmithError: What is wrong, where, and how to mend it. What was done so far stays in the run's folder.
    """
    recipe = recipe.resolved()
    folder = Path(run_dir) if run_dir is not None else runs.new_run_folder(recipe)
    runs.refuse_occupied(folder)
    if not recipe.data.train:
        raise UsageError("there is nothing to train on", where="data.train", fix="name a file: `data: {train: FILE}`")
    runs.write_text(folder / "recipe.yaml", recipe.to_yaml())
    runs.write_json(folder / "environment.json", environment.describe())
    return _walk(folder, recipe, on_event, resumed=False)


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
    """
    from tunesmith.evaluation.evaluate import evaluate_run
    from tunesmith.models.precision import default_device
    from tunesmith.models.saving import load_artefact

    opened.summary()
    recipe = opened.recipe
    log = _both(EventLog(opened.path), on_event)
    prepared = _prepare(recipe, opened.path, on_event)
    folder = opened.path
    if data is not None:
        other = recipe.model_copy(update={"data": recipe.data.model_copy(update={"test": data})})
        prepared = _prepare(other, opened.path, on_event)
        digest = hashlib.sha256(prepared.fingerprint.encode()).hexdigest()[:8]
        folder = opened.path / "evaluations" / digest
        runs.write_text(folder / "recipe.yaml", other.to_yaml())
        recipe = other
    model, _ = load_artefact(opened.model_folder, device=default_device())
    summary = opened.summary()
    trained = Trained(model, summary, summary.get("tuning_seconds", 0.0))
    evaluate_run(folder, recipe, prepared, trained, log)
    return Run(folder)


@dataclass(frozen=True)
class Trained:
    """A tuned model and what tuning it took.

    Attributes:
        model: With the best weights.
        facts: ``tokens_per_second``, ``peak_memory_bytes``, ``trainable_parameters``, ``total_parameters``, ``tokens``.
        seconds: Wall-clock time of the updates.
    """

    model: Model
    facts: dict[str, Any]
    seconds: float


def _walk(folder: Path, recipe: Recipe, on_event: Listener, *, resumed: bool) -> Run:
    started = time.time()
    log = EventLog(folder)
    tell = _both(log, on_event)
    with _only_process(folder), _told_of_failure(tell, folder), _terminated_like_interrupted():
        tell(RunStarted(run=folder.name, task=recipe.task, model=recipe.model, method=recipe.method, resumed=resumed))
        prepared = _prepare(recipe, folder, tell)
        tell(Phase(step="model", message=f"base model {recipe.model}"))
        base = catalog.model_folder(recipe.model, on_event=tell)
        planned = _plan(folder, recipe, base, prepared, tell)
        trained = _tune(folder, recipe, base, prepared, tell)
        measured = {"seconds": trained.seconds, "memory_bytes": trained.facts["peak_memory_bytes"]}
        runs.write_json(folder / "plan.json", {"planned": planned, "measured": measured})
        from tunesmith.evaluation.evaluate import evaluate_run

        verdict = evaluate_run(folder, recipe, prepared, trained, tell)
        shutil.rmtree(folder / "tokens", ignore_errors=True)
        tell(RunFinished(verdict=verdict, seconds=time.time() - started))
    return Run(folder)


# --- step 2: data ---------------------------------------------------------------------------


def _prepare(recipe: Recipe, folder: Path, tell: Listener) -> PreparedData:
    tell(Phase(step="task", message=f"{recipe.task}: {TASKS[recipe.task].what}"))
    tell(Phase(step="data", message=", ".join(recipe.data.train)))
    prepared = prepare(recipe, on_event=tell, dropped_to=folder / "dropped.jsonl", scratch=None)
    runs.write_json(folder / "data.json", prepared.report.as_dict() | {"fingerprint": prepared.fingerprint})
    return prepared


def _plan(folder: Path, recipe: Recipe, base: Path, prepared: PreparedData, tell: Listener) -> dict[str, Any]:
    """Say what the tuning will take before it begins; what it took is put beside it afterwards."""
    from tunesmith import planning

    planned = planning.forecast(recipe, base, prepared, tell)
    runs.write_json(folder / "plan.json", {"planned": planned.as_dict(), "measured": None})
    for line in planned.advice:
        tell(Notice(level="info" if planned.fits else "warning", message=line))
    return planned.as_dict()


# --- steps 3 and 4: model, tune ---------------------------------------------------------------------------


def _tune(folder: Path, recipe: Recipe, base: Path, prepared: PreparedData, tell: Listener) -> Trained:
    """All stages; the last one's model is saved as the run's."""
    trained: Trained | None = None
    for number, stage in enumerate(recipe.stages, 1):
        place = folder / "stages" / f"{number}-{stage.name}"
        last = number == len(recipe.stages)
        merged = place / "merged"
        if not last and merged.is_dir():
            base = merged
            continue
        identity = _identity(recipe, prepared)
        _refuse_foreign_checkpoint(place, identity)
        if isinstance(stage.parameters, NoParameters):
            trained = _fit(recipe, base, prepared, tell)
        else:
            trained = _train_stage(folder, place, recipe, stage, base, prepared, identity, tell)
        if not last:
            _in_one_move(merged, functools.partial(_save_merged, trained.model, recipe))
            base = merged
    assert trained is not None
    _in_one_move(folder / "model", functools.partial(_save, trained.model, recipe))
    return trained


def _train_stage(
    folder: Path,
    place: Path,
    recipe: Recipe,
    stage: Stage,
    base: Path,
    prepared: PreparedData,
    identity: dict[str, Any],
    tell: Listener,
) -> Trained:
    from tunesmith import objectives
    from tunesmith.data.batches import write_tokens
    from tunesmith.data.render import row_renderer
    from tunesmith.models.build import build_for_training
    from tunesmith.models.compiling import compile_if_worthwhile
    from tunesmith.models.forms import answer_form
    from tunesmith.models.load import load_config
    from tunesmith.models.precision import choose_dtype, default_device
    from tunesmith.training.defaults import with_defaults
    from tunesmith.training.loop import Trainer

    assert stage.parameters is not None and stage.training is not None
    device = default_device()
    dtype = choose_dtype(recipe.precision, device)
    form, objective_name = answer_form(recipe, stage, load_config(base))
    tell(Phase(step="tune", message=f"stage {stage.name}: {objective_name}, {stage.parameters.kind}, {dtype}"))
    settings = with_defaults(
        stage.training,
        kind=stage.parameters.kind,
        form=form,
        device=device,
        epoch_examples=len(prepared.train),
    )
    runs.write_json(place / "training.json", settings.model_dump(mode="json"))
    model = build_for_training(
        base,
        name=recipe.model,
        form=form,
        labels=prepared.labels,
        choice=stage.parameters,
        training=settings,
        data=recipe.data,
        dtype=dtype,
        device=device,
    )
    render = row_renderer(
        model.tokenizer,
        TASKS[recipe.task],
        classify=form == "classify",
        labels=prepared.labels,
        max_length=model.max_length,
        system_prompt=recipe.system_prompt,
        eos_ids=model.eos_ids,
    )
    tokens = folder / "tokens" / place.name
    trainer = Trainer(
        model,
        objectives.make(objective_name, settings),
        write_tokens(prepared.train, render, tokens / "train", what="rendering train", on_event=tell),
        write_tokens(prepared.validation, render, tokens / "validation", what="rendering validation", on_event=tell),
        settings,
        place,
        identity=identity,
        name=stage.name,
        on_event=tell,
    )
    compile_if_worthwhile(model, settings.compile, trainer.steps, tell)
    result = trainer.run()
    return Trained(model, _facts(model, result), result.seconds)


def _fit(recipe: Recipe, base: Path, prepared: PreparedData, tell: Listener) -> Trained:
    """The `features` method: a classical fit instead of a loop, copied into a linear head."""
    from tunesmith.evaluation.answering import Setting, fit_features
    from tunesmith.models.heads import SentenceClassifier, pooling_of
    from tunesmith.models.load import load_model
    from tunesmith.models.precision import choose_dtype, default_device

    device = default_device()
    tell(Phase(step="tune", message="logistic regression on frozen features"))
    model = load_model(
        base,
        name=recipe.model,
        form="classify",
        labels=prepared.labels,
        dtype=choose_dtype(recipe.precision, device),
        device=device,
        max_length=recipe.data.max_length,
        pooling=pooling_of(base) or "mean",
    )
    assert isinstance(model.network, SentenceClassifier)
    started = time.perf_counter()
    setting = Setting(
        TASKS[recipe.task], prepared.labels, recipe.system_prompt, recipe.evaluate.generation, on_event=tell
    )
    head = fit_features(model, prepared.train, prepared.validation, setting)
    head.copy_to(model.network)
    seconds = time.perf_counter() - started
    tell(Notice(level="info", message=f"penalty C={head.penalty} chosen on the validation rows"))
    facts = {
        "trainable_parameters": sum(p.numel() for p in model.network.classifier.parameters()),
        "total_parameters": model.total_parameters,
        "tokens": 0,
        "tokens_per_second": 0.0,
        "peak_memory_bytes": 0,
    }
    return Trained(model, facts, seconds)


def _facts(model: Model, result: StageResult) -> dict[str, Any]:
    return {
        "trainable_parameters": model.trainable_parameters,
        "total_parameters": model.total_parameters,
        "tokens": result.tokens,
        "tokens_per_second": result.tokens_per_second,
        "peak_memory_bytes": result.peak_memory_bytes,
        "best_step": result.best_step,
        "steps": result.steps,
        "stopped": result.reason,
    }


def _save(model: Model, recipe: Recipe, target: Path) -> None:
    from tunesmith.models.saving import save_artefact

    save_artefact(model, target, task=recipe.task, system_prompt=recipe.system_prompt)


def _save_merged(model: Model, recipe: Recipe, target: Path) -> None:
    """A stage's result as a plain model: the base of the next stage."""
    from tunesmith.models.heads import SentenceClassifier

    network: Any = model.network
    holder, attribute = (network, "encoder") if isinstance(network, SentenceClassifier) else (model, "network")
    wrapped: Any = getattr(holder, attribute)
    if hasattr(wrapped, "merge_and_unload"):
        setattr(holder, attribute, wrapped.merge_and_unload())
    _save(model, recipe, target)


# --- keeping ---------------------------------------------------------------------------


def _identity(recipe: Recipe, prepared: PreparedData) -> dict[str, Any]:
    """What must not change between the parts of one run. How it is evaluated may."""
    asked = recipe.model_dump(mode="json", exclude={"evaluate"})
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    return {"data": prepared.fingerprint, "recipe": digest[:16], **environment.versions()}


def _refuse_foreign_checkpoint(place: Path, identity: dict[str, Any]) -> None:
    """Find out that a resume is impossible before the model is loaded."""
    from tunesmith.training import checkpoint
    from tunesmith.training.loop import check_identity

    found, _ = checkpoint.newest(place / "checkpoints")
    if found is not None:
        check_identity(found.trainer["identity"], identity, str(found.path))


def _in_one_move(final: Path, write: Callable[[Path], None]) -> None:
    """Fill a staging folder and rename it: the final name never holds half a model."""
    for leftover in final.parent.glob(f".{final.name}-*"):  # of a process that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    staging = final.with_name(f".{final.name}-{secrets.token_hex(4)}")
    try:
        write(staging)
        if final.exists():
            shutil.rmtree(final)
        os.replace(staging, final)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextlib.contextmanager
def _only_process(folder: Path) -> Iterator[None]:
    """Two processes must not write one run."""
    lock = filelock.FileLock(folder / ".lock", timeout=0)
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
