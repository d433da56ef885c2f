"""Narrow weights: what they stand for, every way to multiply by them against plain arithmetic, and their file."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tiny
from tunesmith.compression import kernels, narrowing
from tunesmith.compression.kernels import Narrow
from tunesmith.compression.modules import Inputs, NarrowLinear, layers_of, narrow_layers, narrow_modules, replace
from tunesmith.compression.sensitivity import Format, calibrate, narrowed
from tunesmith.compression.smoothing import smoothed
from tunesmith.errors import ResourceError, UsageError
from tunesmith.models.model import Model
from tunesmith.models.saving import load_artefact, save_artefact
from tunesmith.prediction.setting import Setting
from tunesmith.recipe import Generation
from tunesmith.tasks import TASKS


def weights(rows: int = 96, width: int = 128) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(1)) * 0.05


def test_eight_bits_are_within_half_a_step_of_each_row() -> None:
    weight = weights()
    values, scale = narrowing.to_int8(weight)
    assert values.dtype == torch.int8
    assert bool(((narrowing.widened(values, scale) - weight).abs() <= scale[:, None] * 0.501).all())


def test_four_bits_are_two_a_byte_and_within_half_a_step_of_each_group() -> None:
    weight = weights()
    packed, scale = narrowing.to_int4(weight, 32)
    assert packed.shape == (96, 64) and scale.shape == (96, 4)
    steps = scale.float().repeat_interleave(32, dim=1)
    # The largest of a group lies at 7.5 steps and is cut to 7, or rounded to -8.
    assert bool(((narrowing.widened(packed, scale) - weight).abs() <= steps * 0.51).all())
    assert narrowing.unpacked(packed).min() >= -8 and narrowing.unpacked(packed).max() <= 7


@pytest.mark.parametrize("bits", [4, 8])
def test_the_rounding_is_that_of_torchao_s_fake_quantization(bits: int) -> None:
    """So that what quantization-aware training learned with is what the quantized model computes."""
    pytest.importorskip("torchao")
    from torchao.quantization.qat import IntxFakeQuantizeConfig, IntxFakeQuantizer

    weight = weights()
    if bits == 4:
        fake = IntxFakeQuantizer(IntxFakeQuantizeConfig(torch.int4, group_size=32, is_symmetric=True))
        packed, scale = narrowing.to_int4(weight, 32)
    else:
        fake = IntxFakeQuantizer(IntxFakeQuantizeConfig(torch.int8, granularity="per_channel", is_symmetric=True))
        packed, scale = narrowing.to_int8(weight)
    ours, theirs = narrowing.widened(packed, scale), fake(weight)
    steps = scale.float()[:, :, None] if bits == 4 else scale[:, None]
    # Scales differ by the rounding of fp16, so a group's largest, at 7.5 steps, may fall to either side.
    apart = (ours - theirs).abs().view(96, -1, 32 if bits == 4 else 128) > steps.view(96, -1, 1) * 0.5
    assert float(apart.float().mean()) < 0.02


@pytest.mark.parametrize("kind", ["int8", "int8-static", "int8-weights", "int4-weights", "fp8"])
def test_every_way_that_is_taken_as_right_is_right(kind: str) -> None:
    """Against arithmetic in double precision, on activations that would saturate 16-bit sums of 8-bit products."""
    weight = weights().abs() if kind != "int4-weights" else weights()
    values, scale = (
        narrowing.to_int4(weight, 32)
        if kind == "int4-weights"
        else narrowing.to_fp8(weight)
        if kind == "fp8"
        else narrowing.to_int8(weight)
    )
    narrow = Narrow(kind, values, scale, -1.0, 4.0)
    x = torch.rand(8, 128, generator=torch.Generator().manual_seed(2)) * 4
    x[:, 3] = 4.0
    exact = x.double() @ narrowing.widened(values, scale).double().T
    found = 0
    for name, make, _ in kernels._ways(narrow):
        try:
            product = make(narrow)
            y = product(x)
        except (RuntimeError, NotImplementedError, AttributeError):
            continue
        error = float(torch.linalg.vector_norm(y.double() - exact) / torch.linalg.vector_norm(exact))
        if name == "onednn" and error > kernels.TOLERANCE[kind]:
            continue  # what :func:`choose` refuses
        assert error <= {"fp8": 0.04}.get(kind, 0.02), name
        assert torch.allclose(product(x[:1]), y[:1], rtol=0.02, atol=0.02 * float(y.abs().max()))
        found += 1
    assert found >= 1


def test_activations_take_eight_bits_where_sums_cannot_saturate_and_seven_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each way gives at either width what plain arithmetic gives, and half the steps make twice the error."""
    narrow = Narrow("int8", *narrowing.to_int8(weights()))
    x = torch.randn(8, 128, generator=torch.Generator().manual_seed(3))
    exact = x @ narrowing.widened(narrow.values, narrow.scale).T
    cpu = torch.device("cpu")
    can, errors = kernels.levels(cpu), {}
    for capability, steps in (({}, 127), ({"avx512_vnni": True}, 255), ({"amx_int8": True}, 255)):
        if steps > can:
            continue
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capability: found, raising=False)
        assert kernels.levels(cpu) == steps and kernels.levels(torch.device("cuda")) == 255
        plain = kernels._wide_product(narrow)(x)
        errors[steps] = kernels._difference(plain, exact)
        for name, make, _ in kernels._ways(narrow):
            limit = kernels.TOLERANCE["int8"] if "symmetric" in name else 1e-5
            assert kernels._difference(make(narrow)(x), plain) < limit, name
    if can == 255:
        assert errors[255] == pytest.approx(errors[127] / 2, rel=0.2)


