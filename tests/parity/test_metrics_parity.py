"""Metrics against the libraries that the field trusts, and against cases worked out by hand."""

from __future__ import annotations

import random

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import CHRF
from scipy.stats import binomtest
from sklearn import metrics as sk

from tunesmith.evaluation.calibration import expected_calibration_error
from tunesmith.evaluation.comparison import holm, mcnemar
from tunesmith.evaluation.intervals import exact_limits
from tunesmith.evaluation.label_metrics import confusion_matrix, per_class, reference_numbers
from tunesmith.evaluation.metrics import statistics
from tunesmith.prediction.outputs import Outputs, Truth
from tunesmith.prediction.reading import label_numbers
from tunesmith.recipe import Evaluate

SETTINGS = Evaluate(resamples=100)


def classification(classes: int, rows: int = 300, seed: int = 0) -> tuple[Outputs, list[str], list[str]]:
    """Probabilities that are right more often than not; class 0 never occurs among the references."""
    generator = np.random.default_rng(seed)
    labels = [f"label {number}" for number in range(classes)]
    truth = generator.integers(1 if classes > 2 else 0, classes, rows)
    logits = generator.normal(size=(rows, classes))
    logits[np.arange(rows), truth] += 1.5
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return Outputs(probabilities=probabilities), [labels[number] for number in truth], labels


@pytest.mark.parametrize("classes", [2, 3, 20])
def test_classification_metrics_equal_scikit_learn(classes: int) -> None:
    outputs, references, labels = classification(classes)
    assert outputs.probabilities is not None
    answers = [labels[number] for number in outputs.probabilities.argmax(axis=1)]
    found = {
        name: statistic.value for name, statistic in statistics(outputs, Truth("label", references, labels)).items()
    }
    truth = reference_numbers(references, labels)
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(references, answers))
    assert found["macro_f1"] == pytest.approx(sk.f1_score(references, answers, average="macro", zero_division=0))
    assert found["micro_f1"] == pytest.approx(sk.f1_score(references, answers, average="micro"))
    assert found["log_loss"] == pytest.approx(sk.log_loss(truth, outputs.probabilities, labels=range(classes)))
    # scikit-learn halves the score of two classes and only that one, by default.
    given = outputs.probabilities[:, 1] if classes == 2 else outputs.probabilities
    brier = sk.brier_score_loss(truth, given, **({} if classes == 2 else {"labels": list(range(classes))}))
    assert found["brier"] == pytest.approx(brier)


@pytest.mark.parametrize("classes", [2, 7])
def test_class_table_and_confusion_equal_scikit_learn(classes: int) -> None:
    outputs, references, labels = classification(classes)
    truth, chosen = reference_numbers(references, labels), label_numbers(outputs, labels)
    assert (
        confusion_matrix(truth, chosen, classes)[:, :-1] == sk.confusion_matrix(truth, chosen, labels=range(classes))
    ).all()
    precision, recall, f1, support = sk.precision_recall_fscore_support(
        truth, chosen, labels=range(classes), zero_division=0
    )
    for number, row in enumerate(per_class(outputs, references, labels, SETTINGS)):
        assert row.support == support[number]
        assert row.precision.value == pytest.approx(precision[number])
        assert row.recall.value == pytest.approx(recall[number])
        assert row.f1.value == pytest.approx(f1[number])


def test_answers_that_name_no_label_count_as_scikit_learn_counts_them() -> None:
    labels = ["no", "yes"]
    references = ["yes", "yes", "no", "no", "yes"]
    texts = [' "Yes".', "perhaps", "no", "YES", ""]
    found = {k: s.value for k, s in statistics(Outputs(texts=texts), Truth("label", references, labels)).items()}
    answers = ["yes", "none", "no", "yes", "none"]
    assert found["accuracy"] == pytest.approx(2 / 5)
    assert found["micro_f1"] == pytest.approx(sk.f1_score(references, answers, labels=labels, average="micro"))
    assert found["macro_f1"] == pytest.approx(sk.f1_score(references, answers, labels=labels, average="macro"))
    assert "ece" not in found


def sentences(count: int, seed: int) -> tuple[list[str], list[str]]:
    """Pairs of answers and references that share words, with punctuation, empty texts and repeats among them."""
    chance = random.Random(seed)
    words = ["the", "a", "cat", "mat,", "Dog", "ran", "(far)", "away", "42", "naïve", "don't", "–", "x_y", "Ünder"]
    references = [" ".join(chance.choices(words, k=chance.randint(1, 25))) for _ in range(60)]
    texts = [" ".join(w for w in reference.split() if chance.random() < 0.7) for reference in references]
    chance.shuffle(words)
    texts = [text if chance.random() < 0.7 else " ".join(chance.choices(words, k=9)) for text in texts]
    texts[3], texts[4] = "", "..."
    references[5], references[6] = "hm", ""
    return texts, references


