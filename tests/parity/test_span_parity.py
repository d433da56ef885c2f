"""Spans, their F1 and the loss of tags against seqeval, nervaluate, transformers, and a case worked by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tiny
from tunesmith.data.batches import collate
from tunesmith.data.spans import Span
from tunesmith.data.tag_schemes import spans_of_tags
from tunesmith.evaluation import span_metrics
from tunesmith.evaluation.metrics import measure
from tunesmith.objectives.tag import Tag, span_counts
from tunesmith.prediction.outputs import Outputs, Truth
from tunesmith.recipe import Evaluate, Training

LABELS = ["a", "b"]
NAMES = ["O", "B-a", "I-a", "B-b", "I-b"]
TAGS = st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=10), min_size=1, max_size=6)


def spans(tags: list[str]) -> list[Span]:
    return [Span(*span) for span in spans_of_tags(tags)]


@given(tags=st.lists(st.sampled_from(["O", *(f"{m}-{x}" for m in "BIES" for x in "ab")]), max_size=12))
def test_tags_mean_the_spans_that_seqeval_reads(tags: list[str]) -> None:
    from seqeval.metrics.sequence_labeling import get_entities

    assert [(label, start, end) for start, end, label in spans_of_tags(tags)] == [
        (label, first, last + 1) for label, first, last in get_entities(tags)
    ]


@given(truth=TAGS, data=st.data())
def test_f1_is_that_of_seqeval_and_nervaluate(truth: list[list[int]], data: st.DataObject) -> None:
    import warnings

    from nervaluate.evaluator import Evaluator
    from seqeval.metrics import classification_report

    found = [data.draw(st.lists(st.integers(0, 4), min_size=len(row), max_size=len(row))) for row in truth]
    true_tags, found_tags = ([[NAMES[n] for n in row] for row in rows] for rows in (truth, found))
    outputs = Outputs(spans=[spans(row) for row in found_tags])
    right = Truth("spans", [spans(row) for row in true_tags], LABELS)
    if not any(right.references) or not any(outputs.spans or []):
        return
    ours = {name: statistic().value for name, statistic in span_metrics.statistics(outputs, right).items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = classification_report(true_tags, found_tags, output_dict=True, zero_division=0)
    micro = theirs["micro avg"]
    assert ours["span_f1"] == pytest.approx(micro["f1-score"])
    assert ours["span_precision"] == pytest.approx(micro["precision"])
    assert ours["span_recall"] == pytest.approx(micro["recall"])
    for row in span_metrics.per_class(outputs, right, Evaluate(resamples=100)):
        if row.label in theirs:
            assert row.f1.value == pytest.approx(theirs[row.label]["f1-score"])
            assert row.support == theirs[row.label]["support"]
    as_dicts = [
        [[{"label": s.label, "start": s.start, "end": s.end - 1} for s in row] for row in rows]
        for rows in (right.references, outputs.spans or [])
    ]
    strict = Evaluator(*as_dicts, tags=LABELS, loader="dict").evaluate()["overall"]["strict"]
    assert ours["span_f1"] == pytest.approx(strict.f1)
    flat = [np.concatenate([np.asarray(row) for row in rows]) for rows in (found, truth)]
    rows_N = np.repeat(np.arange(len(truth)), [len(row) for row in truth])
    common, predicted, true = span_counts(*flat, rows_N)
    assert ours["span_f1"] == pytest.approx(2 * common / (predicted + true))  # what validations report


def test_a_case_worked_by_hand() -> None:
    """Three rows; a label is right twice of 3 found and 4 true: P = 2/3, R = 1/2, F1 = 4/7; the other 1 of 1 and 1."""
    truth = [
        [Span(0, 4, "person"), Span(10, 14, "person")],
        [Span(0, 3, "person"), Span(5, 9, "place")],
        [Span(2, 6, "person")],
    ]
    found = [
        [Span(0, 4, "person"), Span(10, 15, "person")],  # the second ends one character too late
        [Span(5, 9, "place")],
        [Span(2, 6, "person")],
    ]
    right = Truth("spans", truth, ["person", "place"])
    outputs = Outputs(spans=found)
    metrics = measure(outputs, right, Evaluate(resamples=200))
    assert metrics["span_precision"].value == pytest.approx(3 / 4)
    assert metrics["span_recall"].value == pytest.approx(3 / 5)
    assert metrics["span_f1"].value == pytest.approx(6 / 9)
    assert metrics["span_macro_f1"].value == pytest.approx((4 / 7 + 1) / 2)
    person, place = span_metrics.per_class(outputs, right, Evaluate(resamples=200))
    assert (person.support, person.predicted, person.f1.value) == (4, 3, pytest.approx(4 / 7))
    assert (place.support, place.predicted, place.f1.value) == (1, 1, 1.0)
    assert span_metrics.row_f1(found, truth).tolist() == pytest.approx([0.5, 2 / 3, 1.0])
    assert metrics["span_f1"].low < 2 / 3 < metrics["span_f1"].high


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_that_of_transformers(tiny_bert: Path, tmp_path: Path, smoothing: float) -> None:
    model = tiny.build(tiny_bert, "tag")
    model.network.eval()
    data = tiny.tokens(model, tiny.tagged_rows(6), tmp_path)
    batch = collate(data, list(range(6)), model.pad_id, 16)
    objective = Tag(Training(label_smoothing=smoothing))
    loss = objective.loss(model, batch)
    tags = batch.extra["tags"]
    padded = torch.full(batch.input_ids.shape, -100)
    padded[:, : tags.shape[1]] = torch.where(tags < 0, -100, tags)
    theirs = model.network(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=padded)
    if smoothing:
        wanted = torch.nn.functional.cross_entropy(
            theirs.logits.flatten(0, 1), padded.flatten(), ignore_index=-100, label_smoothing=smoothing
        )
    else:
        wanted = theirs.loss
    assert loss.weight == float((padded >= 0).sum())
    assert float(loss.total.detach()) / loss.weight == pytest.approx(float(wanted.detach()), rel=1e-12)
    ours = torch.autograd.grad(loss.total / loss.weight, [p for _, p in model.trainable()])
    reference = torch.autograd.grad(wanted, [p for _, p in model.trainable()])
    for one, other in zip(ours, reference, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_what_is_saved_is_a_stock_model(tiny_bert: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForTokenClassification, pipeline

    from tunesmith.models.saving import load_artefact, save_artefact
    from tunesmith.prediction.span_answers import by_head

    model = tiny.build(tiny_bert, "tag", dtype=torch.float32)
    tiny.trainer(model, tiny.tagged_rows(32), tmp_path / "run", max_steps=40, learning_rate=5e-3, batch_size=16).run()
    save_artefact(model, tmp_path / "model", task="token-classification", system_prompt=None)
    stock = AutoModelForTokenClassification.from_pretrained(tmp_path / "model")
    assert stock.config.id2label == dict(enumerate(["O", "B-city", "I-city", "B-good", "I-good"]))
    ask = pipeline("token-classification", model=str(tmp_path / "model"), aggregation_strategy="first")
    again, notes = load_artefact(tmp_path / "model")
    assert notes.labels == tiny.SPAN_LABELS
    rows = tiny.rows_of([{"text": row["text"], "spans": []} for row in tiny.tagged_rows(8, seed=5)])
    found = by_head(again, rows).spans or []
    assert any(found)
    for row, ours in zip(rows, found, strict=True):
        theirs = [(s["start"], s["end"], s["entity_group"]) for s in ask(row.fields["text"])]
        assert [span.place for span in ours] == theirs