def test_a_wrong_way_is_refused_however_fast_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = Narrow("int8", *narrowing.to_int8(weights()))

    def wrong(narrow: Narrow) -> Any:
        return lambda x: torch.zeros(len(x), 96)

    monkeypatch.setattr(
        kernels, "_ways", lambda narrow: iter([("wrong", wrong, 0), ("plain", kernels._wide_product, 0)])
    )
    monkeypatch.setattr(kernels, "_winners", {})
    assert kernels.choose(narrow).name == "plain"


def answers(model: Model) -> torch.Tensor:
    ids = torch.tensor([model.tokenizer("what is the capital of france please")["input_ids"]])
    with torch.inference_mode():
        given = {"labels": ids} if model.form == "seq2seq" else {}
        found: Any = model.network.eval()(input_ids=ids, attention_mask=torch.ones_like(ids), **given)
    return found if isinstance(found, torch.Tensor) else found.logits


@pytest.mark.parametrize("kind", ["int8", "int8-weights", "int4-weights"])
@pytest.mark.parametrize("form", ["classify", "tag", "generate", "seq2seq"])
def test_a_narrow_model_answers_nearly_alike_and_loads_as_it_was_saved(
    form: Any, kind: Any, tiny_encoder: Path, tiny_bert: Path, tiny_decoder: Path, tiny_t5: Path, tmp_path: Path
) -> None:
    base = {"classify": tiny_encoder, "tag": tiny_bert, "generate": tiny_decoder, "seq2seq": tiny_t5}[form]
    model = tiny.build(base, form, dtype=torch.float32)
    before, whole = answers(model), sum(p.nbytes for p in model.network.parameters())
    narrow_layers(model, layers_of(model), kind)
    save_artefact(model, tmp_path / "model", task="text-classification", system_prompt=None)
    after = answers(model)
    limit = 0.4 if (form, kind) == ("seq2seq", "int4-weights") else 0.15
    assert 0 < float((after - before).abs().max() / before.abs().max()) < limit
    again, notes = load_artefact(tmp_path / "model")
    assert notes.narrow and set(notes.narrow.values()) >= {kind, "embedding"}
    assert torch.equal(answers(again), after)
    assert again.dtype == torch.float32
    assert (tmp_path / "model" / "narrow.safetensors").stat().st_size < 0.75 * whole  # tiny rows make scales dear
    assert not list((tmp_path / "model").glob("*.bin")) and not list((tmp_path / "model").glob("*.pt"))


