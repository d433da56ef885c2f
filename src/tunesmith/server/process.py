"""The process of one job: it validates or trains, writes what came of it to the job's folder, and ends.

It knows the job's folder and nothing of the server: no database, no token. A crash or a kill ends the job's process
alone. If the server that started it dies, the pipe between them closes, and the process saves itself and ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith import disk, runs, words
from tunesmith.errors import DataError, InterruptedRun, ResourceError, TunesmithError
from tunesmith.quiet import hush_imports

if TYPE_CHECKING:
    from tunesmith.data.problems import Problem

hush_imports()  # this module comes first in PRELOAD, in a process that never sees the command line's settings
OUTCOME = "outcome.json"
NOT_ITS_TURN = 75
"""Exit code of a process that found the job in other hands, and changed nothing (``EX_TEMPFAIL`` of sysexits.h)."""
PRELOAD = [
    "tunesmith.server.process",
    "tunesmith.cli.failures",
    "tunesmith.pipeline",
    "tunesmith.planning",
    "tunesmith.training.stages",
    "tunesmith.evaluation.evaluate",
    "peft",
]
"""Imported once in the process that all job processes are forked from: a job starts in a tenth of a second."""


def nothing() -> None:
    """What the first process does: once it has run, everything is imported, and jobs start at once."""


def main(lane: str, folder: str, attempt: int, options: dict[str, Any], lifeline: Connection) -> None:
    """Entry point of the process.

    Args:
        lane: ``validate`` or ``train``.
        folder: The job's folder.
        attempt: The fencing number: an older attempt does nothing, and its outcome is never taken for a newer one's.
        options: What the server decided: ``model``, ``recipe`` (of the base), ``min_examples``, ``memory_bytes``,
            ``storage``.
        lifeline: Closes when the server is gone.
    """
    place = Path(folder)
    os.setsid()  # Ctrl-C in the server's terminal is the server's: it tells its jobs itself
    _log_to(place / "log.txt")
    os.environ.setdefault("TQDM_DISABLE", "1")
    threading.Thread(target=_stop_when_orphaned, args=(lifeline,), daemon=True).start()
    with _turn(place, attempt):
        outcome = _work(lane, place, options)
        disk.write_json(place / OUTCOME, {"attempt": attempt, **outcome})


@contextlib.contextmanager
def _turn(place: Path, attempt: int, seconds: float = 30.0) -> Iterator[None]:
    """Hold the job's folder: one lock, from before the first look at it until the outcome is written.

    A process of an earlier attempt may still be saving itself: that is waited for. If a later attempt has been made by
    the time its turn comes, the job is another's.
    """
    import filelock

    try:
        with filelock.FileLock(place / ".lock", timeout=seconds):
            if read_job(place)["attempt"] != attempt:
                sys.exit(NOT_ITS_TURN)
            yield
    except filelock.Timeout:
        sys.exit(NOT_ITS_TURN)


def _work(lane: str, place: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Do what is to be done, and say what came of it."""
    try:
        with _kept(place, options["storage"], lane):
            return {"state": "done", **(_validate if lane == "validate" else _train)(place, options)}
    except (InterruptedRun, KeyboardInterrupt):
        return {"state": "interrupted"}
    except _Refused as error:
        return {"state": "failed", "error": error.value}
    except Exception as error:
        return {"state": "failed", "error": _error(error, place)}


@contextlib.contextmanager
def _kept(place: Path, storage: str | None, lane: str) -> Iterator[None]:
    """Fetch the job's files from the storage; send what was trained there, however that ended. Without one: nothing."""
    if storage is None:
        yield
        return
    from tunesmith.server.remote import Remote

    remote, job = Remote(storage), f"jobs/{place.name}"
    if not (place / "data").is_dir():
        remote.pull(f"{job}/data", place / "data")

    def send() -> None:
        for name in ("run", "checkpoints"):
            remote.push(place / name, f"{job}/{name}")
        if (place / "results.csv").is_file():
            remote.put(place / "results.csv", f"{job}/results.csv")

    if lane == "validate":
        yield
        return
    try:
        yield
    except BaseException:
        with contextlib.suppress(ResourceError):  # what stopped the run is told, and what it has is still here
            send()
        raise
    send()


