"""What a plan says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tunesmith.planning.calibration import Correction
from tunesmith.planning.costs import NOTHING, Range
from tunesmith.planning.machine import Machine
from tunesmith.planning.table import Part


@dataclass(frozen=True)
class StagePlan:
    """One stage's part of a plan.

    Attributes:
        name: Of the stage.
        kind: Of the run, by which measurements are found again; empty where nothing is trained in a loop.
        trainable: Parameters that train.
        total: All parameters.
        tokens: Trained on, or read where nothing trains.
        epoch_tokens: Of one epoch.
        cut_share: Share of the examples that are cut to fit.
        steps: Updates.
        memory_parts: Peak bytes by part, corrected by earlier runs.
        memory: Their sum.
        update_seconds: Time of the updates, without any correction.
        updates: The same as a range, corrected.
        validations: Time of measuring on the validation rows.
        checkpoint_bytes: Of one checkpoint.
        disk_bytes: What the stage leaves on disk at most.
        cached_bytes: Of these, what frozen layers make of the rows (``training.cache``), and what a teacher thinks of
            them; both go with the run's end.
        correction: From earlier runs.
        parts: Table of what trains.
    """

    name: str
    kind: str
    trainable: int
    total: int
    tokens: int
    epoch_tokens: int
    cut_share: float
    steps: int
    memory_parts: Mapping[str, float]
    memory: Range
    update_seconds: float
    updates: Range
    validations: Range
    checkpoint_bytes: float
    disk_bytes: float
    correction: Correction
    parts: tuple[Part, ...]
    cached_bytes: float = 0.0

    @property
    def seconds(self) -> Range:
        """Of the whole stage."""
        return self.updates + self.validations

    @property
    def flexible_bytes(self) -> float:
        """The part of the memory that is planned and not known, without its correction."""
        return sum(self.memory_parts[name] for name in FLEXIBLE) / self.correction.bytes

    @property
    def fixed_bytes(self) -> float:
        """The rest."""
        return sum(size for name, size in self.memory_parts.items() if name not in FLEXIBLE)


FLEXIBLE = ("activations", "logits", "allocator")
"""Parts of the memory that depend on the passes."""


@dataclass(frozen=True)
class Plan:
    """The forecast for a recipe.

    Attributes:
        trainable_parameters: Of the stage in which most train.
        total_parameters: Base, adapters and head.
        tokens: Real tokens trained on, all epochs and stages, without padding.
        steps: Updates.
        memory_bytes: Peak of the training: of the process on a CPU, of the device on a GPU.
        seconds: Training with its validations. Loading and the comparison with baselines come on top.
        fits: Whether the upper bound of the memory is there.
        advice: What would help, in sentences; may be empty.
        machine: What it is planned for.
        free_bytes: Memory that is there.
        cost: In US dollars; ``None`` where the machine's price is not known.
        price_note: Where the price is from.
        disk_bytes: What the run leaves on disk at most: checkpoints, model and rendered data.
        stages: Each stage's part.
        devices: What several devices would make of it, see :mod:`tunesmith.planning.parallel`.
        probed: What trial steps measured, if they were made.
    """

    trainable_parameters: int
    total_parameters: int
    tokens: int
    steps: int
    memory_bytes: Range
    seconds: Range
    fits: bool
    advice: tuple[str, ...]
    machine: str = ""
    free_bytes: int = 0
    cost: Range | None = None
    price_note: str = ""
    disk_bytes: float = 0.0
    stages: tuple[StagePlan, ...] = ()
    devices: tuple[dict[str, Any], ...] = ()
    probed: dict[str, float] = field(default_factory=dict)

    @property
    def memory_parts(self) -> Mapping[str, float]:
        """Peak bytes by part, of the stage that needs most."""
        return max(self.stages, key=lambda stage: stage.memory.expected).memory_parts if self.stages else {}

    def as_dict(self) -> dict[str, Any]:
        """The plan as ``tunesmith plan --json`` prints it."""
        return {
            "trainable_parameters": self.trainable_parameters,
            "total_parameters": self.total_parameters,
            "tokens": self.tokens,
            "steps": self.steps,
            "memory_bytes": {name: int(size) for name, size in self.memory_bytes.as_dict().items()},
            "seconds": self.seconds.as_dict(1),
            "fits": self.fits,
            "advice": list(self.advice),
            "expected": {
                "memory_bytes": int(self.memory_bytes.expected),
                "seconds": round(self.seconds.expected, 1),
                "update_seconds": round(sum((s.updates for s in self.stages), NOTHING).expected, 1),
            },
            "memory_parts": {name: int(size) for name, size in self.memory_parts.items()},
            "machine": self.machine,
            "free_memory_bytes": self.free_bytes,
            "cost_usd": None if self.cost is None else self.cost.as_dict(4),
            "price_note": self.price_note,
            "disk_bytes": int(self.disk_bytes),
            "stages": [_stage_dict(stage) for stage in self.stages],
            "parts": [{"stage": stage.name, **part.as_dict()} for stage in self.stages for part in stage.parts],
            **({"devices": list(self.devices)} if self.devices else {}),
            **({"probed": self.probed} if self.probed else {}),
        }

    def _repr_html_(self) -> str:
        """In a notebook: what the run will take, and what trains."""
        from tunesmith import display

        devices = display.of_devices(self)
        title = display.DEVICES if devices else None
        return display.html(display.of_plan(self), *self.advice, display.of_parts(self), title, devices)


def _stage_dict(stage: StagePlan) -> dict[str, Any]:
    return {
        "stage": stage.name,
        "trainable_parameters": stage.trainable,
        "epoch_tokens": stage.epoch_tokens,
        "cut_share": round(stage.cut_share, 4),
        "steps": stage.steps,
        "update_seconds": stage.updates.as_dict(1),
        "validation_seconds": stage.validations.as_dict(1),
        "checkpoint_bytes": int(stage.checkpoint_bytes),
        "cached_bytes": int(stage.cached_bytes),
        "kind": stage.kind,
        "basis": stage.correction.basis,
        "earlier_runs": stage.correction.samples,
        "correction": {"seconds": stage.correction.seconds, "bytes": stage.correction.bytes},
    }


def joined(stages: Sequence[StagePlan], machine: Machine) -> Plan:
    """Stages one after the other: work adds up, memory is that of the largest."""
    most = max(stages, key=lambda stage: stage.memory.expected)
    took = sum((stage.seconds for stage in stages), NOTHING)
    return Plan(
        trainable_parameters=max(s.trainable for s in stages),
        total_parameters=max(s.total for s in stages),
        tokens=sum(s.tokens for s in stages),
        steps=sum(s.steps for s in stages),
        memory_bytes=most.memory,
        seconds=took,
        fits=most.memory.high <= machine.memory_bytes + machine.process_bytes * machine.here,
        advice=(),
        machine=machine.name,
        free_bytes=machine.memory_bytes,
        cost=None if machine.price is None else took.times(machine.price / 3600),
        price_note=machine.price_note,
        disk_bytes=sum(stage.disk_bytes for stage in stages),
        stages=tuple(stages),
    )
