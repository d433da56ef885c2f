"""Metrics of a system on the test rows, each with its interval."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tunesmith.errors import DataError, NonFiniteError, UsageError
from tunesmith.evaluation.intervals import Interval, Statistic, bootstrap_all, bootstrap_difference
from tunesmith.events import Evaluated
from tunesmith.prediction.outputs import Outputs, Truth
from tunesmith.recipe import Evaluate
from tunesmith.tasks.base import Answer, Task


@dataclass(frozen=True)
class Metric:
    """A metric in words.

    Attributes:
        name: As in recipes and JSON.
        title: As in tables.
        what: For readers who have never met it, in one line.
        higher_is_better: Direction; ``None`` for what describes rather than judges.
    """

    name: str
    title: str
    what: str
    higher_is_better: bool | None = True


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", "Accuracy", "Share of test rows given the right label."),
        Metric(
            "macro_f1", "Macro F1", "F1 (balance of precision and recall), averaged over classes whatever their size."
        ),
        Metric("micro_f1", "Micro F1", "F1 over all rows together; equals accuracy when every row gets one label."),
        Metric("micro_precision", "Micro precision", "Share of the labels given that are right."),
        Metric("micro_recall", "Micro recall", "Share of the labels that apply that were given."),
        Metric("subset_accuracy", "Subset accuracy", "Share of test rows given exactly the right labels."),
        Metric("r2", "R²", "Share of the scores' variance that is explained; 0 is guessing the mean, 1 perfect."),
        Metric("rmse", "RMSE", "Root of the mean squared error, in the unit of the scores.", False),
        Metric("mae", "MAE", "Mean distance from the right score, in its unit.", False),
        Metric("spearman", "Spearman", "Whether rows are ordered as by the right scores, -1 to 1."),
        Metric("pearson", "Pearson", "Correlation with the right scores, -1 to 1; scale and offset do not count."),
        Metric("ece", "Calibration error (ECE)", "Average gap between stated confidence and actual accuracy.", False),
        Metric("brier", "Brier score", "Squared distance of the stated probabilities from the truth.", False),
        Metric("log_loss", "Log loss", "Surprise at the right label, in nats: confident mistakes cost most.", False),
        Metric("pair_accuracy", "Pair accuracy", "Share of pairs in which the better answer got the higher score."),
        Metric(
            "liking", "Liking", "Mean log likelihood a token of liked answers minus that of disliked ones, in nats."
        ),
        Metric("span_f1", "Span F1", "F1 of the spans found; one counts if its edges and its label are right."),
        Metric("span_precision", "Span precision", "Share of the spans found that are right."),
        Metric("span_recall", "Span recall", "Share of the true spans that were found."),
        Metric("span_macro_f1", "Span macro F1", "Span F1 averaged over labels, however often each occurs."),
        Metric("judge", "Second judge", "Score of the answers by a judge from which nothing was learned."),
        Metric("reward", "Reward", "What the answers are worth by the reward that was learned from."),
        Metric("rougeL", "ROUGE-L", "Words shared with the reference answer in the same order, 0 to 1."),
        Metric("rouge1", "ROUGE-1", "Words shared with the reference answer, 0 to 1."),
        Metric("rouge2", "ROUGE-2", "Pairs of neighbouring words shared with the reference answer, 0 to 1."),
        Metric("rougeLsum", "ROUGE-Lsum", "ROUGE-L of summaries of several lines, line by line, 0 to 1."),
        Metric("chrf", "chrF", "Runs of characters shared with the reference answers, 0 to 100."),
        Metric("exact_match", "Exact match", "Share of answers equal to the reference."),
        Metric("length_ratio", "Length ratio", "Words written over words of the reference; 1 is as long.", None),
        Metric("repetition", "Repetition", "Share of an answer's runs of four words that stood in it before.", False),
        Metric("bits_per_byte", "Bits per byte", "Surprise at the reference text, per byte of it.", False),
        Metric("perplexity", "Perplexity", "Choices a token that the model wavers between; by its own tokens.", False),
        Metric("masked_loss", "Masked loss", "Surprise at a masked token, in nats; by the model's own tokens.", False),
        Metric("masked_accuracy", "Masked accuracy", "Share of the masked tokens that are the model's first guess."),
    )
}

KINDS: dict[Answer, str] = {
    "label": "tunesmith.evaluation.label_metrics",
    "labels": "tunesmith.evaluation.label_set_metrics",
    "score": "tunesmith.evaluation.score_metrics",
    "spans": "tunesmith.evaluation.span_metrics",
    "text": "tunesmith.evaluation.text_metrics",
    "pair": "tunesmith.evaluation.pair_metrics",
    "thumb": "tunesmith.evaluation.thumb_metrics",
    "likelihood": "tunesmith.evaluation.likelihood_metrics",
    "open": "tunesmith.evaluation.open_metrics",
}
"""Kind of answer -> the module that knows it. Each has