class _Refused(Exception):
    """The job cannot be done; ``value`` is its error."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.value = {"code": code, "message": message, "param": param}


def _validate(place: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Read all rows as training will, plan the run, and put numbers in place of ``auto``."""
    from tunesmith import catalog, planning
    from tunesmith.checking import check
    from tunesmith.data.prepare import prepare
    from tunesmith.server.recipes import resolve

    job = read_job(place)
    asked = job["method"][job["method"]["type"]]["hyperparameters"]
    recipe = _recipe(place, job, options, asked)
    try:
        report = check(recipe)
        rows = report.rows_read.get("train", 0)
        least = options["min_examples"]
        if rows < least and not any(problem.code != "no-rows" for problem in report.errors):
            message = f"Training file has {rows} example(s), but must have at least {least} examples"
            raise _Refused("invalid_n_examples", message, "training_file")
        if wrong := [*report.errors, *_of_two_formats(report.problems)]:
            raise _Refused("invalid_file_format", *_of_problems(wrong, place))
        prepared = prepare(recipe)
        chosen = resolve(asked, len(prepared.train), len(prepared.validation))
        recipe = _recipe(place, job, options, chosen).resolved()
        plan = planning.forecast(recipe, catalog.model_folder(recipe.model), [prepared])
    except DataError as error:
        raise _Refused("invalid_file_format", _said(error, place), _param(error)) from error
    _refuse_too_large(plan, options.get("memory_bytes"))
    return {
        "hyperparameters": chosen,
        "memory_bytes": int(plan.memory_bytes.high),
        "seconds": plan.seconds.high,
        "tokens": plan.tokens,
    }


def _refuse_too_large(plan: Any, limit: int | None) -> None:
    if limit is not None and plan.memory_bytes.low > limit:
        advice = f" {plan.advice[0]}." if plan.advice else ""
        message = (
            f"The job would need {words.size_span(plan.memory_bytes.low, plan.memory_bytes.high)} of memory; "
            f"jobs may take {words.size(limit)} here.{advice}"
        )
        raise _Refused("insufficient_memory", message, "model")


