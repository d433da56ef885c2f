"""What a recipe leaves open: filled in once, by what trains and how the model answers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tiny
from tunesmith import objectives
from tunesmith.models.model import Form
from tunesmith.parameters.kinds import KINDS
from tunesmith.recipe import Training
from tunesmith.training.defaults import with_defaults
from tunesmith.training.loop import Trainer


def rate(kind: str, form: Form) -> float | None:
    cpu = torch.device("cpu")
    return with_defaults(Training(), kind=kind, form=form, device=cpu, epoch_examples=1000).learning_rate


@pytest.mark.parametrize(
    ("kind", "with_head", "decoder", "encoder_decoder"),
    [("full", 5e-5, 2e-5, 1e-4), ("lora", 5e-4, 2e-4, 5e-4), ("ia3", 5e-3, 3e-3, 3e-3)],
)
def test_each_form_has_its_rate(kind: str, with_head: float, decoder: float, encoder_decoder: float) -> None:
    assert rate(kind, "classify") == rate(kind, "tag") == with_head
    assert rate(kind, "generate") == decoder
    assert rate(kind, "seq2seq") == encoder_decoder


@pytest.mark.parametrize("kind", [name for name, row in KINDS.items() if row.module])
def test_whatever_trains_has_rates(kind: str) -> None:
    assert all(rate > 0 for rate in KINDS[kind].rates) and KINDS[kind].rates_from


@pytest.mark.parametrize("given", [{"learning_rate": 1e-3}, {"micro_tokens": 64}])
def test_the_loop_has_no_second_defaults(given: dict[str, float], tiny_encoder: Path, tmp_path: Path) -> None:
    model, settings = tiny.build(tiny_encoder, "classify"), Training.model_validate({"batch_size": 4} | given)
    data = tiny.tokens(model, [{"text": "good", "label": "positive"}] * 4, tmp_path / "train")
    with pytest.raises(AssertionError, match="with_defaults"):
        Trainer(model, objectives.make("classify", settings), data, None, settings, tmp_path)