- ``PRIMARY``, names of metrics by which systems are compared (the first that all of them have is taken),
- ``DECIDING``, those that a recipe may name instead,
- ``VALIDATION``, the metric of validations that is drawn beside the loss,
- ``statistics(outputs, right)``, which gives for each metric a function that computes it,
- ``texts(outputs, right)``, the answers as a reader sees them.
"""

DECIDES = {"summarization": "rouge1"}
"""Task -> the metric by which its field compares systems, where that is not the first of its kind of answer."""


def truth(task: Task, references: Sequence[Any], labels: Sequence[str] | None, settings: Evaluate) -> Truth:
    """What would have been right on some rows, and the metric that decides.

    Raises:
        UsageError: ``evaluate.metric`` is no metric that can decide for this task.
    """
    right = Truth(task.answer, references, labels, settings.metric or DECIDES.get(task.name))
    known = kind(right).DECIDING
    if right.metric is not None and right.metric not in known:
        close = difflib.get_close_matches(right.metric, known, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise UsageError(
            f"{right.metric!r} is no metric by which systems can be compared on {task.name}",
            where="evaluate.metric",
            fix=f"{hint}metrics: {', '.join(known)}",
        )
    return right


def kind(right: Truth) -> Any:
    """The module that knows this kind of answer."""
    return importlib.import_module(KINDS[right.answer])


def measure(outputs: Outputs, right: Truth, settings: Evaluate) -> dict[str, Interval]:
    """Measure everything that the outputs allow, with bootstrap intervals from the same resamples.

    Args:
        outputs: What the system said on the N test rows.
        right: What would have been right.
        settings: Resamples, confidence and seed.

    Raises:
        DataError: The outputs do not fit the references, or a reference is not among the labels.
        NonFiniteError: A probability or a likelihood is NaN or infinite.
    """
    found = statistics(outputs, right)
    return bootstrap_all(found, resamples=settings.resamples, confidence=settings.confidence, seed=settings.seed)


def evaluated(system: str, outputs: Outputs, metrics: Mapping[str, Interval]) -> Evaluated:
    """The event that says what :func:`measure` made of a system's answers."""
    return Evaluated(
        system=system,
        metrics={name: interval.as_dict() for name, interval in metrics.items()},
        seconds=outputs.seconds,
        written_tokens_per_second=outputs.written_tokens_per_second,
    )


def statistics(outputs: Outputs, right: Truth, *, only: str | None = None) -> dict[str, Statistic]:
    """The metrics as statistics that can be resampled; ``only`` computes a single one. See :func:`measure`."""
    _check_shapes(outputs, len(right.references))
    makers = kind(right).statistics(outputs, right)
    if not makers:
        raise DataError("these outputs hold neither probabilities nor texts, nor anything else to measure")
    return {name: make() for name, make in makers.items() if only in (None, name)}


def primary(right: Truth) -> Sequence[str]:
    """Names of the metrics by which systems are compared, the best first."""
    names: Sequence[str] = kind(right).PRIMARY
    return names if right.metric is None else [right.metric, *(name for name in names if name != right.metric)]


def available(outputs: Outputs, right: Truth) -> set[str]:
    """Names of the metrics that these outputs allow."""
    return set(kind(right).statistics(outputs, right))


def change(after: Outputs, before: Outputs, right: Truth, settings: Evaluate) -> Interval:
    """After minus before by the metric that decides, paired by row."""
    metric = next(name for name in primary(right) if name in available(after, right) & available(before, right))
    one, other = (statistics(outputs, right, only=metric)[metric] for outputs in (after, before))
    return bootstrap_difference(
        one, other, resamples=settings.resamples, confidence=settings.confidence, seed=settings.seed
    )[0]


_BY_ROW = (
    *("probabilities", "scores", "texts", "spans", "nats", "reference_bytes"),
    *("gaps", "rewards", "judged", "tokens", "correct"),
)


def _check_shapes(outputs: Outputs, rows: int) -> None:
    """Refuse outputs that do not fit the rows, and numbers that are none."""
    if rows == 0:
        raise DataError(
            "there are no test rows to measure on", fix="give `data.test` a file with rows, or a share above 0"
        )
    for name in _BY_ROW:
        values = getattr(outputs, name)
        if values is not None and len(values) != rows:
            raise DataError(f"the outputs hold {len(values)} {name} for {rows} test rows")
        if values is None or name in ("texts", "spans"):
            continue
        bad = np.flatnonzero(~np.isfinite(np.asarray(values)).reshape(rows, -1).all(axis=1))
        if len(bad):
            raise NonFiniteError(
                f"the model's {name} are not finite for {len(bad)} of {rows} test rows, first for row {bad[0] + 1}",
                fix="the tuned weights have diverged: lower `training.learning_rate`, or use `fp32`",
            )
