from __future__ import annotations

import numpy as np
import pytest

from tunesmith.errors import UsageError
from tunesmith.evaluation.comparison import System, compare, verdict
from tunesmith.evaluation.metrics import measure
from tunesmith.prediction.outputs import Outputs, Truth
from tunesmith.recipe import Evaluate

SETTINGS = Evaluate(resamples=500)
LABELS = ["bad", "good"]
ROWS = 300
REFERENCES = ["good" if number % 2 else "bad" for number in range(ROWS)]


def classifier(name: str, accuracy: float, seed: int, rows: int = ROWS) -> System:
    """A system that is right on a random share of the rows."""
    right = np.random.default_rng(seed).random(rows) < accuracy
    good = np.array([reference == "good" for reference in REFERENCES[:rows]])
    probability = np.where(right == good, 0.8, 0.2)
    outputs = Outputs(probabilities=np.stack([1 - probability, probability], axis=1))
    return System(
        name, name.title(), "", outputs, measure(outputs, Truth("label", REFERENCES[:rows], LABELS), SETTINGS)
    )


def generator(name: str, texts: list[str], references: list[str]) -> System:
    outputs = Outputs(texts=texts)
    return System(name, name.title(), "", outputs, measure(outputs, Truth("text", references), SETTINGS))


def judge(tuned: System, *others: System) -> tuple[list[str], str]:
    right = Truth("label", REFERENCES[: tuned.outputs.rows], LABELS)
    found = compare(tuned, others, right, SETTINGS)
    return [comparison.outcome for comparison in found], verdict(tuned, others, found, right)


def test_a_clear_gain_is_claimed() -> None:
    outcomes, sentence = judge(classifier("tuned", 0.9, 1), classifier("base", 0.6, 2), classifier("few-shot", 0.7, 3))
    assert outcomes == ["beats", "beats"]
    assert sentence.startswith("Tuning paid off: accuracy 0.9")
    assert "best alternative (Few-Shot)" in sentence and "excludes zero." in sentence


def test_a_clear_loss_is_admitted() -> None:
    outcomes, sentence = judge(classifier("tuned", 0.6, 1), classifier("base", 0.9, 2))
    assert outcomes == ["loses to"]
    assert sentence.startswith("Tuning did not pay off")
    assert "the difference -0." in sentence


def test_chance_is_called_chance() -> None:
    outcomes, sentence = judge(classifier("tuned", 0.75, 1), classifier("base", 0.75, 2))
    assert outcomes == ["no difference shown"]
    assert sentence.startswith("Not shown that tuning paid off") and "includes zero" in sentence


def test_identical_answers_are_no_difference() -> None:
    tuned = classifier("tuned", 0.75, 1)
    found = compare(tuned, [tuned], Truth("label", REFERENCES, LABELS), SETTINGS)[0]
    assert (found.wins, found.losses, found.ties, found.p_value) == (0, 0, ROWS, 1.0)


def test_wins_losses_and_difference_add_up() -> None:
    tuned, base = classifier("tuned", 0.8, 1), classifier("base", 0.6, 2)
    found = compare(tuned, [base], Truth("label", REFERENCES, LABELS), SETTINGS)[0]
    assert found.wins + found.losses + found.ties == ROWS
    assert found.difference.value == pytest.approx((found.wins - found.losses) / ROWS)
    assert found.test == "exact McNemar"


def test_many_comparisons_want_stronger_evidence() -> None:
    tuned, rival = classifier("tuned", 0.80, 1), classifier("rival", 0.72, 21)
    alone = compare(tuned, [rival], Truth("label", REFERENCES, LABELS), SETTINGS)[0]
    crowd = compare(
        tuned,
        [rival, *(classifier(f"other {n}", 0.79, n) for n in range(30, 38))],
        Truth("label", REFERENCES, LABELS),
        SETTINGS,
    )
    assert alone.p_adjusted == alone.p_value < 0.05 <= crowd[0].p_adjusted
    assert (alone.outcome, crowd[0].outcome) == ("beats", "no difference shown")


def test_few_rows_are_said_to_be_few() -> None:
    _, sentence = judge(classifier("tuned", 0.9, 1, rows=20), classifier("base", 0.5, 2, rows=20))
    assert sentence.endswith("With only 20 test rows, take this as a hint.")


def test_nothing_to_compare_with_is_said() -> None:
    outcomes, sentence = judge(classifier("tuned", 0.9, 1))
    assert outcomes == []
    assert sentence.startswith("Not compared with anything") and "accuracy 0.9" in sentence


def test_lower_is_better_for_bits_per_byte() -> None:
    chance = np.random.default_rng(0)
    sizes = chance.integers(20, 80, 100)
    references = ["x" * int(size) for size in sizes]
    systems = []
    for name, nats in (("tuned", 0.5), ("base", 0.9)):
        outputs = Outputs(nats=sizes * nats * chance.uniform(0.9, 1.1, 100), reference_bytes=sizes)
        systems.append(System(name, name, "", outputs, measure(outputs, Truth("text", references), SETTINGS)))
    found = compare(systems[0], systems[1:], Truth("text", references), SETTINGS)
    assert (found[0].outcome, found[0].metric, found[0].wins) == ("beats", "bits_per_byte", 100)
    assert found[0].difference.high < 0
    assert verdict(systems[0], systems[1:], found, Truth("text", references)).startswith(
        "Tuning paid off: bits per byte 0.7"
    )


def test_generated_answers_are_compared_by_rouge() -> None:
    references = [f"the answer is number {n} of many" for n in range(60)]
    tuned = generator("tuned", references, references)
    base = generator("base", ["I do not know the number"] * 59 + [""], references)
    found = compare(tuned, [base], Truth("text", references), SETTINGS)
    assert (found[0].metric, found[0].outcome, found[0].wins) == ("rougeL", "beats", 60)
    assert "ROUGE-L 1.000" in verdict(tuned, [base], found, Truth("text", references))


def test_systems_without_a_common_metric_are_refused() -> None:
    references = ["a", "b"]
    tuned = generator("tuned", ["a", "b"], references)
    outputs = Outputs(nats=np.ones(2), reference_bytes=np.ones(2))
    base = System("base", "base", "", outputs, measure(outputs, Truth("text", references), SETTINGS))
    with pytest.raises(UsageError, match="no metric in common: tuned, base"):
        compare(tuned, [base], Truth("text", references), SETTINGS)
