"""Losses and metrics of labels and scores against torch, transformers, scikit-learn and cases worked by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from tiny import LABELS, Events, build, rows_of
from tunesmith import objectives
from tunesmith.data.batches import Batch, TokenFile, collate, write_tokens
from tunesmith.data.renderers import row_renderer
from tunesmith.evaluation.metrics import measure, statistics
from tunesmith.models.model import Model
from tunesmith.prediction.outputs import Outputs, Truth
from tunesmith.prediction.thresholds import accuracy, best_threshold, f1, label_thresholds, macro_f1
from tunesmith.recipe import Evaluate, Training
from tunesmith.tasks import TASKS

TEXTS = ["good film", "the awful plot was bad", "great", "a dull and awful movie", "fine", "lovely scene"]
NAMES = ["bad", "good", "long"]
SETS = [["good"], ["bad", "long"], [], ["bad"], ["good", "long"], ["good"]]
SCORES = [4.0, 1.0, 5.0, 1.0, 3.0, 5.0]
GRADES = ["1", "3", "4", "5"]


def ready(folder: Path, form: Any, labels: list[str] | None = LABELS) -> Model:
    """A model without dropout."""
    model = build(folder, form, labels=labels)
    model.network.eval()
    return model


def labelled() -> list[dict[str, Any]]:
    return [{"text": t, "label": LABELS[n % 2], "labels": SETS[n], "score": SCORES[n]} for n, t in enumerate(TEXTS)]


def rendered(model: Model, task: str, labels: Sequence[str] | None, folder: Path) -> tuple[TokenFile, Batch]:
    render = row_renderer(model.tokenizer, TASKS[task], form=model.form, labels=labels, max_length=64)
    data = write_tokens(rows_of(labelled()), render, folder)
    return data, collate(data, range(len(data)), model.pad_id)


def mean_loss(name: Any, model: Model, data: TokenFile, batch: Batch, folder: Path, **settings: Any) -> torch.Tensor:
    objective = objectives.make(name, Training(**settings))
    objective.start(model, [data], folder, Events())
    found = objective.loss(model, batch)
    return found.total / found.weight


def logits(model: Model, batch: Batch) -> torch.Tensor:
    return model.class_logits(batch).detach()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_loss_is_the_formula_and_cross_entropy_without_gamma(
    gamma: float, tiny_bert: Path, tmp_path: Path
) -> None:
    model = ready(tiny_bert, "classify")
    data, batch = rendered(model, "text-classification", LABELS, tmp_path)
    found = mean_loss("focal", model, data, batch, tmp_path, focal_gamma=gamma)
    assert batch.labels is not None
    p = torch.softmax(logits(model, batch), -1)[torch.arange(len(TEXTS)), batch.labels]
    torch.testing.assert_close(found.detach(), (-((1 - p) ** gamma) * p.log()).mean())
    if gamma == 0:
        torch.testing.assert_close(found, mean_loss("classify", model, data, batch, tmp_path))


def test_focal_loss_of_a_case_worked_by_hand(tmp_path: Path) -> None:
    """p = 0.9: 0.01 x 0.105361 = 0.00105361, a hundredth of the cross-entropy, as in the paper's section 3."""
    objective: Any = objectives.make("focal", Training())
    scores = torch.tensor([[math.log(9.0), 0.0]], dtype=torch.float64)
    assert float(objective.total(scores, torch.tensor([0]), None)) == pytest.approx(0.00105360516, rel=1e-8)


@pytest.mark.parametrize("wanted", ["balanced", {"negative": 3.0}])
def test_class_weights_are_those_of_torch_and_scikit_learn(wanted: Any, tiny_bert: Path, tmp_path: Path) -> None:
    from sklearn.utils.class_weight import compute_class_weight

    model = ready(tiny_bert, "classify")
    data, batch = rendered(model, "text-classification", LABELS, tmp_path)
    assert batch.labels is not None
    weights = [3.0, 1.0]
    if wanted == "balanced":
        weights = compute_class_weight("balanced", classes=np.arange(2), y=batch.labels.numpy()).tolist()
    for smoothing in (0.0, 0.1):
        found = mean_loss(
            "classify", model, data, batch, tmp_path, class_weights=wanted, label_smoothing=smoothing
        )  # fmt: skip
        expected = functional.cross_entropy(
            logits(model, batch), batch.labels, torch.tensor(weights, dtype=torch.float64), label_smoothing=smoothing
        )
        torch.testing.assert_close(found.detach(), expected)


@pytest.mark.parametrize(
    ("form", "task", "name", "labels"),
    [
        ("multi-label", "multi-label-classification", "multi-label", NAMES),
        ("score", "text-regression", "mse", None),
    ],
)
def test_losses_of_stock_heads_are_those_of_transformers(
    form: Any, task: str, name: str, labels: list[str] | None, tiny_bert: Path, tmp_path: Path
) -> None:
    model = ready(tiny_bert, form, labels=labels)
    _, batch = rendered(model, task, labels, tmp_path)
    objective = objectives.make(name, Training())  # type: ignore[arg-type]
    found = objective.loss(model, batch)  # not started, so scores are not standardised
    wanted = batch.extra["labels"].double() if form == "multi-label" else batch.extra["score"].double()
    network: Any = model.network
    assert network.config.problem_type == {"score": "regression"}.get(form, "multi_label_classification")
    theirs = network(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=wanted).loss
    torch.testing.assert_close(found.total / found.weight, theirs)
    theirs.backward()
    expected = {n: p.grad.clone() for n, p in model.trainable() if p.grad is not None}
    network.zero_grad()
    (found.total / found.weight).backward()
    for n, p in model.trainable():
        if n in expected:
            torch.testing.assert_close(p.grad, expected[n])