@pytest.mark.parametrize("seed", range(3))
def test_rouge_equals_rouge_score(seed: int) -> None:
    texts, references = sentences(60, seed)
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=False)
    scores = [scorer.score(reference, text) for text, reference in zip(texts, references, strict=True)]
    found = statistics(Outputs(texts=texts), Truth("text", references))
    for name in ("rouge1", "rouge2", "rougeL"):
        assert found[name].row_scores == pytest.approx([score[name].fmeasure for score in scores])


@pytest.mark.parametrize("seed", range(3))
def test_rouge_with_several_references_equals_rouge_score(seed: int) -> None:
    """Texts of several lines, and 1 to 3 references a row."""
    texts, first = sentences(60, seed)
    _, second = sentences(60, seed + 10)
    texts = [text.replace(" the ", "\n", 2) for text in texts]
    several = [
        (one, *[other.replace(" a ", "\n"), one[::-1]][: n % 3])
        for n, (one, other) in enumerate(zip(first, second, strict=True))
    ]
    kinds = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    scorer = RougeScorer(kinds, use_stemmer=False)
    scores = [scorer.score_multi(list(right), text) for text, right in zip(texts, several, strict=True)]
    found = statistics(Outputs(texts=texts), Truth("text", several))
    for name in kinds:
        assert found[name].row_scores == pytest.approx([score[name].fmeasure for score in scores])
    assert not np.allclose(found["rougeLsum"].row_scores, found["rougeL"].row_scores)


def test_chrf_with_several_references_equals_sacrebleu() -> None:
    texts, first = sentences(60, 1)
    second = sentences(60, 2)[1]
    several = [(one, other) if n % 3 else (one,) for n, (one, other) in enumerate(zip(first, second, strict=True))]
    streams = [[right[0] for right in several], [right[1] if right[1:] else None for right in several]]
    found = statistics(Outputs(texts=texts), Truth("text", several))["chrf"]
    assert found.value == pytest.approx(CHRF().corpus_score(texts, streams).score)


@pytest.mark.parametrize("seed", range(3))
def test_chrf_equals_sacrebleu(seed: int) -> None:
    texts, references = sentences(60, seed)
    found = statistics(Outputs(texts=texts), Truth("text", references))["chrf"]
    assert found.value == pytest.approx(CHRF().corpus_score(texts, [references]).score)
    assert found.row_scores is not None
    for row in range(10):
        assert found.row_scores[row] == pytest.approx(CHRF().sentence_score(texts[row], [references[row]]).score)


def test_calibration_error_of_a_case_by_hand() -> None:
    # Two bins: (0, 0.5] holds 0.4 (wrong) and 0.5 (right); (0.5, 1] holds 0.8 (right), 0.9 (right) and 1.0 (wrong).
    confidence = np.array([0.4, 0.5, 0.8, 0.9, 1.0])
    right = np.array([False, True, True, True, False])
    first, second = 2 / 5 * abs(0.5 - 0.45), 3 / 5 * abs(2 / 3 - 0.9)
    assert expected_calibration_error(confidence, right, bins=2).value == pytest.approx(first + second)


def test_bits_per_byte_of_a_case_by_hand() -> None:
    outputs = Outputs(nats=np.log(2.0) * np.array([8.0, 24.0]), reference_bytes=np.array([4, 12]))
    assert statistics(outputs, Truth("text", ["abcd", "abcdefghijkl"]))["bits_per_byte"].value == pytest.approx(2.0)


def test_mcnemar_equals_a_sign_test() -> None:
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(0, 6) == pytest.approx(2 * 0.5**6)
    assert mcnemar(15, 4) == pytest.approx(binomtest(4, 19).pvalue)
    assert mcnemar(15, 4) == mcnemar(4, 15)


def test_holm_of_a_case_by_hand() -> None:
    # Sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1 gives 0.04, 0.06, 0.06, 0.04; the last may not fall.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_exact_limits_follow_the_rule_of_three() -> None:
    # All of n right: the two-sided 95 % limit is 0.025 ** (1 / n).
    low, high = exact_limits(40, 40, 0.95)
    assert (low, high) == (pytest.approx(0.025 ** (1 / 40)), 1.0)
    assert exact_limits(0, 0, 0.95) == (0.0, 1.0)
