"""Metrics of a system on the test rows, each with its interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tunesmith.errors import DataError, NonFiniteError
from tunesmith.evaluation import calibration, text_scores
from tunesmith.evaluation.intervals import Interval, Statistic, bootstrap_all, mean
from tunesmith.evaluation.outputs import FloatArray, IntArray, Outputs
from tunesmith.recipe import Evaluate

NO_LABEL = -1
"""Prediction of a generating model whose answer is none of the labels. It is always wrong."""


@dataclass(frozen=True)
class Metric:
    """A metric in words.

    Attributes:
        name: As in recipes and JSON.
        title: As in tables.
        what: For readers who have never met it, in one line.
        higher_is_better: Direction.
    """

    name: str
    title: str
    what: str
    higher_is_better: bool = True


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", "Accuracy", "Share of test rows given the right label."),
        Metric(
            "macro_f1", "Macro F1", "F1 (balance of precision and recall), averaged over classes whatever their size."
        ),
        Metric("micro_f1", "Micro F1", "F1 over all rows together; equals accuracy when every row gets one label."),
        Metric("ece", "Calibration error (ECE)", "Average gap between stated confidence and actual accuracy.", False),
        Metric("brier", "Brier score", "Squared distance of the stated probabilities from the truth.", False),
        Metric("log_loss", "Log loss", "Surprise at the right label, in nats: confident mistakes cost most.", False),
        Metric("rougeL", "ROUGE-L", "Words shared with the reference answer in the same order, 0 to 1."),
        Metric("rouge1", "ROUGE-1", "Words shared with the reference answer, 0 to 1."),
        Metric("rouge2", "ROUGE-2", "Pairs of neighbouring words shared with the reference answer, 0 to 1."),
        Metric("chrf", "chrF", "Runs of characters shared with the reference answers, 0 to 100."),
        Metric("exact_match", "Exact match", "Share of answers equal to the reference."),
        Metric("bits_per_byte", "Bits per byte", "Surprise at the reference answers, per byte of text.", False),
    )
}

PRIMARY = ("accuracy", "rougeL", "bits_per_byte")
"""Metrics by which systems are compared; the first that all systems have is taken."""


@dataclass(frozen=True)
class ClassScores:
    """How well one class is recognised. Without rows or predictions a score is 0 and its limits 0 and 1.

    Attributes:
        label: The class.
        support: Test rows that truly belong to it.
        predicted: Test rows that were given it.
        precision: Share of ``predicted`` that is right.
        recall: Share of ``support`` that was found.
        f1: Harmonic mean of the two.
    """

    label: str
    support: int
    predicted: int
    precision: Interval
    recall: Interval
    f1: Interval


def measure(
    has_labels: bool,
    outputs: Outputs,
    references: Sequence[str],
    labels: Sequence[str] | None,
    settings: Evaluate,
) -> dict[str, Interval]:
    """Measure everything that the outputs allow, with bootstrap intervals from the same resamples.

    Args:
        has_labels: Whether the task is classification.
        outputs: What the system said on the N test rows.
        references: N right answers.
        labels: The classes, in the order of the columns of ``outputs.probabilities``; ``None`` for generation.
        settings: Resamples, confidence and seed.

    Raises:
        DataError: The outputs do not fit the references, or a reference is not among the labels.
        NonFiniteError: A probability or a likelihood is NaN or infinite.
    """
    if has_labels and not labels:
        raise DataError("a classification task needs its labels")
    found = statistics(outputs, references, labels if has_labels else None)
    return bootstrap_all(found, resamples=settings.resamples, confidence=settings.confidence, seed=settings.seed)


def statistics(
    outputs: Outputs, references: Sequence[str], labels: Sequence[str] | None, *, only: str | None = None
) -> dict[str, Statistic]:
    """The metrics as statistics that can be resampled; ``only`` computes a single one. See :func:`measure`."""
    _check_shapes(outputs, len(references), len(labels) if labels else None)
    makers = _of_labels(outputs, references, labels) if labels else _of_texts(outputs, references)
    return {name: make() for name, make in makers.items() if only in (None, name)}


def available(outputs: Outputs, labels: Sequence[str] | None) -> set[str]:
    """Names of the metrics in :data:`PRIMARY` that these outputs allow."""
    if labels:
        return {"accuracy"} if outputs.probabilities is not None or outputs.texts is not None else set()
    found = {"rougeL"} if outputs.texts is not None else set()
    return found | ({"bits_per_byte"} if outputs.nats is not None and outputs.reference_bytes is not None else set())


def predictions(outputs: Outputs, labels: Sequence[str]) -> IntArray:
    """Index of the label that was chosen for each row, (N,); :data:`NO_LABEL` where an answer names no label.

    Probabilities decide where there are some (the first of equals wins), else the generated text, compared without
    letter case, surrounding white space and punctuation.
    """
    if outputs.probabilities is not None:
        return np.asarray(outputs.probabilities.argmax(axis=1), dtype=np.int64)
    if outputs.texts is None:
        raise DataError("these outputs hold neither probabilities nor texts, so no labels")
    exact = {label: number for number, label in enumerate(labels)}
    bare = {_bare(label): number for number, label in reversed(list(enumerate(labels)))}
    chosen = [exact.get(text.strip(), bare.get(_bare(text), NO_LABEL)) for text in outputs.texts]
    return np.array(chosen, dtype=np.int64)


def reference_numbers(references: Sequence[str], labels: Sequence[str]) -> IntArray:
    """Index of each right label, (N,).

    Raises:
        DataError: A reference is none of the labels.
    """
    numbers = {label: number for number, label in enumerate(labels)}
    for row, reference in enumerate(references, 1):
        if reference not in numbers:
            raise DataError(
                f"the label {reference!r} of test row {row} is not among the {len(labels)} known labels",
                fix="mend the label, or give the training data examples of it",
            )
    return np.array([numbers[reference] for reference in references], dtype=np.int64)


def confidences(outputs: Outputs) -> FloatArray | None:
    """Probability of the chosen label, (N,); ``None`` unless the probabilities are more than plain answers."""
    probabilities = outputs.probabilities
    if probabilities is None or bool(np.isin(probabilities, (0.0, 1.0)).all()):
        return None
    return np.asarray(probabilities.max(axis=1))


def confusion_matrix(references: IntArray, predicted: IntArray, classes: int) -> IntArray:
    """Counts (C, C + 1): a line for each true class, a column for each answer; the last column is "no valid label"."""
    columns = np.where(predicted == NO_LABEL, classes, predicted)
    counts = np.bincount(references * (classes + 1) + columns, minlength=classes * (classes + 1))
    return counts.reshape(classes, classes + 1)


def per_class(
    outputs: Outputs, references: Sequence[str], labels: Sequence[str], settings: Evaluate
) -> list[ClassScores]:
    """Precision, recall and F1 of each class with intervals, in the order of the labels."""
    truth, chosen = reference_numbers(references, labels), predictions(outputs, labels)
    table = confusion_matrix(truth, chosen, len(labels))
    support, predicted = table.sum(axis=1), table[:, :-1].sum(axis=0)
    sums = _class_sums(truth, chosen, len(labels))
    found: dict[tuple[str, int], Statistic] = {}
    for number in range(len(labels)):
        trials = {"precision": int(predicted[number]), "recall": int(support[number])}
        for score in ("precision", "recall", "f1"):
            found[score, number] = Statistic(
                sums, _of_class(score, number), trials=trials.get(score, max(trials.values()))
            )
    got = bootstrap_all(found, resamples=settings.resamples, confidence=settings.confidence, seed=settings.seed)
    return [
        ClassScores(
            label, int(support[i]), int(predicted[i]), *(got[score, i] for score in ("precision", "recall", "f1"))
        )
        for i, label in enumerate(labels)
    ]


def _of_labels(
    outputs: Outputs, references: Sequence[str], labels: Sequence[str]
) -> dict[str, Callable[[], Statistic]]:
    truth, chosen = reference_numbers(references, labels), predictions(outputs, labels)
    right = truth == chosen
    hits, sums, rows = right.astype(np.float64), _class_sums(truth, chosen, len(labels)), len(truth)
    makers: dict[str, Callable[[], Statistic]] = {
        "accuracy": lambda: mean(hits, proportion=True),
        "macro_f1": lambda: Statistic(sums, _macro_f1, row_scores=hits, trials=rows),
        "micro_f1": lambda: Statistic(sums, _micro_f1, row_scores=hits, trials=rows),
    }
    confidence, probabilities = confidences(outputs), outputs.probabilities
    if confidence is not None and probabilities is not None:
        makers["ece"] = lambda: calibration.expected_calibration_error(confidence, right)
        makers["brier"] = lambda: calibration.brier_score(probabilities, truth)
        makers["log_loss"] = lambda: calibration.log_loss(probabilities, truth)
    return makers


def _of_texts(outputs: Outputs, references: Sequence[str]) -> dict[str, Callable[[], Statistic]]:
    makers: dict[str, Callable[[], Statistic]] = {}
    texts, nats, sizes = outputs.texts, outputs.nats, outputs.reference_bytes
    if texts is not None:
        makers["exact_match"] = lambda: text_scores.exact_match(texts, references)
        makers["rouge1"] = lambda: text_scores.rouge(texts, references, "rouge1")
        makers["rouge2"] = lambda: text_scores.rouge(texts, references, "rouge2")
        makers["rougeL"] = lambda: text_scores.rouge(texts, references, "rougeL")
        makers["chrf"] = lambda: text_scores.chrf(texts, references)
    if nats is not None and sizes is not None:
        makers["bits_per_byte"] = lambda: _bits_per_byte(nats, np.asarray(sizes, dtype=np.float64))
    return makers


def _bits_per_byte(nats: FloatArray, sizes: FloatArray) -> Statistic:
    """Total surprise in bits over total bytes: comparable between tokenizers, which perplexity per token is not."""
    return Statistic(
        np.stack([nats, sizes], axis=1),
        lambda sums: sums[:, 0] / np.log(2.0) / np.maximum(sums[:, 1], 1.0),
        row_scores=-nats,
    )


def _class_sums(truth: IntArray, chosen: IntArray, classes: int) -> Any:
    """What each row adds, (N, 3C) sparse: to right answers, to predictions and to references of each class."""
    from scipy.sparse import csr_array

    rows = np.arange(len(truth))
    hit, named = truth == chosen, chosen != NO_LABEL
    columns = np.concatenate([truth[hit], classes + chosen[named], 2 * classes + truth])
    lines = np.concatenate([rows[hit], rows[named], rows])
    return csr_array((np.ones(len(lines)), (lines, columns)), shape=(len(truth), 3 * classes))


def _macro_f1(sums: FloatArray) -> FloatArray:
    """Mean over the classes that occur among references or predictions, as scikit-learn does by default."""
    right, predicted, referred = np.split(sums, 3, axis=1)
    occurring = (predicted + referred > 0).sum(axis=1)
    return (2 * right / np.maximum(predicted + referred, 1)).sum(axis=1) / occurring


def _micro_f1(sums: FloatArray) -> FloatArray:
    right, predicted, referred = (part.sum(axis=1) for part in np.split(sums, 3, axis=1))
    return 2 * right / (predicted + referred)


def _of_class(score: str, number: int) -> Callable[[FloatArray], FloatArray]:
    """Precision, recall or F1 of one class from the sums of :func:`_class_sums`; 0 where the divisor is 0."""

    def combine(sums: FloatArray) -> FloatArray:
        right, predicted, referred = sums.reshape(len(sums), 3, -1)[:, :, number].T
        bottom = {"precision": predicted, "recall": referred, "f1": (predicted + referred) / 2}[score]
        return right / np.maximum(bottom, 0.5)

    return combine


def _bare(text: str) -> str:
    return text.strip().strip("\"'`.,:;!*() \n\t").casefold()


def _check_shapes(outputs: Outputs, rows: int, classes: int | None) -> None:
    """Refuse outputs that do not fit the rows, and numbers that are none."""
    if rows == 0:
        raise DataError(
            "there are no test rows to measure on", fix="give `data.test` a file with rows, or a share above 0"
        )
    for name in ("probabilities", "texts", "nats", "reference_bytes"):
        values = getattr(outputs, name)
        if values is not None and len(values) != rows:
            raise DataError(f"the outputs hold {len(values)} {name} for {rows} test rows")
        if values is None or name == "texts":
            continue
        bad = np.flatnonzero(~np.isfinite(np.asarray(values)).reshape(rows, -1).all(axis=1))
        if len(bad):
            raise NonFiniteError(
                f"the model's {name} are not finite for {len(bad)} of {rows} test rows, first for row {bad[0] + 1}",
                fix="the tuned weights have diverged: lower `training.learning_rate`, or use `fp32`",
            )
    if classes is None or outputs.probabilities is None:
        return
    if outputs.probabilities.shape != (rows, classes):
        raise DataError(f"the probabilities have shape {outputs.probabilities.shape}, not {(rows, classes)}")
    total = outputs.probabilities.sum(axis=1)
    if (outputs.probabilities < 0).any() or np.abs(total - 1).max(initial=0.0) > 1e-3:
        raise DataError("the probabilities of a row must be 0 or more and add up to 1: were logits passed?")