def test_a_tied_vocabulary_is_kept_once(tiny_decoder: Path, tmp_path: Path) -> None:
    from safetensors import safe_open

    model = tiny.build(tiny_decoder, "generate", dtype=torch.float32)
    narrow_layers(model, layers_of(model), "int8")
    save_artefact(model, tmp_path / "model", task="chat", system_prompt=None)
    with safe_open(tmp_path / "model" / "narrow.safetensors", framework="pt") as file:
        names = set(file.keys())
    assert ("lm_head.weight" in names) + ("model.embed_tokens.weight" in names) == 1


def test_a_damaged_file_is_named(tiny_decoder: Path, tmp_path: Path) -> None:
    model = tiny.build(tiny_decoder, "generate", dtype=torch.float32)
    narrow_layers(model, layers_of(model), "int8")
    save_artefact(model, tmp_path / "model", task="chat", system_prompt=None)
    file = tmp_path / "model" / "narrow.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ResourceError, match="cannot read the quantized weights"):
        load_artefact(tmp_path / "model")


def test_a_model_without_linear_layers_is_refused(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    network = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=50, n_positions=16))
    model = Model(network, None, "generate", "gpt2", tmp_path, 16)
    with pytest.raises(UsageError, match="its layers are of other kinds"):
        layers_of(model)


def test_a_width_that_groups_do_not_divide_is_refused(tiny_decoder: Path) -> None:
    model = tiny.build(tiny_decoder, "generate", dtype=torch.float32)
    layer = layers_of(model)[0]
    model.network.set_submodule(layer.modules[0], torch.nn.Linear(24, 32))
    with pytest.raises(UsageError, match="groups of 32 do not divide"):
        narrow_layers(model, [layer], "int4-weights")


def test_a_layer_that_has_run_counts_the_memory_of_its_own_form() -> None:
    layer = NarrowLinear("int8", *narrowing.to_int8(weights()), bias=None)
    assert layer.way is None and layer.packed_bytes == 0
    layer(torch.randn(2, 3, 128))
    assert layer.way is not None
    assert layer.packed_bytes + layer.weight.nbytes == 96 * 128


def outlying(folder: Path) -> Model:
    """A decoder whose norms put out a few numbers that are far larger than the rest, as trained ones do."""
    model = tiny.build(folder, "generate", dtype=torch.float32)
    with torch.no_grad():
        for block in model.blocks():
            for norm in ("input_layernorm", "post_attention_layernorm"):
                block.get_submodule(norm).weight[3] = 60.0
                for name, module in block.named_modules():
                    if type(module) is nn.Linear and module.in_features == 32 and "o_proj" not in name:
                        module.weight[:, 3] /= 8
    return model


def seen_by(model: Model) -> dict[str, Inputs]:
    rows = tiny.rows_of(tiny.question_rows(12))
    setting = Setting(TASKS["text-generation"], None, None, Generation())
    return dict(calibrate(model, layers_of(model), rows, setting))


def test_calibration_sees_what_layers_read(tiny_decoder: Path) -> None:
    model = outlying(tiny_decoder)
    given: list[torch.Tensor] = []
    model.blocks()[0].get_submodule("self_attn.q_proj").register_forward_pre_hook(
        lambda _, x: given.append(x[0].detach().flatten(0, -2))
    )
    seen = seen_by(model)
    read = seen["model.layers.0.self_attn.q_proj"]
    assert int(read.largest_K.argmax()) == 3 and bool((read.low_K <= read.high_K).all())
    x_MK = torch.cat(given)
    lost = (kernels.rounded_rows(x_MK) - x_MK).norm(dim=1) / x_MK.norm(dim=1).clamp(min=1e-12)  # padding may be 0
    assert read.rounding == pytest.approx(float(lost.mean()), rel=1e-4)
    assert torch.equal(read.low_K, x_MK.amin(0)) and torch.equal(read.high_K, x_MK.amax(0))