def _train(place: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Run the recipe, or go on with the run; then make its checkpoints usable and write the results file."""
    from tunesmith import pipeline
    from tunesmith.server.words import checkpoint_metrics, results_csv

    job = read_job(place)
    folder = place / "run"
    if (folder / "recipe.yaml").is_file():
        run = pipeline.resume(folder)
    else:
        chosen = job["method"][job["method"]["type"]]["hyperparameters"]
        run = pipeline.run(_recipe(place, job, options, chosen), run_dir=folder)
    events = list(runs.read_events(folder))
    disk.write_text(place / "results.csv", results_csv(events))
    metrics = checkpoint_metrics(events)
    steps = _usable_checkpoints(run, place / "checkpoints", by_score=job["method"]["type"] == "reinforcement")
    summary = run.summary()
    return {
        "tokens": int(summary["tokens"]),
        "verdict": summary["verdict"],
        "checkpoints": [{"step": step, "metrics": metrics.get(step, {"step": float(step)})} for step in steps],
    }


def _usable_checkpoints(run: runs.Run, target: Path, *, by_score: bool) -> list[int]:
    """Write the checkpoints that OpenAI would show as models that can be loaded: the last, or the best of them.

    Returns:
        Their steps, in order.
    """
    from tunesmith.models.saving import load_artefact, save_artefact
    from tunesmith.server.recipes import KEPT_CHECKPOINTS
    from tunesmith.training import checkpoint

    stages = sorted((run.path / "stages").iterdir(), key=lambda path: int(path.name.partition("-")[0]))
    found = sorted((stages[-1] / "checkpoints").glob("step-*"))
    if by_score and found:
        scores = checkpoint.read(found[-1]).trainer["position"].get("scores", {})  # none without validation rows
        best = checkpoint.best_steps(scores, KEPT_CHECKPOINTS)
        found = [path for path in found if int(path.name.removeprefix("step-")) in best] or found
    steps = []
    for path in found[-KEPT_CHECKPOINTS:]:
        saved = checkpoint.read(path)
        steps.append(saved.step)
        final = target / f"step-{saved.step}"
        if final.is_dir():  # of an attempt that was killed afterwards
            continue
        model, notes = load_artefact(run.model_folder)
        _put_weights(model, saved)

        def write(folder: Path, model: Any = model, notes: Any = notes) -> None:
            save_artefact(model, folder, task=notes.task, system_prompt=notes.system_prompt)

        disk.write_folder(final, write)
    return steps


def _put_weights(model: Any, saved: Any) -> None:
    """Put a checkpoint's weights into the model of the same run: it holds those parameters that trained."""
    import torch

    parameters = dict(model.network.named_parameters())
    with torch.no_grad():
        for name, value in saved.weights().items():
            parameters[name].copy_(value)


def _recipe(place: Path, job: dict[str, Any], options: dict[str, Any], chosen: dict[str, Any]) -> Any:
    from tunesmith.server.recipes import job_recipe

    files = {param: next(iter(sorted((place / "data").glob(f"{param}.jsonl*"))), None) for param in PARAMS}
    training = files["training_file"]
    if training is None:
        raise _Refused("invalid_file", "The training file is gone.", "training_file")
    kind = job["method"]["type"]
    return job_recipe(
        options["model"],
        options["recipe"],
        method=kind,
        grader=job["method"][kind].get("grader"),
        training=training,
        validation=files["validation_file"],
        seed=job["seed"],
        hyperparameters=chosen,
    )


PARAMS = ("training_file", "validation_file")


def read_job(place: Path) -> dict[str, Any]:
    """What ``job.json`` says."""
    value: dict[str, Any] = json.loads((place / "job.json").read_text(encoding="utf-8"))
    return value


def _error(error: Exception, place: Path) -> dict[str, Any]:
    """What the API says of an exception. The whole of a defect is in the job's log."""
    from tunesmith.cli.failures import as_tunesmith_error

    known = as_tunesmith_error(error)
    if type(known) is TunesmithError:
        import traceback

        traceback.print_exc()
    return {"code": known.code.replace("-", "_"), "message": _said(known, place), "param": _param(known)}


def _said(error: TunesmithError, place: Path) -> str:
    """What, where and how to mend it, without the server's paths."""
    fix = f" How to mend it: {error.fix}" if error.fix and "tunesmith " not in error.fix else ""
    text = (f"{error.where}: " if error.where else "") + error.what.rstrip(".") + "." + fix
    return text.replace(f"{place}/data/", "").replace(f"{place}/", "")


def _of_two_formats(problems: list[Problem]) -> list[Problem]:
    """Rows of another shape than the others of their file, which the API does not allow."""
    return [replace(p, fix="give all rows of a file one format") for p in problems if p.code == "mixed-shapes"]


def _of_problems(problems: list[Problem], place: Path) -> tuple[str, str | None]:
    """All kinds of mistakes in the files, a line for each, and the parameter that the first is in.

    Clients see nothing else of the check, so the message holds what ``tunesmith check`` would print.
    """
    errors = [
        DataError(
            problem.message + (f" ({problem.count} such rows)" if problem.count > 1 else ""),
            where=str(problem.where[0]) if problem.where else None,
            fix=problem.fix,
        )
        for problem in problems
    ]
    return "\n".join(_said(error, place) for error in errors), _param(errors[0])


def _param(error: TunesmithError) -> str | None:
    if error.where == "model":
        return "model"
    return next((param for param in PARAMS if f"/{param}." in (error.where or "")), None)


def _log_to(path: Path) -> None:
    """Whatever libraries print goes to a file of the job."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)


def _stop_when_orphaned(lifeline: Connection, deadline: float = 60.0) -> None:
    with contextlib.suppress(EOFError, OSError):
        lifeline.recv_bytes()  # nothing is ever sent
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(deadline)
    os.kill(os.getpid(), signal.SIGKILL)
