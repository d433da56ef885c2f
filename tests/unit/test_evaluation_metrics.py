from __future__ import annotations

import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from tunesmith.data.spans import Span
from tunesmith.errors import DataError, NonFiniteError, UsageError
from tunesmith.evaluation.calibration import reliability
from tunesmith.evaluation.intervals import Interval
from tunesmith.evaluation.label_metrics import confidences, per_class
from tunesmith.evaluation.metrics import KINDS, METRICS, kind, measure, statistics
from tunesmith.evaluation.text_scores import common_subsequence, rouge, rouge_tokenizer
from tunesmith.prediction.outputs import Outputs, Truth
from tunesmith.prediction.reading import label_numbers, label_sets, written_scores
from tunesmith.recipe import Evaluate
from tunesmith.tasks import TASKS

SETTINGS = Evaluate(resamples=200)
LABELS = ["bad", "good"]


def binary(rights: list[bool], sure: float = 0.9) -> tuple[Outputs, list[str]]:
    """Rows that are all truly good."""
    probabilities = np.array([[1 - sure, sure] if right else [sure, 1 - sure] for right in rights])
    return Outputs(probabilities=probabilities), ["good"] * len(rights)


def test_one_row_is_measured_and_claims_little() -> None:
    outputs, references = binary([True])
    found = measure(outputs, Truth("label", references, LABELS), SETTINGS)
    assert found["accuracy"].value == 1.0
    assert found["accuracy"].low == pytest.approx(0.025)  # Clopper-Pearson with one trial
    assert found["macro_f1"].low == pytest.approx(0.025)
    assert found["brier"].value == pytest.approx(0.01)


def test_a_perfect_score_is_not_certainty() -> None:
    outputs, references = binary([True] * 50)
    found = measure(outputs, Truth("label", references, LABELS), SETTINGS)
    assert (found["accuracy"].value, found["accuracy"].high) == (1.0, 1.0)
    assert 0.92 < found["accuracy"].low < 0.94


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("U.S.; France", ["U.S.", "France"]),
        ("france, u.s", ["U.S.", "France"]),
        ("Bosnia, Herzegovina; France", ["France", "Bosnia, Herzegovina"]),
        ("a; b\nFrance.", ["France", "a; b"]),
        ("b; `France`, Spain", ["France"]),
        ("none", []),
        ("", []),
    ],
)
def test_labels_are_found_in_what_was_written(text: str, named: list[str]) -> None:
    labels = ["U.S.", "France", "Bosnia, Herzegovina", "a; b", "."]
    [row] = label_sets(Outputs(texts=[text]), labels).tolist()
    assert [label for label, given in zip(labels, row, strict=True) if given] == named


def of_every_kind() -> list[tuple[Outputs, Truth]]:
    outputs, references = binary([True, False, True, True, False, True, True])
    worth = {"rewards": np.array([0.5, -1.0, 2.0]), "judged": np.array([0.0, 1.0, 1.0])}
    nats, sizes = np.array([1.0, 2.0, 3.0]), np.array([3, 3, 1])
    texts = Outputs(texts=["a b", "", "c"], nats=nats, reference_bytes=sizes, **worth)
    spans = [[Span(0, 3, "bad")], [Span(1, 2, "good"), Span(4, 6, "bad")], []]
    of_text, tokens = np.array([5.0, 7.0]), np.array([9.0, 4.0])
    sets = Truth("labels", [["good"], [], ["bad", "good"]], LABELS)
    return [
        (outputs, Truth("label", references, LABELS)),
        (texts, Truth("text", ["a c", "b b", ("c", "c\nd")])),
        (texts, Truth("open", ["", "", ""])),
        (Outputs(gaps=np.array([1.0, -2.0, 0.0]), log_odds=True), Truth("pair", [1.0] * 3)),
        (Outputs(scores=np.array([1.0, 2.5, 2.0])), Truth("thumb", [True, False, True])),
        (Outputs(spans=[spans[0], spans[1][:1], []]), Truth("spans", spans, LABELS)),
        (Outputs(nats=of_text, tokens=tokens, reference_bytes=tokens), Truth("likelihood", ["", ""])),
        (Outputs(nats=of_text, tokens=tokens, correct=np.array([3.0, 1.0])), Truth("likelihood", ["", ""])),
        (Outputs(probabilities=np.array([[0.1, 0.9], [0.7, 0.2], [0.6, 0.8]])), sets),
        (Outputs(scores=np.array([1.0, 2.5, 2.0])), Truth("score", [1.0, 2.0, 3.0])),
    ]