def test_smoothing_changes_no_answer_but_that_of_rounded_activations(tiny_decoder: Path) -> None:
    model = outlying(tiny_decoder)
    before, seen = answers(model), seen_by(model)
    groups = list(smoothed(model, {name: inputs.largest_K for name, inputs in seen.items()}))
    assert len(groups) == 4  # two norms a layer
    plain = distance_of(model, before, None)
    assert distance_of(model, before, seen) < 0.5 * plain
    for group in groups:
        replace(model.network, group.norm, group.smoothed_norm(model.network))
        for name in group.readers:
            module: Any = model.network.get_submodule(name)
            module.weight.data *= group.factor_K
    torch.testing.assert_close(answers(model), before, rtol=1e-4, atol=1e-4)


def distance_of(model: Model, before: torch.Tensor, seen: dict[str, Inputs] | None) -> float:
    """How far logits move where the layers are narrowed for a while; the model is the same afterwards."""
    with narrowed(model, layers_of(model)[:-2], Format("int8", seen or {})):
        moved = float((answers(model) - before).abs().mean())
    assert torch.equal(answers(model), before)
    return moved


def test_layers_that_read_uneven_numbers_keep_more_of_them(tiny_decoder: Path) -> None:
    model = tiny.build(tiny_decoder, "generate", dtype=torch.float32)
    seen = {name: dataclasses.replace(inputs, rounding=0.001) for name, inputs in seen_by(model).items()}
    uneven = "model.layers.1.mlp.down_proj"
    seen[uneven] = dataclasses.replace(seen[uneven], rounding=0.1)
    made = narrow_modules(model, layers_of(model), "int8", seen)
    kinds = {name: module.kind for name, module in made.items() if isinstance(module, NarrowLinear)}
    assert {name: kind for name, kind in kinds.items() if kind != "int8"} == dict.fromkeys(
        (uneven, "lm_head"), "int8-weights"
    )
    unseen = "model.layers.1.mlp.up_proj"
    made = narrow_modules(model, layers_of(model), "int8-static", {n: i for n, i in seen.items() if n != unseen})
    kinds = {name: module.kind for name, module in made.items() if isinstance(module, NarrowLinear)}
    assert {name for name, kind in kinds.items() if kind != "int8-static"} == {uneven, unseen, "lm_head"}
    static: Any = made["model.layers.0.self_attn.q_proj"]
    factor = next(g for g in smoothed(model, {n: i.largest_K for n, i in seen.items()})).factor_K
    high = (seen["model.layers.0.self_attn.q_proj"].high_K / factor).max()
    assert float(static.activations[1]) == pytest.approx(float(high))


def test_a_smoothed_model_loads_as_it_was_saved(tiny_decoder: Path, tmp_path: Path) -> None:
    model = outlying(tiny_decoder)
    seen = seen_by(model)
    narrow_layers(model, layers_of(model), "int8", seen)
    save_artefact(model, tmp_path / "model", task="chat", system_prompt=None)
    again, _ = load_artefact(tmp_path / "model")
    assert torch.equal(answers(again), answers(model))


def test_layers_that_stay_are_not_smoothed(tiny_decoder: Path) -> None:
    model = outlying(tiny_decoder)
    made = narrow_modules(model, layers_of(model)[:1], "int8", seen_by(model))
    assert {name for name in made if "norm" in name} == {
        "model.layers.0.input_layernorm",
        "model.layers.0.post_attention_layernorm",
    }


def test_families_whose_norms_feed_other_things_are_not_smoothed(tiny_encoder: Path) -> None:
    model = tiny.build(tiny_encoder, "classify", dtype=torch.float32)
    largest = {name: torch.ones(m.in_features) for name, m in model.network.named_modules() if type(m) is nn.Linear}
    assert list(smoothed(model, largest)) == []
