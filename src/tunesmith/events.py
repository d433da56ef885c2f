"""What happens in a run, as typed events.

Every face (progress bar, log files, server, report) reads these and nothing else. An event is written to
``events.jsonl`` as ``{"time": seconds since 1970, "type": name, ...fields}``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Event:
    """Base of all events."""

    time: float = field(default_factory=time.time)

    @property
    def type(self) -> str:
        """The event's name in the log, e.g. ``step`` for :class:`Step`."""
        name = type(self).__name__
        return "".join(f"_{c.lower()}" if c.isupper() and i else c.lower() for i, c in enumerate(name))

    def as_dict(self) -> dict[str, Any]:
        """The event as one line of ``events.jsonl``."""
        values = asdict(self)
        return {"time": values.pop("time"), "type": self.type, **values}


@dataclass(frozen=True, kw_only=True)
class RunStarted(Event):
    """A process began (or went on with) a run."""

    run: str
    task: str
    model: str
    method: str
    resumed: bool = False


@dataclass(frozen=True, kw_only=True)
class Phase(Event):
    """One of the five steps, or a part of one, began: shown as a line."""

    step: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Notice(Event):
    """Something a user should know. ``level`` is ``info`` or ``warning``."""

    level: str
    message: str
    where: str | None = None
    fix: str | None = None


@dataclass(frozen=True, kw_only=True)
class StageStarted(Event):
    """The loop of a stage begins (again)."""

    stage: str
    steps: int
    first_step: int
    trainable_parameters: int
    total_parameters: int


@dataclass(frozen=True, kw_only=True)
class Step(Event):
    """One update. ``loss`` is the mean over the weight of the global batch; speeds count real tokens, no padding."""

    stage: str
    step: int
    steps: int
    epoch: float
    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    examples: int
    seconds: float
    memory_bytes: int
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Validated(Event):
    """Metrics on the validation data after a step; ``best`` says whether it is the best so far."""

    stage: str
    step: int
    metrics: dict[str, float]
    best: bool


@dataclass(frozen=True, kw_only=True)
class CheckpointSaved(Event):
    """A checkpoint is complete on disk."""

    stage: str
    step: int
    path: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class StageFinished(Event):
    """The loop of a stage is over; ``reason`` is ``done``, ``max_steps`` or ``early_stopping``."""

    stage: str
    step: int
    best_step: int
    reason: str
    seconds: float
    tokens: int
    tokens_per_second: float
    peak_memory_bytes: int


@dataclass(frozen=True, kw_only=True)
class Progress(Event):
    """Advance of anything that is no training step (rendering, predicting, downloading). Not written to the log."""

    what: str
    done: int
    total: int | None
    unit: str = "rows"


@dataclass(frozen=True, kw_only=True)
class MeasuredAgain(Event):
    """What comes after is a new measurement of the run: no work of the process that wrote what is before."""


@dataclass(frozen=True, kw_only=True)
class Evaluated(Event):
    """One system was measured on the test rows, and wrote so many tokens a second if it writes its answers."""

    system: str
    metrics: dict[str, dict[str, float]]
    seconds: float
    written_tokens_per_second: float = 0.0


@dataclass(frozen=True, kw_only=True)
class RunFinished(Event):
    """The run is complete; ``seconds`` are those of all processes that worked on it."""

    verdict: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class RunFailed(Event):
    """The run stopped before its end; ``interrupted`` if somebody asked for it."""

    error: dict[str, str | None]
    interrupted: bool = False


Listener = Callable[[Event], None]


def nobody(event: Event) -> None:
    """A listener that does nothing."""