def test_every_metric_is_described_and_lies_in_its_interval() -> None:
    found: dict[str, Interval] = {}
    for outputs, right in of_every_kind():
        found |= measure(outputs, right, SETTINGS)
    assert set(found) == set(METRICS)
    for interval in found.values():
        assert interval.low <= interval.value <= interval.high


def test_what_may_decide_is_what_can_be_compared_row_by_row() -> None:
    able: dict[str, set[str]] = {}
    for outputs, right in of_every_kind():
        able.setdefault(right.answer, set()).update(
            name
            for name, statistic in statistics(outputs, right).items()
            if statistic.row_scores is not None and METRICS[name].higher_is_better is not None
        )
    assert able == {answer: set(kind(Truth(answer, [])).DECIDING) for answer in KINDS}


def test_a_class_without_rows_has_unknown_recall_and_does_not_count_in_macro_f1() -> None:
    outputs, references = binary([True, True, False, True])
    outputs = Outputs(probabilities=np.pad(outputs.probabilities, ((0, 0), (0, 1))))
    labels = [*LABELS, "never seen"]
    found = measure(outputs, Truth("label", references, labels), SETTINGS)
    assert found["macro_f1"].value == pytest.approx((0 + 6 / 7) / 2)
    unseen = per_class(outputs, references, labels, SETTINGS)[2]
    assert (unseen.support, unseen.predicted) == (0, 0)
    assert (unseen.recall.value, unseen.recall.low, unseen.recall.high) == (0.0, 0.0, 1.0)


def test_the_first_of_equal_probabilities_is_the_answer() -> None:
    assert label_numbers(Outputs(probabilities=np.array([[0.5, 0.5]])), LABELS).tolist() == [0]


def test_plain_answers_have_no_calibration() -> None:
    outputs = Outputs(probabilities=np.array([[0.0, 1.0], [1.0, 0.0]]))
    assert confidences(outputs) is None
    assert not {"ece", "brier", "log_loss"} & set(measure(outputs, Truth("label", ["good", "bad"], LABELS), SETTINGS))


