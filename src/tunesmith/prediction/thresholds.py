"""From which probability on a label is given: tuned on the validation rows, and on nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tunesmith.arrays import BoolArray, FloatArray
from tunesmith.events import Notice
from tunesmith.prediction.answering import answer
from tunesmith.prediction.outputs import Outputs, Truth
from tunesmith.prediction.reading import true_label_sets
from tunesmith.prediction.setting import Setting

if TYPE_CHECKING:
    from tunesmith.data.prepare import PreparedData
    from tunesmith.data.rows import Row
    from tunesmith.models.model import Model
    from tunesmith.recipe import Training

FEW_POSITIVES = 5
"""A label that applies to fewer validation rows takes the threshold that suits all labels together."""


Score = Callable[[FloatArray, FloatArray, float, float], FloatArray]
"""From hits and false alarms at each threshold, and the positives and negatives there are, to what is maximised."""


def tune_thresholds(model: Model, data: PreparedData, setting: Setting, training: Training) -> None:
    """Give the model the thresholds that the recipe asks for, tuned on the validation rows where it names a metric."""
    labels, wanted = setting.labels or [], training.threshold
    several = setting.task.answer == "labels" and model.form == "multi-label"
    two = setting.task.answer == "label" and len(labels) == 2
    if wanted == "off" or (wanted == "auto" and not several):
        return
    if not several and not two:
        what = "`training.threshold` is not used: it is for two classes, or several labels a text given by a head"
        setting.on_event(Notice(level="warning", message=what))
        return
    if isinstance(wanted, float):
        model.thresholds = [wanted] * len(labels) if several else [1 - wanted, wanted]
        return
    if not len(data.validation):
        what = "there are no validation rows to tune thresholds on: a label is given from 0.5 on"
        setting.on_event(
            Notice(level="warning", message=what, fix="give `data.validation` a share, or set `threshold`")
        )
        return
    model.thresholds = _tuned(model, data, setting, "macro_f1" if wanted == "auto" else wanted)
    shown = ", ".join(f"{label} {cut:.2f}" for label, cut in list(zip(labels, model.thresholds, strict=True))[:10])
    what = f"thresholds tuned on {len(data.validation)} validation rows: {shown}{', ...' if len(labels) > 10 else ''}"
    setting.on_event(Notice(level="info", message=what))


def _tuned(model: Model, data: PreparedData, setting: Setting, metric: str) -> list[float]:
    outputs = answer(model, data.validation, setting)
    return tuned_on(outputs, data.validation, setting, metric).tolist()


def tuned_on(outputs: Outputs, rows: Sequence[Row], setting: Setting, metric: str = "macro_f1") -> FloatArray:
    """The thresholds with the best metric for what a system said on some rows, (C,)."""
    labels, probabilities = setting.labels or [], outputs.probabilities
    assert probabilities is not None
    references = [setting.task.reference(row) for row in rows]
    if setting.task.answer == "label":
        score = macro_f1 if metric == "macro_f1" else accuracy
        cut = best_threshold(probabilities[:, 1], np.array([label == labels[1] for label in references]), score)
        return np.array([1 - cut, cut])
    true = true_label_sets(Truth("labels", references, labels))
    return label_thresholds(probabilities, true, f1 if metric == "macro_f1" else accuracy)


def label_thresholds(probabilities: FloatArray, true: BoolArray, score: Score) -> FloatArray:
    """For each label the threshold with the best score of its own, (C,).

    Args:
        probabilities: (N, C).
        true: (N, C) whether each label applies.
        score: What to maximise.
    """
    shared = best_threshold(probabilities.ravel(), true.ravel(), score)
    return np.array(
        [
            best_threshold(p, t, score) if t.sum() >= FEW_POSITIVES else shared
            for p, t in zip(probabilities.T, true.T, strict=True)
        ]
    )


def best_threshold(probabilities: FloatArray, true: BoolArray, score: Score) -> float:
    """The threshold, halfway between two neighbouring probabilities, with the best score; of equals nearest to 0.5.

    Args:
        probabilities: (N,).
        true: (N,).
        score: What to maximise.
    """
    if true.all() or not true.any():
        return 0.5  # there is nothing to weigh against each other
    order = np.argsort(-probabilities, kind="stable")
    ranked = probabilities[order]
    hits, alarms = np.cumsum(true[order]), np.cumsum(~true[order])
    cuts = np.flatnonzero(ranked[:-1] > ranked[1:])  # the rows up to here are given the label
    if not len(cuts):
        return 0.5
    thresholds = (ranked[cuts] + ranked[cuts + 1]) / 2
    values = score(hits[cuts].astype(float), alarms[cuts].astype(float), float(true.sum()), float((~true).sum()))
    best = np.flatnonzero(values >= values.max() - 1e-12)
    return float(thresholds[best[np.argmin(np.abs(thresholds[best] - 0.5))]])


def f1(hits: FloatArray, alarms: FloatArray, positives: float, negatives: float) -> FloatArray:
    """F1 of the label."""
    return 2 * hits / (hits + alarms + positives)


def accuracy(hits: FloatArray, alarms: FloatArray, positives: float, negatives: float) -> FloatArray:
    """Share of rows that are right."""
    return (hits + negatives - alarms) / (positives + negatives)


def macro_f1(hits: FloatArray, alarms: FloatArray, positives: float, negatives: float) -> FloatArray:
    """Mean of the F1 of the label and of its absence."""
    quiet, missed = negatives - alarms, positives - hits
    return (f1(hits, alarms, positives, negatives) + f1(quiet, missed, negatives, positives)) / 2
