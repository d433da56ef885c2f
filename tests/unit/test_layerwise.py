"""Rates by layer and gradual unfreezing, against values worked out by hand, and exact under resume."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tiny
from conftest import labelled_rows
from tunesmith.models.model import Model
from tunesmith.recipe import Layers, LoRA, Training
from tunesmith.training import layerwise
from tunesmith.training.optimizer import MasterAdamW


def rates_of(model: Model, decay: float) -> dict[str, float]:
    return layerwise.rates(model, Training(layer_decay=decay))


def test_each_layer_decays_by_its_distance_from_the_output(tiny_bert: Path) -> None:
    rates = rates_of(tiny.build(tiny_bert, "classify"), 0.5)
    assert rates["classifier.weight"] == 1.0
    assert rates["bert.pooler.dense.weight"] == 1.0
    assert rates["bert.encoder.layer.1.output.dense.weight"] == 0.5
    assert rates["bert.encoder.layer.0.attention.self.query.bias"] == 0.25
    assert rates["bert.embeddings.word_embeddings.weight"] == 0.125


def test_the_highest_part_that_trains_keeps_the_rate(tiny_decoder: Path) -> None:
    model = tiny.build(tiny_decoder, "generate", Layers(layers="0-1"))
    rates = rates_of(model, 0.5)
    assert {rate for name, rate in rates.items() if ".layers.1." in name} == {1.0}
    assert {rate for name, rate in rates.items() if ".layers.0." in name} == {0.5}


def test_factors_of_adapters_and_of_layers_multiply(tiny_decoder: Path) -> None:
    rates = rates_of(tiny.build(tiny_decoder, "generate", LoRA(rank=2, lr_ratio=16.0)), 0.5)
    lower = {name.split("lora_")[1][0]: rate for name, rate in rates.items() if ".layers.0." in name}
    assert lower == {"A": 0.5, "B": 8.0}


def test_the_optimizer_steps_as_torch_does_with_a_rate_a_group() -> None:
    def network() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))

    mine, theirs = network(), network()
    factors = {"0.weight": 16.0, "1.bias": 0.25}
    optimizer = MasterAdamW(mine.named_parameters(), Training(weight_decay=0.1), factors)
    reference = torch.optim.AdamW(
        [
            {"params": [p], "lr": 1e-2 * factors.get(name, 1.0), "weight_decay": 0.1 if p.ndim == 2 else 0.0}
            for name, p in theirs.named_parameters()
        ]
    )
    for step in range(3):
        inputs = torch.randn(5, 3, generator=torch.Generator().manual_seed(step))
        for model in (mine, theirs):
            model(inputs).square().sum().backward()
        optimizer.accumulate()
        optimizer.step(1e-2, 1.0)
        reference.step()
        reference.zero_grad()
    for one, other in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


# --- gradual unfreezing ----------------------------------------------------------------------------------------------

UPDATES_A_LAYER = 2
SETTINGS: dict[str, Any] = {"batch_size": 16, "max_steps": 8, "learning_rate": 1e-2, "checkpoint_steps": 1}


def test_layers_join_from_the_output_down(tiny_encoder: Path, tmp_path: Path) -> None:
    """48 rows in batches of 16: 3 updates an epoch; a layer joins every 2/3 epochs, so every 2 updates."""
    model = tiny.build(tiny_encoder, "classify")
    start = {name: p.detach().clone() for name, p in model.trainable()}
    trainer = _trainer(model, tmp_path)
    seen: list[set[str]] = []
    original = trainer.optimizer.step

    def watch(rate: float, scale: float) -> None:
        original(rate, scale)
        seen.append({_part(name) for name, p in trainer.optimizer.named() if not torch.equal(p, start[name])})

    trainer.optimizer.step = watch  # type: ignore[method-assign]
    trainer.run()
    joined = ["classifier", "layer.1", "layer.0", "embeddings"]
    assert seen == [set(joined[: n // UPDATES_A_LAYER + 1]) for n in range(8)]
    assert all(p.requires_grad for p in model.network.parameters())


def test_a_resumed_run_unfreezes_at_the_same_updates(tiny_encoder: Path, tmp_path: Path) -> None:
    whole = tiny.build(tiny_encoder, "classify")
    _trainer(whole, tmp_path, keep_checkpoints=9).run()
    for step in (4, 5, 6, 7, 8):
        shutil.rmtree(tmp_path / "checkpoints" / f"step-{step:08d}")
    again = tiny.build(tiny_encoder, "classify")
    _trainer(again, tmp_path).run()
    for (name, one), (_, other) in zip(whole.trainable(), again.trainable(), strict=True):
        assert torch.equal(one, other), name


def _trainer(model: Model, folder: Path, **keys: Any) -> Any:
    return tiny.trainer(
        model, labelled_rows(48), folder, unfreeze_epochs=UPDATES_A_LAYER / 3, layer_decay=0.9, **{**SETTINGS, **keys}
    )


def _part(name: str) -> str:
    return next(part for part in ("classifier", "layer.1", "layer.0", "embeddings") if part in name)


@pytest.mark.parametrize("value", [0.0, 1.5])
def test_a_decay_outside_its_range_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="layer_decay"):
        Training(layer_decay=value)
