"""A job from its files to its end: one intent makes one job, whatever dies or disconnects in between.

Before anything is asked of the provider, the intent is written to ``hosted.json`` with a tag made of what the job is:
the data, the model, the settings. The job carries the tag. Whoever goes on (this process after a lost answer, the next
one after a kill, the same command in another folder) looks for a job with that tag before making one.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

from tunesmith import disk, runs
from tunesmith.errors import InterruptedRun, ResourceError, TunesmithError, UsageError
from tunesmith.events import Listener, Notice, Phase, Step, Validated
from tunesmith.hosted.client import ENDED, Client, Job, JobEvent, JobOrder, ProviderError
from tunesmith.hosted.settings import Hosted

STATE, EVENTS = "hosted.json", "provider_events.jsonl"
TRIES = 6
"""How often a request is made while the provider has a fault."""
FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0
"""Seconds between tries: doubled each time."""
LOOKS = (1.0, 4.0, 15.0)
"""Seconds after which a job is looked for whose making got no answer, before it is asked for again."""
STAGE = "tune"

Result = TypeVar("Result")


class JobFailed(TunesmithError, RuntimeError):
    """The provider could not tune the model."""

    code = "job-failed"


class Intent:
    """What is wanted of a provider, and how far it has come; on disk before it is begun.

    Args:
        folder: The run's.
        state: As ``hosted.json`` has it.
    """

    def __init__(self, folder: Path, state: dict[str, Any]) -> None:
        self.folder = folder
        self.state = state

    @classmethod
    def begin(
        cls,
        folder: Path,
        client: Client,
        model: str,
        method: str,
        settings: Hosted,
        seed: int,
        files: Mapping[str, Path],
    ) -> Intent:
        """The run's intent: read, if there is one, else written.

        Raises:
            UsageError: The files are others than those that the intent was written for.
        """
        digests = {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()}
        if (folder / STATE).is_file():
            known = cls(folder, read_state(folder))
            if {name: file["sha256"] for name, file in known.state["files"].items()} != digests:
                fix = "bring the data back as they were, or tune in another folder"
                raise UsageError("the data have changed since this run began", where=str(folder), fix=fix)
            return known
        wanted = settings.model_dump(exclude={"again", "prices", "poll_seconds", "patience_minutes"})
        identity: list[Any] = [client.base_url, model, method, wanted, seed, digests]
        if settings.again:
            identity.append(secrets.token_hex(8))
        tag = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]
        state = {
            "version": 1,
            "tag": tag,
            "provider": settings.provider,
            "base_url": client.base_url,
            "model": model,
            "method": method,
            "files": {name: {"sha256": digest, "id": None} for name, digest in digests.items()},
            "before": None,
            "job": None,
        }
        intent = cls(folder, state)
        intent.keep()
        return intent

    def keep(self, **changed: Any) -> None:
        """Write what changed before going on."""
        self.state |= changed
        disk.write_json(self.folder / STATE, self.state)

    def how_far(self) -> str:
        """What has come of it so far, for whoever has to decide what to do next."""
        if self.state["job"] is not None:
            return f"the job {self.state['job']} is made: going on makes no other"
        if self.state["before"] is not None:
            return "whether the job was made is not known: going on looks for it before it asks again"
        sent = [name for name, file in self.state["files"].items() if file["id"] is not None]
        return "no job was made, so nothing is charged" + (f"; {' and '.join(sent)} were sent" if sent else "")


def may_be_made(state: Mapping[str, Any]) -> bool:
    """Whether the job of a state was made, or asked for without an answer."""
    return state["job"] is not None or state["before"] is not None


RESUMABLE = (401, 403, 408, 409, 429)
"""Refusals that end by themselves, or by something that is mended outside the run: a key, an account, a limit."""


@contextlib.contextmanager
def telling_how_far(intent: Intent) -> Iterator[None]:
    """Errors and interruptions say what has come of the intent, and how to go on with it where that can help."""
    try:
        yield
    except ProviderError as error:
        error.what = f"{error.what}; {intent.how_far()}"
        if error.status is None or error.transient or error.status in RESUMABLE:
            error.fix = "; then ".join([*([error.fix] if error.fix else []), f"`tunesmith resume {intent.folder}`"])
        raise
    except KeyboardInterrupt:
        raise InterruptedRun(f"stopped: {intent.how_far()}", fix=f"tunesmith resume {intent.folder}") from None


def read_state(folder: Path) -> dict[str, Any]:
    """The state of a run at a provider.

    Raises:
        ResourceError: There is none, or it is damaged.
    """
    path = folder / STATE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ResourceError("this run has no job at a provider", where=str(folder)) from error
    except (OSError, ValueError) as error:
        fix = "find the job by `tunesmith hosted list`"
        raise ResourceError(f"cannot read the state of the job: {error}", where=str(path), fix=fix) from error
    return dict(found)


def job_of(folder: Path) -> tuple[str, str, str] | None:
    """Provider, address and job of a run; ``None`` if the folder is none at a provider.

    Raises:
        UsageError: The run has not come to its job yet.
    """
    if not (folder / STATE).is_file():
        return None
    state = read_state(folder)
    if state["job"] is None:
        raise UsageError("the run has no job yet", where=str(folder), fix=f"tunesmith resume {folder}")
    return state["provider"], state["base_url"], state["job"]


def make(intent: Intent, client: Client, settings: Hosted, seed: int, files: Mapping[str, Path], tell: Listener) -> Job:
    """The one job of an intent: found, or made.

    Raises:
        ProviderError: The provider refuses, or stays out of reach.
    """
    if intent.state["job"] is not None:
        return patiently(lambda: client.job(intent.state["job"]), tell)
    for name, path in files.items():
        if intent.state["files"][name]["id"] is None:
            uploaded = _upload(client, path, f"tunesmith-{intent.state['tag']}-{name}.jsonl", tell)
            intent.keep(files=intent.state["files"] | {name: {**intent.state["files"][name], "id": uploaded}})
    ids = {name: file["id"] for name, file in intent.state["files"].items()}
    order = JobOrder(
        model=intent.state["model"],
        training_file=ids["training_file"],
        validation_file=ids.get("validation_file"),
        method=intent.state["method"],
        settings=settings,
        seed=seed,
        tag=intent.state["tag"],
        key="",
    )
    job = _create(intent, client, order, tell)
    intent.keep(job=job.id)
    return job


def _upload(client: Client, path: Path, name: str, tell: Listener) -> str:
    """Send a file, unless it has arrived already."""
    size = path.stat().st_size
    tell(Phase(step="tune", message=f"sending {path.name} to {client.provider.what} ({size:,} bytes)"))

    def send() -> str:
        return client.find_upload(name, size) or client.upload(path, name)

    return patiently(send, tell)


def _create(intent: Intent, client: Client, order: JobOrder, tell: Listener) -> Job:
    """Look for the job, and make it where it is not; an answer that was lost is looked for before asking again."""

    def look() -> tuple[list[Job], list[Job]]:
        """All jobs of the intent, and those that this very run made, whatever became of them."""
        known, before = client.find(order.tag, order.training_file), intent.state["before"]
        return known, [job for job in known if before is not None and job.id not in before]

    def look_or_make() -> Job:
        known, ours = look()
        if ours:
            return ours[0]
        alive = [job for job in known if job.status not in ("failed", "cancelled")]
        if alive:
            text = f"{client.provider.what} has this very job already: {alive[0].id} ({alive[0].status})"
            tell(Notice(level="info", message=text, fix="to make another one: `hosted.again: true`, or `--again`"))
            return alive[0]
        first = intent.state["before"] is None
        if first:  # from now on a job may be there that this process does not know of
            intent.keep(before=[job.id for job in known])
        try:
            return client.create(_keyed(order, len(known)))
        except ProviderError as error:
            if not error.unsure:
                if first:  # it was refused, so there is none
                    intent.keep(before=None)
                raise
            for wait in LOOKS:  # the provider may be at it still, and its list may lag behind
                time.sleep(wait)
                if ours := look()[1]:
                    return ours[0]
            raise

    return patiently(look_or_make, tell)


def _keyed(order: JobOrder, attempt: int) -> JobOrder:
    """With a key that is the same for the same attempt; jobs that failed before are further attempts."""
    return replace(order, key=f"{order.tag}-{attempt}")


def patiently(ask: Callable[[], Result], tell: Listener) -> Result:
    """Ask again while the provider has a fault that may pass."""
    wait = FIRST_WAIT
    for number in range(1, TRIES + 1):
        try:
            return ask()
        except ProviderError as error:
            if not error.transient or number == TRIES:
                raise
            text = f"{error.what}; asking again in {wait:.0f} s ({number} of {TRIES - 1})"
            tell(Notice(level="warning", message=text, where=error.where))
        time.sleep(wait)
        wait = min(LONGEST_WAIT, 2 * wait)
    raise AssertionError("the last try returns or raises")


def follow(client: Client, job: Job, folder: Path, settings: Hosted, tell: Listener) -> Job:
    """Watch a job until it ends, and tell of each step and event once.

    Raises:
        JobFailed: It failed or was cancelled.
        InterruptedRun: The provider stays out of reach, or somebody stopped the watching; the job goes on.
    """
    log = EventsOfJob(folder / EVENTS, tell)
    silent_since: float | None = None
    left = f"the job {job.id} goes on at {client.provider.what}, and is charged; `tunesmith hosted cancel` stops it"
    try:
        while True:
            try:
                job = client.job(job.id)
                log.add(client.events(job.id, log.known))
                silent_since = None
            except ProviderError as error:
                if not error.transient:
                    raise
                if silent_since is None:
                    silent_since = time.monotonic()
                    tell(Notice(level="warning", message=f"{error.what}; the job goes on, and is looked for again"))
                if time.monotonic() - silent_since > 60 * settings.patience_minutes:
                    minutes = f"{settings.patience_minutes:g}"
                    raise InterruptedRun(f"{error.what}, for {minutes} minutes now; {left}") from None
            else:
                if job.status in ENDED:
                    break
            time.sleep(settings.poll_seconds)
    except KeyboardInterrupt:
        raise InterruptedRun(f"no longer watching: {left}") from None
    if job.status != "succeeded":
        raise JobFailed(
            f"the job {job.id} {'was cancelled' if job.status == 'cancelled' else 'failed'}"
            + (f": {job.error}" if job.error else ""),
            fix="`tunesmith hosted check` says what is wrong with data; then tune again in another folder",
        )
    return job


class EventsOfJob:
    """The provider's events, each written and told once, also across restarts."""

    def __init__(self, path: Path, tell: Listener) -> None:
        self.path = path
        self.tell = tell
        self.known: set[str] = set()
        self._last = 0.0
        for event in disk.read_log(path):  # one that a kill has cut is told again
            self.known.add(event["id"])
            self._last = event["created_at"]

    def add(self, events: list[JobEvent]) -> None:
        """Tell what is new."""
        for event in events:
            disk.append_line(self.path, asdict(event))
            self.known.add(event.id)
            if event.step is not None and event.loss is not None:
                self.tell(step_event(event, max(0.0, event.created_at - self._last) if self._last else 0.0))
            else:
                level = "warning" if event.level in ("warn", "warning", "error") else "info"
                self.tell(Notice(level=level, message=event.message))
            self._last = event.created_at


