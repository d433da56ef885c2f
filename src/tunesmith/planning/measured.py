"""What a run took, beside what was planned for it: for people in the report, for later plans as samples."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.events import Event, Listener, StageFinished, Step
from tunesmith.planning import calibration
from tunesmith.planning.result import Plan, StagePlan

if TYPE_CHECKING:
    from tunesmith.evaluation.report import Section

LEAST_SHARE = 0.2
"""A run that stopped before so much of its tokens says little about a whole one."""


@dataclass
class _Taken:
    """What one stage took so far in this process."""

    seconds: float = 0.0
    own_seconds: float = 0.0
    tokens: int = 0
    finished: StageFinished | None = None


@dataclass
class Stopwatch:
    """A listener that passes events on and adds up the time of updates, by the clock and of the processors.

    The processors' time between the end of the last event and a step's is that of the step: it says what the step
    takes on a machine of its own, also where other work goes on beside it.
    """

    tell: Listener
    _stages: dict[str, _Taken] = field(default_factory=dict)
    _used: float = field(default_factory=lambda: time.process_time())

    def __call__(self, event: Event) -> None:
        """Count a step, or the end of a stage."""
        if isinstance(event, Step):
            taken = self._stages.setdefault(event.stage, _Taken())
            taken.seconds += event.seconds
            taken.own_seconds += (time.process_time() - self._used) / _threads()
            taken.tokens += event.tokens
        elif isinstance(event, StageFinished):
            self._stages.setdefault(event.stage, _Taken()).finished = event
        self.tell(event)
        self._used = time.process_time()

    def own_share(self, stage: str) -> float:
        """Part of a stage's time by the clock that it would have taken on a machine of its own."""
        taken = self._stages[stage]
        return 1.0 if _on_gpu() else min(1.0, taken.own_seconds / max(taken.seconds, 1e-9))

    def compared(self, planned: Plan) -> dict[str, Any]:
        """The measurements as ``plan.json`` keeps them beside the plan; later plans learn from them."""
        stages: list[dict[str, Any]] = []
        for stage in planned.stages:
            taken = self._stages.get(stage.name)
            if taken is None or taken.finished is None:
                continue
            ended = taken.finished
            learned = _learn(planned.machine, stage, taken, ended)
            stages.append(
                {
                    "stage": stage.name,
                    "seconds": ended.seconds,
                    "own_seconds": taken.own_seconds,
                    "memory_bytes": ended.peak_memory_bytes,
                    "tokens": ended.tokens,
                    "kind": stage.kind,
                    "learned_from": learned,
                }
            )
        return {
            "seconds": sum(stage["seconds"] for stage in stages),
            "own_seconds": sum(stage["own_seconds"] for stage in stages),
            "memory_bytes": max((stage["memory_bytes"] for stage in stages), default=0),
            "stages": stages,
        }


def _learn(machine: str, stage: StagePlan, taken: _Taken, ended: StageFinished) -> bool:
    """Remember a stage as a sample, if this process did all of it and enough of what was planned."""
    share = ended.tokens / stage.tokens if stage.tokens else 0.0
    whole = taken.tokens == ended.tokens
    if not (stage.kind and whole and share > LEAST_SHARE):
        return False
    own = taken.own_seconds if taken.own_seconds < ended.seconds and not _on_gpu() else ended.seconds
    return calibration.record(
        calibration.Sample(
            machine=machine,
            kind=stage.kind,
            planned_seconds=stage.update_seconds * share,
            seconds=ended.seconds,
            own_seconds=own,
            planned_bytes=stage.flexible_bytes,
            bytes=ended.peak_memory_bytes - stage.fixed_bytes,
            time=time.time(),
        )
    )


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def _on_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def section(folder: Path) -> Section | None:
    """The report's table of what was planned and measured; ``None`` where nothing was trained.

    Args:
        folder: Of the run.
    """
    from tunesmith import words
    from tunesmith.evaluation.report import Section

    path = folder / "plan.json"
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    planned, measured = content.get("planned") or {}, content.get("measured") or {}
    expected = planned.get("expected")
    if not expected or not measured.get("stages"):
        return None
    rows = []
    lines: list[tuple[str, Any, float, float]] = [
        ("Peak memory", words.size, expected["memory_bytes"], measured["memory_bytes"]),
        ("Time of the updates", words.duration, expected["update_seconds"], measured["seconds"]),
        ("The same without other work", words.duration, expected["update_seconds"], measured["own_seconds"]),
    ]
    for title, shown, was_expected, was_measured in lines:
        off = f"{was_expected / was_measured - 1:+.0%}" if was_measured else "–"
        rows.append([title, shown(was_expected), shown(was_measured), off])
    data = {"expected": expected, "measured": measured}
    runs = max(stage["earlier_runs"] for stage in planned["stages"])
    learned = f"The plan was corrected by {runs} earlier runs." if runs else "No earlier run had corrected the plan."
    lead = (
        f"{learned} The time without other work is the processors' time over the threads: what a run takes that has "
        "the machine for itself."
    )
    return Section("plan", "What was planned", lead, ["", "Planned", "Measured", "Plan off by"], rows, data)
