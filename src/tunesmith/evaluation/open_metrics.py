"""Answers to prompts that come without a right answer: what they are worth to a judge, and how often they repeat."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tunesmith.evaluation import text_metrics
from tunesmith.evaluation.intervals import Statistic
from tunesmith.prediction.outputs import Outputs, Truth

PRIMARY = ("judge", "reward", "repetition")
DECIDING = PRIMARY
VALIDATION = None
texts = text_metrics.texts


def statistics(outputs: Outputs, right: Truth) -> dict[str, Callable[[], Statistic]]:
    """Name -> how to compute it: those of written answers that need no reference."""
    known = text_metrics.statistics(outputs, replace(right, references=[""] * outputs.rows))
    return {name: known[name] for name in PRIMARY if name in known}