def test_balanced_weights_of_several_labels_are_pos_weight(tiny_bert: Path, tmp_path: Path) -> None:
    model = ready(tiny_bert, "multi-label", labels=NAMES)
    data, batch = rendered(model, "multi-label-classification", NAMES, tmp_path)
    found = mean_loss("multi-label", model, data, batch, tmp_path, class_weights="balanced")
    pos = torch.tensor([4 / 2, 3 / 3, 4 / 2], dtype=torch.float64)
    wanted = batch.extra["labels"].double()
    expected = functional.binary_cross_entropy_with_logits(logits(model, batch), wanted, pos_weight=pos)
    torch.testing.assert_close(found.detach(), expected)


@pytest.mark.parametrize("name", ["mse", "huber"])
def test_scores_are_standardised_for_training_and_folded_back(name: Any, tiny_encoder: Path, tmp_path: Path) -> None:
    from tunesmith.models import inference

    model = ready(tiny_encoder, "score", labels=None)
    data, batch = rendered(model, "text-regression", None, tmp_path)
    found = mean_loss(name, model, data, batch, tmp_path)
    wanted = torch.tensor((np.array(SCORES) - np.mean(SCORES)) / np.std(SCORES))
    raw = logits(model, batch)[:, 0]
    loss = functional.mse_loss if name == "mse" else functional.huber_loss
    torch.testing.assert_close(found.detach(), loss(raw, wanted))
    objectives.make(name, Training()).finish(model)
    examples = [data.tokens(n).tolist() for n in range(len(data))]
    expected = np.mean(SCORES) + np.std(SCORES) * raw.numpy()
    np.testing.assert_allclose(inference.scores(model, examples), expected, rtol=1e-9)


def test_corn_asks_only_what_makes_sense_and_reads_grades_off(tiny_encoder: Path, tmp_path: Path) -> None:
    """The loss written out grade by grade, as in the paper's equation 5; probabilities that never rise."""
    from tunesmith.models import inference

    model = ready(tiny_encoder, "ordinal", labels=GRADES)
    data, batch = rendered(model, "text-regression", GRADES, tmp_path)
    raw = logits(model, batch)
    assert raw.shape == (len(TEXTS), len(GRADES) - 1)
    places = [GRADES.index(f"{score:g}") for score in SCORES]
    total, count = 0.0, 0
    for k in range(len(GRADES) - 1):
        for row, place in enumerate(places):
            if place >= k:
                p = torch.sigmoid(raw[row, k])
                total -= float(torch.log(p if place > k else 1 - p))
                count += 1
    assert mean_loss("ordinal", model, data, batch, tmp_path).item() == pytest.approx(total / count, rel=1e-12)
    above = np.cumprod(1 / (1 + np.exp(-raw.numpy())), axis=1)
    assert (np.diff(above, axis=1) <= 0).all()
    examples = [data.tokens(n).tolist() for n in range(len(data))]
    expected = [float(GRADES[place]) for place in (above > 0.5).sum(axis=1)]
    assert inference.scores(model, examples).tolist() == expected


# --- metrics -------------------------------------------------------------------------------------------------------

SETTINGS = Evaluate(resamples=200)


def test_metrics_of_label_sets_are_those_of_scikit_learn() -> None:
    from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score

    random = np.random.default_rng(0)
    probabilities, thresholds = random.random((80, 4)), np.array([0.5, 0.3, 0.7, 0.9])
    true = random.random((80, 4)) < 0.4
    names = list("abcd")
    references = [[name for name, applies in zip(names, line, strict=True) if applies] for line in true]
    found = measure(
        Outputs(probabilities=probabilities, thresholds=thresholds), Truth("labels", references, names), SETTINGS
    )
    chosen = probabilities >= thresholds
    assert found["micro_f1"].value == pytest.approx(f1_score(true, chosen, average="micro"))
    assert found["macro_f1"].value == pytest.approx(f1_score(true, chosen, average="macro"))
    assert found["micro_precision"].value == pytest.approx(precision_score(true, chosen, average="micro"))
    assert found["micro_recall"].value == pytest.approx(recall_score(true, chosen, average="micro"))
    assert found["subset_accuracy"].value == pytest.approx(accuracy_score(true, chosen))


