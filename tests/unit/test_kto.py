"""Learning from thumbs: the loss by hand, what the divergence is estimated from, and rows that are wrong."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny
from tunesmith import objectives
from tunesmith.data.batches import collate, write_tokens
from tunesmith.data.renderers import row_renderer
from tunesmith.events import nobody
from tunesmith.objectives.kto import KTO, thumb_loss
from tunesmith.recipe import KTOLoss, LoRA, Training
from tunesmith.tasks import TASKS

ROWS = [
    {"prompt": "what is the capital of france", "completion": "paris", "label": True},
    {"prompt": "tell me more please", "completion": "the film was great", "label": False},
    {"prompt": "a question", "completion": "bad", "label": False},
]


def test_the_loss_by_hand() -> None:
    ratios, liked = torch.tensor([2.0, 2.0, -1.0]).double(), torch.tensor([True, False, False])
    found = thumb_loss(ratios, liked, 0.5, KTOLoss(beta=0.2))
    by_hand = [1 - 1 / (1 + math.exp(-0.2 * x)) for x in (2.0 - 0.5, 0.5 - 2.0, 0.5 + 1.0)]
    assert found.tolist() == pytest.approx(by_hand)


def test_divergence_comes_from_prompts_with_other_answers(tiny_decoder: Path, tmp_path: Path) -> None:
    model = tiny.build(tiny_decoder, "generate", LoRA(rank=4))
    render = row_renderer(model.tokenizer, TASKS["feedback"], form="generate", labels=None, max_length=model.max_length)
    data = write_tokens(tiny.rows_of(ROWS), render, tmp_path / "rows")
    objective = objectives.make("kto", Training())
    assert isinstance(objective, KTO)
    objective.start(model, [data], tmp_path, nobody)
    rows = np.arange(3)
    assert objective.experience(model, data, rows, 0).metrics == {"kl": pytest.approx(0.0, abs=1e-6)}
    found = objective.loss(model, collate(data, [0, 1, 2], model.pad_id, 16))
    # No ratio differs from 0 yet: each answer loses 1/2, times 3/2 for the liked one and 3/4 for the two others.
    assert float(found.total.detach()) == pytest.approx(0.5 * (1.5 + 0.75 + 0.75), abs=1e-6)
    mixed = objective._mismatched(model, data, [0, 1, 2])
    texts = [model.tokenizer.decode(mixed.tokens(row)) for row in range(3)]
    for text, question, answer in zip(texts, ROWS, [ROWS[2], ROWS[0], ROWS[1]], strict=True):
        assert str(question["prompt"]) in text and str(answer["completion"]) in text
    with torch.no_grad():
        for _, parameter in model.trainable():
            parameter += 0.05
    moved = objective.experience(model, data, rows, 1).metrics["kl"]
    assert moved == objective.divergence == objective.state()["divergence"] >= 0


@pytest.mark.parametrize(("given", "liked"), [(True, True), (0, False), ("Up", True), ("false", False)])
def test_a_thumb_is_read(given: object, liked: bool) -> None:
    task = TASKS["feedback"]
    row = tiny.rows_of([{"prompt": "q", "completion": "a", "label": given}])[0]
    convert = task.reading([row], None).convert  # type: ignore[arg-type]
    assert convert is not None
    read, faults = convert(row)
    assert not faults and task.reference(read) is liked


def test_a_thumb_that_is_none_has_its_row() -> None:
    row = tiny.rows_of([{"prompt": "q", "completion": "a", "label": 4}])[0]
    convert = TASKS["feedback"].reading([row], None).convert  # type: ignore[arg-type]
    assert convert is not None
    (fault,) = convert(row)[1]
    assert fault.code == "wrong-type" and str(fault.origin) == "rows.jsonl:1"
