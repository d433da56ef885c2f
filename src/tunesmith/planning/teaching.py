"""What a teacher adds to a plan: its weights and its own passes in memory, its time, and its signals on disk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tunesmith.planning import costs
from tunesmith.planning.costs import Network, Passes
from tunesmith.planning.result import FLEXIBLE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tunesmith.planning.machine import Machine
    from tunesmith.recipe import Distillation

STATED = 4
"""Bytes of a label's score, of a word's id, and of its log probability on disk (:mod:`tunesmith.objectives`)."""


@dataclass(frozen=True)
class Teaching:
    """The part of a teacher in a stage.

    Attributes:
        memory: Part -> bytes, to be added to those of the student.
        seconds: Of its passes.
        disk_bytes: Of what it thinks of the rows, where that is kept.
    """

    memory: Mapping[str, float]
    seconds: float
    disk_bytes: float


def stays(own: Distillation, form: str) -> bool:
    """Whether the teacher is there while the student trains, as :class:`tunesmith.objectives.distill.Distill` has it.

    Its scores of labels are always kept, its distributions over words if ``cache`` says so; then it goes.
    """
    compared = own.hidden_weight > 0 or own.attention_weight > 0
    return compared or own.answers == "student" or (form != "classify" and own.cache == "off")


def teaching(
    own: Distillation,
    form: str,
    teacher: Network,
    machine: Machine,
    passes: Passes,
    once: Passes,
    loss_share: float,
    student: Mapping[str, float],
    *,
    labels: int,
    rows: int,
) -> Teaching:
    """Memory, time and disk of a teacher.

    Args:
        own: How it teaches.
        form: How the student answers.
        teacher: Its network; nothing of it trains.
        machine: Where it computes.
        passes: The student's.
        once: Over all rows, training and validation, a single time.
        loss_share: Share of the tokens that carry loss.
        student: The student's memory by part.
        labels: How many there are; 0 for texts.
        rows: Training and validation.
    """
    resident = stays(own, form)
    forward = costs.memory(teacher, machine, passes, loss_share, passes_an_update=1.0, trains=False)
    needed = {
        "teacher": forward["weights"],
        "teacher's pass": forward["activations"] + forward["logits"] + forward["allocator"],
    }
    if not resident:  # it has gone before the student needs room for gradients, moments and activations
        later = sum(student[part] for part in ("gradients", "optimizer", *FLEXIBLE))
        whole = sum(needed.values())
        share = max(0.0, whole - later) / whole if whole else 0.0
        needed = {name: size * share for name, size in needed.items()}
    asked = passes if resident else once
    took = costs.seconds(costs.work(teacher, machine, asked, loss_share, forward=True), machine)
    return Teaching(needed, took, _signals(own, form, once.tokens * loss_share, labels, rows))


def _signals(own: Distillation, form: str, places: float, labels: int, rows: int) -> float:
    """Bytes on disk: a number for each label of each row, or words and numbers for each place that carries loss."""
    if form == "classify":
        return float(STATED * labels * rows)
    if own.cache == "off":
        return 0.0
    numbers = own.kept_tokens * (2 if own.cache == "top-k" else 1) + (own.cache == "sampled")
    return STATED * places * numbers