def test_labels_that_differ_in_case_only_are_told_apart() -> None:
    assert label_numbers(Outputs(texts=["us", "US", " us. "]), ["US", "us"]).tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("outputs", "references", "error", "words"),
    [
        (Outputs(probabilities=np.array([[0.5, 0.5], [np.nan, 0.5]])), ["bad", "bad"], NonFiniteError, "row 2"),
        (Outputs(probabilities=np.array([[2.0, -3.0]])), ["bad"], DataError, "logits"),
        (Outputs(probabilities=np.array([[0.5, 0.5]])), ["bad", "bad"], DataError, "1 probabilities for 2"),
        (Outputs(probabilities=np.array([[0.2, 0.3, 0.5]])), ["bad"], DataError, "shape"),
        (Outputs(probabilities=np.array([[0.5, 0.5]])), ["ugly"], DataError, "'ugly' of test row 1"),
        (Outputs(probabilities=np.zeros((0, 2))), [], DataError, "no test rows"),
        (Outputs(), ["bad"], DataError, "neither"),
    ],
)
def test_outputs_that_cannot_be_measured_are_refused(
    outputs: Outputs, references: list[str], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        measure(outputs, Truth("label", references, LABELS), SETTINGS)


def test_likelihoods_that_are_not_finite_are_refused() -> None:
    outputs = Outputs(nats=np.array([1.0, np.inf]), reference_bytes=np.array([1, 1]))
    with pytest.raises(NonFiniteError, match="row 2"):
        measure(outputs, Truth("text", ["a", "b"]), SETTINGS)


def test_words_of_other_scripts_count() -> None:
    tokens = rouge_tokenizer(["кошка сидит", "猫が座る"])
    assert tokens("Кошка, СИДИТ!") == ["кошка", "сидит"]
    assert tokens("猫が2024年") == ["猫", "が", "2024", "年"]
    found = measure(Outputs(texts=["кошка спит"]), Truth("text", ["кошка сидит"]), SETTINGS)
    assert found["rouge1"].value == pytest.approx(0.5)


def test_marks_belong_to_the_words_of_other_scripts() -> None:
    tokens = rouge_tokenizer(["हिन्दी में लिखा"])
    assert tokens("हिन्दी में लिखा, a_b") == ["हिन्दी", "में", "लिखा", "a", "b"]
    assert tokens("กิน ဂျပန် データ") == ["กิ", "น", "ဂျ", "ပ", "န်", "デ", "ー", "タ"]
    other = measure(Outputs(texts=["हन्दा मो लेख"]), Truth("text", ["हिन्दी में लिखा"]), SETTINGS)
    assert other["rouge1"].value == 0.0


@pytest.mark.parametrize("kind", ["rouge1", "rouge2", "rougeL", "rougeLsum"])
def test_rouge_reads_letters_in_pieces_as_letters(kind: str) -> None:
    text = "Чёрный йод, ещё стоит"
    pieces = unicodedata.normalize("NFD", text)
    assert pieces != text
    for answer, reference in ((pieces, text), (text, pieces), (pieces, pieces)):
        assert rouge([answer], [[reference]], kind).row_scores == pytest.approx([1.0])


def test_of_several_references_the_nearest_counts() -> None:
    several = [("the cat sat", "a dog ran away"), ("one",)]
    outputs = Outputs(texts=["a dog ran", "two"])
    found = measure(outputs, Truth("text", several), SETTINGS)
    alone = measure(outputs, Truth("text", ["a dog ran away", "one"]), SETTINGS)
    for name in ("rouge1", "rouge2", "rougeL", "chrf", "exact_match"):
        assert found[name].value == pytest.approx(alone[name].value), name
    assert measure(Outputs(texts=["B "]), Truth("text", [("a", "B")]), SETTINGS)["exact_match"].value == 1.0
    # 3 words against the 3 of the nearest in length, and 1 against 1
    assert found["length_ratio"].value == pytest.approx(1.0)


def test_repetition_of_a_case_by_hand() -> None:
    # a b c d a b c d: five runs of four words, of which "a b c d" occurs twice; three words have no run.
    found = measure(Outputs(texts=["a b c d a b c d", "x y z"]), Truth("text", ["a", "x"]), SETTINGS)
    assert found["repetition"].value == pytest.approx((1 / 5 + 0) / 2)


def test_the_metric_that_decides_can_be_chosen() -> None:
    from tunesmith.evaluation.metrics import primary, truth
    from tunesmith.tasks import TASKS

    chosen = truth(TASKS["text-generation"], ["a"], None, Evaluate(metric="exact_match"))
    assert primary(chosen)[0] == "exact_match"
    assert primary(truth(TASKS["text-generation"], ["a"], None, Evaluate()))[:3] == ("judge", "reward", "rougeL")
    with pytest.raises(UsageError, match="chfr") as refused:
        truth(TASKS["text-generation"], ["a"], None, Evaluate(metric="chfr"))
    assert "did you mean 'chrf'" in str(refused.value.fix)
    for metric in ("length_ratio", "span_f1"):  # it describes, and cannot decide; it is of another task
        with pytest.raises(UsageError, match=metric):
            truth(TASKS["text-generation"], ["a"], None, Evaluate(metric=metric))
    with pytest.raises(UsageError, match="ece"):
        truth(TASKS["text-classification"], ["a"], ["a"], Evaluate(metric="ece"))


@given(st.lists(st.sampled_from("abc"), max_size=80), st.lists(st.sampled_from("abc"), max_size=80))
@settings(max_examples=60)
def test_common_subsequence_equals_the_textbook_table(a: list[str], b: list[str]) -> None:
    table = np.zeros((len(a) + 1, len(b) + 1), dtype=int)
    for i, left in enumerate(a):
        for j, right in enumerate(b):
            table[i + 1, j + 1] = table[i, j] + 1 if left == right else max(table[i, j + 1], table[i + 1, j])
    assert common_subsequence(a, b) == table[-1, -1]


def test_reliability_bins_hold_every_row_once() -> None:
    confidence = np.array([0.0, 0.1, 0.5, 0.51, 1.0])
    bins = reliability(confidence, np.array([False, True, True, False, True]), bins=10)
    assert [b.rows for b in bins] == [2, 0, 0, 0, 1, 1, 0, 0, 0, 1]
    assert bins[1].accuracy is None
    assert bins[0].accuracy is not None and bins[0].accuracy.value == 0.5


@pytest.mark.parametrize("score", [1234567.0, 2.5e6, 1e-5, -3.25, 0.1, 12.0, 1e16])
def test_a_written_score_is_read_as_it_was_taught(score: float) -> None:
    task = TASKS["text-regression"]
    [row] = tiny.rows_of([{"text": "a", "score": score}])
    assert "e" not in task.target_text(row)
    assert written_scores([task.target_text(row), f"{score:e}"]).tolist() == pytest.approx([score, score], rel=1e-5)
