"""Whether one system beats another on the same rows, and the verdict in one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from tunesmith.errors import UsageError
from tunesmith.evaluation.intervals import Interval, Statistic, bootstrap_difference
from tunesmith.evaluation.metrics import METRICS, Metric, available, primary, statistics
from tunesmith.prediction.outputs import Outputs, Truth
from tunesmith.recipe import Evaluate

Outcome = Literal["beats", "loses to", "no difference shown"]

FEW_ROWS = 50
"""Below this many test rows the verdict says that they are few."""


@dataclass(frozen=True)
class System:
    """Something that answered the test rows: the tuned model, or what it is compared with.

    Attributes:
        name: Short and stable: ``tuned``, ``majority``, ``base``, ``few-shot-5-random``, ...
        title: For tables, e.g. "SmolLM2-135M, 5 random examples".
        what: One sentence that says how it answers.
        outputs: What it said.
        metrics: What :func:`~tunesmith.evaluation.metrics.measure` made of that.
        parameters: Number of parameters, all told.
        trainable_parameters: How many of them were tuned.
        training_seconds: Wall-clock time of tuning.
        is_ceiling: Whether it was told the right answers, or is the teacher: nothing is compared with it.
    """

    name: str
    title: str
    what: str
    outputs: Outputs
    metrics: dict[str, Interval]
    parameters: int = 0
    trainable_parameters: int = 0
    training_seconds: float = 0.0
    is_ceiling: bool = False


@dataclass(frozen=True)
class Comparison:
    """The tuned model against one other system.

    Attributes:
        system: Name of the other system.
        title: Its title.
        metric: Name of the metric.
        value: The other system's value.
        difference: Tuned minus other, with its paired bootstrap interval; above 0 is better for the tuned model only if
            higher is better.
        p_value: Two-sided.
        p_adjusted: The same after Holm's correction for the number of comparisons.
        test: ``exact McNemar`` or ``paired bootstrap``.
        wins: Rows that the tuned model did better.
        losses: Rows that the other system did better.
        ties: The rest.
        outcome: What is shown at the confidence asked for: by the interval *and* the corrected p-value.
    """

    system: str
    title: str
    metric: str
    value: Interval
    difference: Interval
    p_value: float
    p_adjusted: float
    test: str
    wins: int
    losses: int
    ties: int
    outcome: Outcome


def compare(tuned: System, others: Sequence[System], right: Truth, settings: Evaluate) -> list[Comparison]:
    """Compare the tuned model with each other system by the primary metric, in the order given.

    The interval of the difference is a paired bootstrap over rows. The p-value is McNemar's for accuracy, and the
    bootstrap's for other metrics (Dror et al. 2018, "The Hitchhiker's Guide to Testing Statistical Significance in
    Natural Language Processing", recommend just these). All p-values together are corrected by :func:`holm`.

    Args:
        tuned: The model in question.
        others: What it is compared with.
        right: What would have been right.
        settings: Resamples, confidence and seed.

    Raises:
        UsageError: The systems have no metric in common.
    """
    if not others:
        return []
    metric = primary_metric([tuned, *others], right)
    ours, *theirs = (statistics(system.outputs, right, only=metric.name)[metric.name] for system in (tuned, *others))
    found = [_against(ours, other, their, metric, settings) for other, their in zip(others, theirs, strict=True)]
    adjusted = holm([comparison.p_value for comparison in found])
    return [_decided(comparison, p, metric, settings) for comparison, p in zip(found, adjusted, strict=True)]


def primary_metric(systems: Sequence[System], right: Truth) -> Metric:
    """The metric that decides: the first of the kind of answer that all systems have.

    Raises:
        UsageError: The systems have none of them in common.
    """
    shared = set.intersection(*(available(system.outputs, right) for system in systems))
    for name in primary(right):
        if name in shared:
            return METRICS[name]
    raise UsageError(
        "the systems have no metric in common: " + ", ".join(system.name for system in systems),
        fix="compare systems that were measured for the same task",
    )


def mcnemar(wins: int, losses: int) -> float:
    """Exact two-sided p-value that rows won and lost are equally likely, ties set aside.

    Q. McNemar, "Note on the sampling error of the difference between correlated proportions", Psychometrika 12, 1947;
    in its exact form, a sign test on the rows where just one of the two is right.
    """
    from scipy.stats import binomtest

    return float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for their number, so that the chance of any false claim stays below the level.

    S. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6, 1979: the
    smallest of m is multiplied by m, the next by m - 1, and so on, never falling below the one before.
    """
    adjusted = [1.0] * len(p_values)
    floor = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        floor = max(floor, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = floor
    return adjusted


def best_other(others: Sequence[System], comparisons: Sequence[Comparison]) -> System | None:
    """The best of the other systems by the metric of the comparison; ``None`` without any."""
    if not comparisons:
        return None
    sign = 1 if METRICS[comparisons[0].metric].higher_is_better else -1
    best = max(comparisons, key=lambda comparison: sign * comparison.value.value)
    return next(other for other in others if other.name == best.system)


def verdict(tuned: System, others: Sequence[System], comparisons: Sequence[Comparison], right: Truth) -> str:
    """Say in one honest sentence whether tuning paid off against the best alternative.

    Args:
        tuned: The model in question.
        others: What it was compared with.
        comparisons: What :func:`compare` found.
        right: What would have been right.
    """
    best = best_other(others, comparisons)
    if best is None:
        metric = primary_metric([tuned], right)
        measured = f"{_mid_sentence(metric.title)} {tuned.metrics[metric.name]}"
        return f"Not compared with anything, so nothing is shown about whether tuning paid off: {measured}."
    found = next(comparison for comparison in comparisons if comparison.system == best.name)
    metric = METRICS[found.metric]
    facts = (
        f"{_mid_sentence(metric.title)} {tuned.metrics[metric.name]} against {found.value} "
        f"for the best alternative ({best.title})"
    )
    difference = f"the difference {found.difference.format(signed=True)}"
    few = f" With only {tuned.outputs.rows} test rows, take this as a hint." if tuned.outputs.rows < FEW_ROWS else ""
    # Guessing the commonest label is a floor, not a rival: beating it alone does not show that tuning paid off.
    floor = (
        " Only a guess was compared: measure a prompt, features or a larger model too." if _only_a_guess(others) else ""
    )
    return _sentence(found, comparisons, facts, difference) + floor + few


def _only_a_guess(others: Sequence[System]) -> bool:
    return all(other.name == "majority" for other in others)


def _sentence(found: Comparison, comparisons: Sequence[Comparison], facts: str, difference: str) -> str:
    if found.outcome == "beats" and all(other.system == "majority" for other in comparisons):
        return f"Better than a guess: {facts}; {difference} excludes zero."
    if found.outcome == "beats":
        open_ends = [other.title for other in comparisons if other.outcome != "beats"]
        but = f", though nothing is shown against {' and '.join(open_ends)}" if open_ends else ""
        return f"Tuning paid off: {facts}; {difference} excludes zero{but}."
    if found.outcome == "loses to":
        return f"Tuning did not pay off: {facts}; {difference} excludes zero, and the alternative is better."
    if found.difference.excludes_zero:
        number = f"p = {found.p_adjusted:.2g} after correction for {len(comparisons)} comparisons"
        return f"Not shown that tuning paid off: {facts}; {difference} excludes zero, but not beyond doubt ({number})."
    return f"Not shown that tuning paid off: {facts}; {difference} includes zero, so it may be chance."


def _against(ours: Statistic, other: System, theirs: Statistic, metric: Metric, settings: Evaluate) -> Comparison:
    difference, p_value = bootstrap_difference(
        ours, theirs, resamples=settings.resamples, confidence=settings.confidence, seed=settings.seed
    )
    assert ours.row_scores is not None and theirs.row_scores is not None  # every primary metric has them
    gaps = ours.row_scores - theirs.row_scores
    wins, losses = int((gaps > 1e-12).sum()), int((gaps < -1e-12).sum())
    test = "exact McNemar" if metric.name == "accuracy" else "paired bootstrap"
    p_value = mcnemar(wins, losses) if metric.name == "accuracy" else p_value
    return Comparison(
        system=other.name,
        title=other.title,
        metric=metric.name,
        value=other.metrics[metric.name],
        difference=difference,
        p_value=p_value,
        p_adjusted=p_value,
        test=test,
        wins=wins,
        losses=losses,
        ties=len(gaps) - wins - losses,
        outcome="no difference shown",
    )


def _decided(comparison: Comparison, p_adjusted: float, metric: Metric, settings: Evaluate) -> Comparison:
    sign = 1 if metric.higher_is_better else -1
    outcome: Outcome = "no difference shown"
    if comparison.difference.excludes_zero and p_adjusted < 1 - settings.confidence:
        outcome = "beats" if sign * np.sign(comparison.difference.value) > 0 else "loses to"
    return replace(comparison, p_adjusted=p_adjusted, outcome=outcome)


def _mid_sentence(title: str) -> str:
    """Lower the first letter of a plain word, but not of an abbreviation such as ROUGE-L."""
    return title if title[1:2].isupper() or title[1:2] == "-" else title[:1].lower() + title[1:]
