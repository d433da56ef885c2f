"""Training with the rounding of a number format: what is computed, what is learned and saved, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tiny
from tunesmith.compression import fake_quantization, kernels, narrowing
from tunesmith.compression.modules import EMBEDDING, VOCABULARY, Layer, layers_of, narrow_layers
from tunesmith.compression.settings import AwareKind
from tunesmith.errors import RecipeError, UsageError
from tunesmith.models.merging import merge
from tunesmith.models.model import Model
from tunesmith.models.saving import load_artefact, save_artefact
from tunesmith.recipe import Full, Layers, LoRA, Parameters, Training
from tunesmith.recipe_file import parse
from tunesmith.training.loop import Trainer, evaluate_loss

KINDS: list[AwareKind] = ["int8", "int8-weights", "int4-weights"]


def built(folder: Path, kind: AwareKind, choice: Parameters | None = None, dtype: torch.dtype = torch.float32) -> Model:
    return tiny.build(folder, "generate", choice, Training(quantization_aware=kind), dtype=dtype)


def trained(model: Model, folder: Path, **settings: Any) -> Trainer:
    keys = {"batch_size": 16, "max_steps": 6, "learning_rate": 2e-2, "schedule": "constant", "checkpoint_steps": 3}
    trainer = tiny.trainer(model, tiny.question_rows(32), folder, **(keys | settings))
    trainer.run()
    return trainer


def inner_layers(model: Model) -> list[Layer]:
    return [layer for layer in layers_of(model) if layer.name not in (EMBEDDING, VOCABULARY)]


@torch.no_grad()
def logits(model: Model) -> torch.Tensor:
    ids = torch.tensor([model.tokenizer("what is the capital of france please")["input_ids"]])
    network: Any = model.network.eval()
    found: torch.Tensor = network(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    return found.float()


@pytest.mark.parametrize("choice", [Full(), Layers(layers="last 1"), LoRA(rank=4)], ids=lambda choice: choice.kind)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_trained_with_is_what_quantizing_gives(
    tiny_decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: AwareKind, choice: Parameters
) -> None:
    """By plain arithmetic: faster ways place the steps of activations a little differently."""
    monkeypatch.setattr(kernels, "_ways", lambda narrow: iter([("plain", kernels._wide_product, 0)]))
    monkeypatch.setattr(kernels, "_winners", {})
    model = built(tiny_decoder, kind, choice)
    trained(model, tmp_path, kind=choice.kind)
    felt = logits(model)
    fake_quantization.stop(model)
    wide = logits(model)
    save_artefact(model, tmp_path / "model", task="text-generation", system_prompt=None)
    again, _ = load_artefact(tmp_path / "model")
    assert torch.equal(logits(again), wide)  # what is saved is not quantized yet
    if again.has_adapters:
        merge(again)
    narrow_layers(again, inner_layers(again), kind)
    off = float((felt - wide).abs().max())
    assert float((logits(again) - felt).abs().max()) < 0.01 * off


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_at_the_rounded_weights(tiny_decoder: Path, tmp_path: Path, kind: AwareKind) -> None:
    """Straight through: a weight's gradient is that of the weight it was rounded to."""
    model = built(tiny_decoder, kind, dtype=torch.float64)
    plain = tiny.build(tiny_decoder, "generate")
    with torch.no_grad():
        for module in [m for block in plain.blocks() for m in block.modules() if type(m) is nn.Linear]:
            narrow = (
                narrowing.to_int4(module.weight, 32) if kind == "int4-weights" else narrowing.to_int8(module.weight)
            )
            module.weight.copy_(narrowing.widened(*narrow))
            if kind == "int8":
                module.register_forward_pre_hook(
                    lambda _, x: (x[0] + (kernels.rounded_rows(x[0].float()).double() - x[0]).detach(),)
                )
    for one in (model, plain):
        ids = torch.tensor([one.tokenizer("what is the capital of france please")["input_ids"]])
        network: Any = one.network
        network(input_ids=ids, labels=ids).loss.backward()
    found, wanted = tiny.gradients(model), tiny.gradients(plain)
    assert found.keys() == wanted.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-5, atol=1e-8, msg=name)


def test_training_with_the_rounding_keeps_more_of_what_four_bits_can_hold(tiny_decoder: Path, tmp_path: Path) -> None:
    """The loss after quantizing, of models that were trained alike but for this."""
    losses = {}
    for aware in (None, "int4-weights"):
        settings = Training.model_validate({"quantization_aware": aware})
        model = tiny.build(tiny_decoder, "generate", training=settings, dtype=torch.float32)
        trainer = trained(model, tmp_path / str(aware), max_steps=60, learning_rate=1e-2, checkpoint_steps=60)
        fake_quantization.stop(model)
        narrow_layers(model, inner_layers(model), "int4-weights")
        losses[aware] = evaluate_loss(model, trainer.objective, trainer.train, 4096)["loss"]
    assert losses["int4-weights"] < losses[None]


@pytest.mark.parametrize("choice", [Full(), LoRA(rank=4)], ids=lambda choice: choice.kind)
def test_a_resumed_run_gives_the_same_bytes(tiny_decoder: Path, tmp_path: Path, choice: Parameters) -> None:
    whole, again = built(tiny_decoder, "int4-weights", choice), built(tiny_decoder, "int4-weights", choice)
    trained(whole, tmp_path, kind=choice.kind)
    shutil.rmtree(tmp_path / "checkpoints" / "step-00000006")
    trained(again, tmp_path, kind=choice.kind)
    for (name, one), (_, other) in zip(whole.trainable(), again.trainable(), strict=True):
        assert torch.equal(one, other), name


def test_parameters_have_the_same_names_with_and_without(tiny_decoder: Path) -> None:
    model = built(tiny_decoder, "int8", LoRA(rank=4))
    names = [name for name, _ in model.network.named_parameters()]
    plain = tiny.build(tiny_decoder, "generate", LoRA(rank=4), dtype=torch.float32)
    assert names == [name for name, _ in plain.network.named_parameters()]
    fake_quantization.stop(model)
    assert torch.equal(logits(model), logits(plain))


def test_widths_that_groups_do_not_divide_are_refused(tiny_decoder: Path) -> None:
    model = tiny.build(tiny_decoder, "generate", dtype=torch.float32)
    model.network.set_submodule(layers_of(model)[0].modules[0], nn.Linear(24, 32))
    with pytest.raises(UsageError, match="groups of 32 do not divide"):
        fake_quantization.simulate(model, "int4-weights")


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"parameters": {"kind": "ia3"}}, "do not train"),
        ({"parameters": {"kind": "lora", "quantization": "int4"}}, "kept in int4 already"),
        ({"parameters": {"kind": "lora", "dora": True}}, "`dora` and `dropout`"),
        ({"parameters": {"kind": "lora", "dropout": 0.1}}, "`dora` and `dropout`"),
        ({"quantize": "int8"}, "give the same to"),
        ({"training": {"quantization_aware": "int3"}}, "quantization_aware"),
        ({"task": "prompts", "method": "verifiable-reward", "objective": "grpo"}, "not made for the objective"),
    ],
)
def test_pairs_that_cannot_work_are_refused_with_the_reason(keys: dict[str, Any], said: str) -> None:
    tree = {
        "task": "chat",
        "model": "m",
        "data": {"train": "a.jsonl"},
        "training": {"quantization_aware": "int4-weights"},
    }
    with pytest.raises(RecipeError, match=said):
        parse(tree | keys)