def step_event(event: JobEvent, seconds: float) -> Step:
    """A provider's step as ours; what it does not tell (rates, norms, tokens, memory) is 0."""
    assert event.step is not None and event.loss is not None
    return Step(
        time=event.created_at,
        stage=STAGE,
        step=event.step,
        steps=event.steps or event.step,
        epoch=0.0,
        loss=event.loss,
        learning_rate=0.0,
        grad_norm=0.0,
        tokens=0,
        examples=0,
        seconds=seconds,
        memory_bytes=0,
    )


def fetch(client: Client, job: Job, folder: Path, tell: Listener) -> None:
    """Bring home what the provider kept: ``job.json``, ``checkpoints.json`` and the losses, ``results.csv``."""
    disk.write_json(folder / "job.json", job.as_dict())
    disk.write_json(folder / "checkpoints.json", patiently(lambda: client.checkpoints(job.id), tell))
    for file_id in job.result_files[:1]:
        content = patiently(lambda file_id=file_id: client.content(file_id), tell)  # type: ignore[misc]
        disk.write_bytes(folder / "results.csv", content)
        steps_told = any(event["type"] == "step" for event in runs.read_events(folder))
        _tell_results(content.decode("utf-8", "replace"), tell, steps=not steps_told)


def _tell_results(text: str, tell: Listener, *, steps: bool) -> None:
    """The losses of a results file as events: validations, and steps unless they were told as they happened."""
    rows = [row for row in csv.DictReader(io.StringIO(text)) if (row.get("step") or "").isdigit()]
    for row in rows:
        number, loss = int(row["step"]), _number(row.get("train_loss"))
        if steps and loss is not None:
            event = JobEvent(f"step-{number}", time.time(), "info", "", number, int(rows[-1]["step"]), loss)
            tell(step_event(event, 0.0))
        found = {
            name: value
            for name, column in (("loss", "valid_loss"), ("token_accuracy", "valid_mean_token_accuracy"))
            if (value := _number(row.get(column))) is not None
        }
        if found:
            tell(Validated(stage=STAGE, step=number, metrics=found, best=False))


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None
