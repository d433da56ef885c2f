"""Where a stage's loop stands."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Position:
    """Everything that decides how a run goes on, besides tensors; saved as ``trainer.json``."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    micro_tokens: int = 0
    best_step: int = 0
    best_score: list[float] | None = None
    best_metrics: dict[str, float] = field(default_factory=dict)
    scores: dict[str, list[float]] = field(default_factory=dict)  # of all validations, by their step
    validations_without_gain: int = 0
    seconds: float = 0.0
    tokens: int = 0
    peak_memory_bytes: int = 0  # of all processes that worked on the stage
