"""From the events of a run to those of a job, in OpenAI's words.

The id of an event follows from the job and from what happened, so that reading a log twice, or a step that was done
again after a kill, gives no second event.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class JobEvent:
    """One event as the index holds it."""

    id: str
    created_at: float
    level: str
    type: str
    message: str
    data: dict[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        """For the job's log and for the table."""
        return asdict(self)


class Translator:
    """Reads the events of a run in their order.

    Args:
        job_id: Whose run it is.
        hidden: Paths of the server that no client shall see, with what stands in their place.
    """

    def __init__(self, job_id: str, hidden: dict[str, str]) -> None:
        self.job_id = job_id
        self.hidden = hidden
        self._elsewhere = re.compile(rf"\S*/{re.escape(job_id)}/(?:data/)?")  # of a job that was moved with its folder
        self.steps: dict[str, int] = {}

    def translate(self, events: Iterable[dict[str, Any]]) -> Iterator[JobEvent]:
        """The job's events; most kinds of a run's have none."""
        for event in events:
            if event["type"] == "stage_started":
                self.steps[event["stage"]] = event["steps"]
            elif event["type"] == "step":
                yield self._step(event)
            elif event["type"] == "validated":
                yield self._validated(event)
            elif event["type"] == "checkpoint_saved":
                yield self._event(event, f"Checkpoint created at step {event['step']}")
            elif event["type"] == "notice" and event["level"] == "warning":
                fix = f" How to mend it: {event['fix']}" if event.get("fix") else ""
                yield self._event(event, f"{event['message'].rstrip('.')}.{fix}", level="warn")

    def _step(self, event: dict[str, Any]) -> JobEvent:
        data = {
            "step": event["step"],
            "train_loss": event["loss"],
            "total_steps": event["steps"],
            "learning_rate": event["learning_rate"],
        }
        data |= _train_metrics(event["metrics"])
        message = f"Step {event['step']}/{event['steps']}: training loss={event['loss']:.2f}"
        if "train_reward_mean" in data:
            message = f"Step {event['step']}/{event['steps']} , train mean reward={data['train_reward_mean']:.2f}"
        return self._event(event, message, type="metrics", data=data)

    def _validated(self, event: dict[str, Any]) -> JobEvent:
        data = {"step": event["step"]} | valid_metrics(event["metrics"])
        steps = self.steps.get(event["stage"], event["step"])
        message = f"Step {event['step']}/{steps}: full validation loss={event['metrics']['loss']:.2f}"
        if "valid_reward_mean" in data:
            message = f"Step {event['step']}/{steps} , full validation mean reward={data['valid_reward_mean']:.2f}"
        return self._event(event, message, type="metrics", data=data)

    def _event(
        self, event: dict[str, Any], message: str, *, level: str = "info", type: str = "message", data: Any = None
    ) -> JobEvent:
        for path, name in self.hidden.items():
            message = message.replace(path, name)
        message = self._elsewhere.sub("", message)
        what = (self.job_id, event["type"], event.get("stage"), event.get("step"), None if "step" in event else message)
        key = hashlib.sha256(repr(what).encode()).hexdigest()[:24]
        return JobEvent(f"ftevent-{key}", event["time"], level, type, message, data)


def valid_metrics(metrics: dict[str, float]) -> dict[str, float]:
    """Our names of what was measured on the whole validation file, in OpenAI's."""
    names: dict[str, tuple[str, ...]] = {
        "loss": ("valid_loss", "full_valid_loss"),
        "token_accuracy": ("valid_mean_token_accuracy", "full_valid_mean_token_accuracy"),
    }
    if "reward" in metrics:  # of reinforcement; its loss is the same with the sign turned round
        names = {"reward": ("valid_reward_mean",)}
    return {name: metrics[ours] for ours, theirs in names.items() if ours in metrics for name in theirs}


def _train_metrics(metrics: dict[str, float]) -> dict[str, float]:
    """The same of a step of the training."""
    names = {"token_accuracy": "train_mean_token_accuracy", "reward": "train_reward_mean"}
    return {theirs: metrics[ours] for ours, theirs in names.items() if ours in metrics}


def results_csv(events: Iterable[dict[str, Any]]) -> str:
    """The results file: a row a step, in OpenAI's columns; a step that was done twice counts once."""
    trained: dict[int, dict[str, Any]] = {}
    valid: dict[int, dict[str, float]] = {}
    for event in events:
        if event["type"] == "step":
            trained[event["step"]] = event
        elif event["type"] == "validated":
            valid[event["step"]] = valid_metrics(event["metrics"])
    columns = ["step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy"]
    if any("reward" in event["metrics"] for event in trained.values()):
        columns = ["step", "train_loss", "train_reward_mean", "valid_reward_mean"]
    lines = [",".join(columns)]
    for step, event in sorted(trained.items()):
        known = _train_metrics(event["metrics"]) | valid.get(step, {}) | {"step": step, "train_loss": event["loss"]}
        known["train_accuracy"] = known.get("train_mean_token_accuracy")
        cells = [known.get(name) for name in columns]
        lines.append(",".join("" if cell is None else str(cell) for cell in cells))
    return "\n".join(lines) + "\n"


def checkpoint_metrics(events: Iterable[dict[str, Any]]) -> dict[int, dict[str, float]]:
    """Step -> what is known about the model after it."""
    found: dict[int, dict[str, float]] = {}
    for event in events:
        if event["type"] == "step":
            known = {"step": float(event["step"]), "train_loss": event["loss"]}
            found[event["step"]] = known | _train_metrics(event["metrics"])
        elif event["type"] == "validated":
            found.setdefault(event["step"], {"step": float(event["step"])}).update(valid_metrics(event["metrics"]))
    return found