def test_metrics_of_scores_are_those_of_scikit_learn_and_scipy() -> None:
    from scipy.stats import pearsonr, spearmanr
    from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

    random = np.random.default_rng(1)
    truth = random.normal(1000, 3, 60).round()  # far from zero, with ties
    found = truth + random.normal(0, 2, 60)
    got = measure(Outputs(scores=found), Truth("score", truth.tolist()), SETTINGS)
    assert got["r2"].value == pytest.approx(r2_score(truth, found))
    assert got["rmse"].value == pytest.approx(root_mean_squared_error(truth, found))
    assert got["mae"].value == pytest.approx(mean_absolute_error(truth, found))
    assert got["pearson"].value == pytest.approx(pearsonr(truth, found).statistic)
    assert got["spearman"].value == pytest.approx(spearmanr(truth, found).statistic)
    assert all(interval.low <= interval.value <= interval.high for interval in got.values())


def test_scores_that_do_not_vary_order_nothing() -> None:
    got = measure(Outputs(scores=np.full(5, 2.0)), Truth("score", [1.0, 2.0, 3.0, 4.0, 5.0]), SETTINGS)
    assert got["pearson"].value == got["spearman"].value == 0.0
    alike = statistics(Outputs(scores=np.array([1.0, 2.0])), Truth("score", [3.0, 3.0]), only="r2")
    assert alike["r2"].value == 0.0


def test_a_written_score_is_the_first_number_and_silence_gains_nothing() -> None:
    from tunesmith.prediction.reading import written_scores

    assert written_scores(["Score: 3.5 of 5", "\u22122", "no idea"]).tolist() == [3.5, -2.0, 0.75]
    assert written_scores(["none", ""]).tolist() == [0.0, 0.0]


# --- thresholds ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("score", [f1, accuracy, macro_f1])
def test_no_other_threshold_is_better(score: Any) -> None:
    random = np.random.default_rng(2)
    for _ in range(20):
        true = random.random(30) < 0.3
        probabilities = np.round(np.clip(random.normal(0.3 + 0.2 * true, 0.2), 0, 1), 2)  # with ties

        def value(cut: float, p: np.ndarray = probabilities, t: np.ndarray = true) -> float:
            given = p >= cut
            hits, alarms = np.array([(given & t).sum()]), np.array([(given & ~t).sum()])
            return float(score(hits.astype(float), alarms.astype(float), float(t.sum()), float((~t).sum()))[0])

        if not true.any():
            continue
        best = best_threshold(probabilities, true, score)
        tried = [value(cut) for cut in np.unique(np.concatenate([probabilities, probabilities + 0.005]))[1:-1]]
        assert value(best) >= max(tried) - 1e-12


def test_rare_labels_share_a_threshold() -> None:
    random = np.random.default_rng(3)
    true = np.stack([random.random(50) < 0.5, np.arange(50) < 2], axis=1)
    probabilities = np.clip(0.3 + 0.2 * true + random.normal(0, 0.05, true.shape), 0, 1)
    found = label_thresholds(probabilities, true, f1)
    assert found[1] == best_threshold(probabilities.ravel(), true.ravel(), f1)
    assert found[0] == best_threshold(probabilities[:, 0], true[:, 0], f1)


WEIGHED = [
    ("classify", "classify", "text-classification", LABELS, {}),
    ("classify", "classify", "text-classification", LABELS, {"class_weights": {"positive": 3.0}}),
    ("focal", "classify", "text-classification", LABELS, {"class_weights": "balanced"}),
    ("multi-label", "multi-label", "multi-label-classification", NAMES, {"class_weights": "balanced"}),
    ("mse", "score", "text-regression", None, {}),
    ("ordinal", "ordinal", "text-regression", GRADES, {}),
]


@pytest.mark.parametrize(("name", "form", "task", "labels", "settings"), WEIGHED)
def test_what_an_example_weighs_is_what_the_loss_counts(
    name: Any, form: Any, task: str, labels: list[str] | None, settings: dict[str, Any], tiny_bert: Path, tmp_path: Path
) -> None:
    model = ready(tiny_bert, form, labels)
    data, batch = rendered(model, task, labels, tmp_path)
    objective = objectives.make(name, Training(**settings))
    objective.start(model, [data], tmp_path, Events())
    counted = objective.loss(model, batch)
    assert objective.weight_of(model, data) == pytest.approx(counted.weight / len(data))
    again = objectives.make(name, Training(**settings))
    if name != "mse":  # whose head is given back as it learned, below
        again.restart(model, data)
        torch.testing.assert_close(again.loss(model, batch).total, counted.total)


@pytest.mark.parametrize("name", ["mse", "huber"])
def test_scores_that_were_learned_are_standardised_again(name: Any, tiny_bert: Path, tmp_path: Path) -> None:
    model = ready(tiny_bert, "score", None)
    data, batch = rendered(model, "text-regression", None, tmp_path)
    objective = objectives.make(name, Training())
    objective.start(model, [data], tmp_path, Events())
    standardised = objective.loss(model, batch).total
    objective.finish(model)
    raw = objectives.make(name, Training()).loss(model, batch).total
    again = objectives.make(name, Training())
    again.restart(model, data)
    torch.testing.assert_close(again.loss(model, batch).total, standardised)
    assert float(raw.detach()) > 1.5 * float(standardised.detach()), "squares of raw scores are another loss"
