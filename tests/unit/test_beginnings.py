"""EVA and LoftQ against their formulae, and through training, saving and plain PEFT."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora.layer import LoraLayer

import tiny
from conftest import labelled_rows
from tunesmith.data.batches import collate
from tunesmith.errors import RecipeError
from tunesmith.models.load import load_model
from tunesmith.models.narrow_tensor import widened
from tunesmith.models.quantized import wide_weight
from tunesmith.models.saving import load_artefact, save_artefact
from tunesmith.parameters.beginnings import from_activations
from tunesmith.recipe import LoRA
from tunesmith.recipe_file import parse

needs_torchao = pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="needs the extra `quantization`")


def layers_of(network: Any) -> dict[str, Any]:
    return {name: layer for name, layer in network.named_modules() if isinstance(layer, LoraLayer)}


def test_eva_begins_with_the_main_directions_of_the_inputs(tiny_decoder: Path, tmp_path: Path) -> None:
    model = tiny.build(tiny_decoder, "generate", LoRA(rank=4, init="eva"), dtype=torch.float32)
    data = tiny.tokens(model, tiny.question_rows(48), tmp_path / "data")
    before = model.network.eval()(torch.arange(1, 9)[None]).logits.detach()
    from_activations(model, data, seed=0)
    after = model.network.eval()(torch.arange(1, 9)[None]).logits.detach()
    assert torch.equal(before, after), "B begins at zero, so the model is what it was"
    seen: dict[str, list[torch.Tensor]] = {}
    handles = [
        layer.register_forward_pre_hook(
            lambda _, inputs, name=name: seen.setdefault(name, []).append(inputs[0].detach().flatten(0, -2))
        )
        for name, layer in layers_of(model.wrapped).items()
    ]
    with torch.no_grad():
        for row in range(len(data)):
            model.read(collate(data, [row], model.pad_id))
    for handle in handles:
        handle.remove()
    for name, layer in layers_of(model.wrapped).items():
        inputs = torch.cat(seen[name])
        centred = inputs - inputs.mean(0)
        values = torch.linalg.svdvals(centred)
        found = layer.lora_A["default"].weight
        assert found.shape[0] == 4, "all layers keep their rank"
        explained = (centred @ torch.linalg.qr(found.T.float())[0]).square().sum() / values[:4].square().sum()
        assert explained > 0.9, name
    config: Any = model.wrapped.peft_config["default"]  # type: ignore[index, union-attr]
    assert config.init_lora_weights is True


def test_eva_goes_through_training_and_is_plain_lora_afterwards(tiny_decoder: Path, tmp_path: Path) -> None:
    import peft
    import transformers

    model = tiny.build(tiny_decoder, "generate", LoRA(rank=4, init="eva"), dtype=torch.float32)
    trainer = tiny.trainer(
        model, tiny.question_rows(48), tmp_path, kind="lora", max_steps=4, batch_size=16, learning_rate=1e-2
    )
    from_activations(model, trainer.train, seed=0)
    trainer.run()
    save_artefact(model, tmp_path / "model", task="text-generation", system_prompt=None)
    ids = torch.arange(1, 9)[None]
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny_decoder)
    plain = peft.PeftModel.from_pretrained(base, tmp_path / "model").eval()
    model.network.eval()
    with torch.no_grad():
        torch.testing.assert_close(plain(ids).logits, model.network(ids).logits, rtol=1e-4, atol=1e-5)


def test_eva_with_too_few_data_is_refused(tiny_decoder: Path, tmp_path: Path) -> None:
    model = tiny.build(tiny_decoder, "generate", LoRA(rank=30, init="eva"), dtype=torch.float32)
    data = tiny.tokens(model, tiny.question_rows(1), tmp_path / "data")
    with pytest.raises(RecipeError, match="main directions"):
        from_activations(model, data, seed=0)


@needs_torchao
@pytest.mark.parametrize("bits", ["int4", "int8"])
def test_loftq_begins_with_the_best_approximation_of_what_was_lost(
    tiny_decoder: Path, tmp_path: Path, bits: Any
) -> None:
    wide = load_model(tiny_decoder, name="wide", form="generate")
    model = tiny.build(tiny_decoder, "generate", LoRA(rank=4, init="loftq", quantization=bits), dtype=torch.float32)
    assert not model.wide
    count = 0
    for name, layer in layers_of(model.wrapped).items():
        original = wide.network.get_submodule(name.removeprefix("base_model.model.")).weight
        lost = (original - wide_weight(layer.get_base_layer())).detach()
        product = layer.lora_B["default"].weight @ layer.lora_A["default"].weight * layer.scaling["default"]
        values = torch.linalg.svdvals(lost)
        left = (lost - product).square().sum()
        torch.testing.assert_close(left, values[4:].square().sum(), rtol=1e-3, atol=1e-9)  # Eckart and Young
        count += 1
    assert count == 14
    plain = tiny.build(tiny_decoder, "generate", LoRA(rank=4, quantization=bits), dtype=torch.float32)
    ids = torch.arange(1, 9)[None]
    with torch.no_grad():  # what the table of words lost is no layer's to mend
        for table in ("embed_tokens", "lm_head"):
            narrow: Any = next(m for name, m in plain.network.named_modules() if name.endswith(table))
            own: Any = next(m for name, m in wide.network.named_modules() if name.endswith(table))
            own.weight.copy_(widened(narrow.weight))
        right, without, with_it = (m.network.eval()(ids).logits for m in (wide, plain, model))
    assert (with_it - right).square().sum() < 0.9 * (without - right).square().sum()
    save_artefact(model, tmp_path / "model", task="text-generation", system_prompt=None)
    again, _ = load_artefact(tmp_path / "model")
    with torch.no_grad():
        assert torch.equal(again.network(ids).logits, with_it)


def test_loftq_wants_a_narrow_base() -> None:
    tree = {"task": "chat", "model": "smollm2-135m-instruct", "data": {"train": "a.jsonl"}}
    with pytest.raises(RecipeError, match="quantization: int4"):
        parse({**tree, "parameters": {"kind": "lora", "init": "loftq"}})
    assert parse({**tree, "parameters": "loftq"}).parameters == LoRA(init="loftq", quantization="int4")


@pytest.mark.parametrize("base", ["tiny_t5", "tiny_bart"])
def test_eva_sees_what_both_halves_of_an_encoder_decoder_read(
    base: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder = request.getfixturevalue(base)
    model = tiny.build(folder, "seq2seq", LoRA(rank=4, init="eva"), dtype=torch.float32, labels=None)
    data = tiny.tokens(model, tiny.question_rows(48), tmp_path / "data")
    from_activations(model, data, seed=0)
    found = [layer.lora_A["default"].weight for layer in layers_of(model.wrapped).values()]
    assert all(weight.shape[0] == 4 and torch.isfinite(weight).all() for weight in found)
    for weight in found:  # directions are orthogonal to each other and of length 1; random first weights are not
        torch.testing.assert_close(weight @ weight.T, torch.eye(4), rtol=1e-3, atol=1e-3)


def test_eva_waits_until_a_pooling_layer_has_seen_enough_texts(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is given one row a text: fewer in a batch than the rank."""
    monkeypatch.setattr("tunesmith.parameters.beginnings.TOKENS_A_BATCH", 20)
    model = tiny.build(tiny_bert, "classify", LoRA(rank=8, init="eva"), dtype=torch.float32)
    from_activations(model, tiny.tokens(model, labelled_rows(48), tmp_path / "data"), seed=0)
    pooler = next(layer for name, layer in layers_of(model.wrapped).items() if "pooler" in name)
    weight = pooler.lora_A["default"].weight
    torch.testing.assert_close(weight @ weight.T, torch.eye(8), rtol=1e-3, atol=1e-3)
