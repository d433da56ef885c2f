"""A base in 8 or 4 bits: what it weighs, what trains beside it, what is saved, merged and refused."""

from __future__ import annotations

import importlib.util
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tiny
from tunesmith.errors import MissingExtraError, RecipeError, UsageError
from tunesmith.models.bits_and_bytes import is_narrow_layer
from tunesmith.models.merging import merge
from tunesmith.models.model import Model
from tunesmith.models.narrow_tensor import is_narrow, widened
from tunesmith.models.quantized import narrow_tables, quantize_base, weight_bytes
from tunesmith.models.saving import load_artefact, save_artefact
from tunesmith.parameters.settings import Quantization
from tunesmith.recipe import Adapter, LoRA, Training
from tunesmith.recipe_file import parse
from tunesmith.training.compiling import compile_if_worthwhile

pytestmark = pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="needs the extra `quantization`")

BITS: list[Quantization] = ["int8", "int4"]


def built(folder: Path, quantization: Quantization, dtype: torch.dtype = torch.float32, **keys: Any) -> Model:
    choice = LoRA(rank=4, quantization=quantization, **keys)
    return tiny.build(folder, "generate", choice, dtype=dtype)


def trained(model: Model, folder: Path, steps: int = 6) -> None:
    tiny.trainer(
        model, tiny.question_rows(32), folder, kind="lora", batch_size=16, max_steps=steps, learning_rate=2e-2,
        schedule="constant", warmup=0.0, checkpoint_steps=3,
    ).run()  # fmt: skip


@torch.no_grad()
def logits(network: Any, ids: torch.Tensor) -> torch.Tensor:
    return network.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float()


def ids_of(model: Model) -> torch.Tensor:
    return torch.tensor([model.tokenizer("what is the capital of france please")["input_ids"]])


@pytest.mark.parametrize(("quantization", "share"), [("int8", 0.60), ("int4", 0.32)])
def test_linear_layers_weigh_what_they_should(tiny_decoder: Path, quantization: Quantization, share: float) -> None:
    """Against bf16. Tiny rows make the scales of int8 dear, and tiny matrices those of parts of 2,048 in int4."""
    model = built(tiny_decoder, quantization, torch.bfloat16)
    blocks = model.blocks()
    narrow = [m for block in blocks for m in block.modules() if type(m) is nn.Linear and is_narrow(m.weight)]
    assert len(narrow) == 14  # seven a layer
    assert sum(weight_bytes(m) for m in narrow) <= share * 2 * sum(m.weight.numel() for m in narrow)
    assert model.total_parameters == built(tiny_decoder, "none").total_parameters


@pytest.mark.parametrize("quantization", BITS)
def test_the_table_of_words_is_kept_in_8_bits_and_stays_one_with_the_head(
    tiny_decoder: Path, quantization: Quantization
) -> None:
    wide, model = built(tiny_decoder, "none"), built(tiny_decoder, quantization)
    table, ids = model.transformer().get_input_embeddings(), ids_of(model)  # type: ignore[operator, union-attr]
    tied = wide.vocabulary_weight() is wide.transformer().get_input_embeddings().weight  # type: ignore[operator, union-attr]
    assert is_narrow(table.weight) and (model.vocabulary_head().weight is table.weight) is tied
    whole_Vd = wide.transformer().get_input_embeddings().weight.detach()  # type: ignore[operator, union-attr]
    steps_V = whole_Vd.abs().amax(1, keepdim=True) / 127
    assert bool(((widened(table.weight) - whole_Vd).abs() <= steps_V * 0.51).all())
    assert torch.equal(table(ids), widened(table.weight)[ids])  # a lookup widens its rows alone
    merge(model)
    assert not is_narrow(model.vocabulary_weight())
    again = model.transformer().get_input_embeddings().weight  # type: ignore[operator, union-attr]
    assert (model.vocabulary_weight() is again) is tied


@pytest.mark.parametrize(
    "keys", [{"modules_to_save": ["lm_head"]}, {"targets": ["embed_tokens", "q_proj"]}, {"new_tokens": ["<id>"]}]
)
def test_a_table_that_the_adapter_changes_keeps_its_precision(
    tiny_decoder: Path, tmp_path: Path, keys: dict[str, Any]
) -> None:
    model = built(tiny_decoder, "int8", **keys)
    wrapped = [name for name, p in model.network.named_parameters() if is_narrow(p) and "layers." not in name]
    assert not [name for name in wrapped if re.search(r"base_layer|original_module|modules_to_save", name)]
    trained(model, tmp_path, steps=2)
    save_artefact(model, tmp_path / "model", task="text-generation", system_prompt=None)
    again, _ = load_artefact(tmp_path / "model")
    assert torch.equal(logits(again.network, ids_of(model)), logits(model.network, ids_of(model)))


@pytest.mark.parametrize(("quantization", "error"), [("int8", 0.01), ("int4", 0.08)])
def test_narrow_weights_stand_for_what_they_were(tiny_decoder: Path, quantization: Quantization, error: float) -> None:
    """int8: half a step of 2/255 of a row's largest. int4: half a fifteenth of a group's range, and a little for its
    8 bits."""
    model = tiny.build(tiny_decoder, "generate", dtype=torch.float32)
    before = {name: p.detach().clone() for name, p in model.network.named_parameters()}
    quantize_base(model, quantization)
    for name, module in model.network.named_modules():
        if type(module) is nn.Linear and is_narrow(module.weight):
            wide = before[f"{name}.weight"]
            assert float((widened(module.weight) - wide).abs().max() / wide.abs().max()) < error


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("quantization", BITS)
def test_an_adapter_learns_is_saved_and_merges_into_the_widened_base(
    tiny_decoder: Path, tmp_path: Path, quantization: Quantization, dtype: torch.dtype
) -> None:
    model = built(tiny_decoder, quantization, dtype)
    trained(model, tmp_path)
    ids = ids_of(model)
    expected = logits(model.network, ids)
    save_artefact(model, tmp_path / "model", task="text-generation", system_prompt=None)
    again, notes = load_artefact(tmp_path / "model")
    assert notes.quantization == quantization
    assert torch.equal(logits(again.network, ids), expected)
    merge(again)
    assert not any(is_narrow(p) for p in again.network.parameters())
    assert float((logits(again.network, ids) - expected).abs().max()) < 1e-2
    save_artefact(again, tmp_path / "merged", task="text-generation", system_prompt=None)
    alone, _ = load_artefact(tmp_path / "merged")
    assert torch.equal(logits(alone.network, ids), logits(again.network, ids))


@pytest.mark.parametrize("quantization", BITS)
def test_the_adapter_loads_in_plain_peft_on_both_bases(
    tiny_decoder: Path, tmp_path: Path, quantization: Quantization
) -> None:
    import peft
    import transformers

    model = built(tiny_decoder, quantization)
    trained(model, tmp_path)
    save_artefact(model, tmp_path / "model", task="text-generation", system_prompt=None)
    ids = ids_of(model)
    expected = logits(model.network, ids)
    wide = transformers.AutoModelForCausalLM.from_pretrained(tiny_decoder)
    on_wide = logits(peft.PeftModel.from_pretrained(wide, tmp_path / "model"), ids)
    assert 1e-6 < float((on_wide - expected).abs().max()) < 0.2  # near, but the base is another
    narrow = tiny.build(tiny_decoder, "generate", dtype=torch.float32)
    narrow.network.requires_grad_(False)
    quantize_base(narrow, quantization)
    narrow_tables(narrow)
    on_narrow: Any = peft.PeftModel.from_pretrained(narrow.network, tmp_path / "model")  # type: ignore[arg-type]
    torch.testing.assert_close(logits(on_narrow, ids), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("quantization", BITS)
def test_a_resumed_run_gives_the_same_bytes(tiny_decoder: Path, tmp_path: Path, quantization: Quantization) -> None:
    whole, again = built(tiny_decoder, quantization), built(tiny_decoder, quantization)
    trained(whole, tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / "step-00000006")
    trained(again, tmp_path)
    for (name, one), (_, other) in zip(whole.trainable(), again.trainable(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"kind": "pissa", "quantization": "int4"}, "a quantized base cannot change"),
        ({"kind": "dora", "quantization": "int4"}, "cannot read in int4"),
        ({"kind": "hra", "quantization": "int8"}, "the base's own weights"),
        ({"kind": "layers", "layers": "last 1", "quantization": "int8"}, "a quantized base cannot change"),
        ({"kind": "lora", "quantization": "int3"}, "cannot be 'int3'"),
    ],
)
def test_pairs_that_cannot_work_are_refused_with_the_reason(parameters: Any, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        parse({"task": "chat", "model": "m", "data": {"train": "a.jsonl"}, "parameters": parameters})


@pytest.mark.parametrize("kind", ["ia3", "vblora", "randlora"])
def test_other_adapters_merge_from_a_narrow_base_too(tiny_decoder: Path, kind: Any) -> None:
    options = {"vblora": {"vector_length": 16, "num_vectors": 32}}.get(kind, {})
    choice = Adapter(kind=kind, quantization="int4", rank={"randlora": 4}.get(kind), options=options)
    model = tiny.build(tiny_decoder, "generate", choice, dtype=torch.float32)
    ids = ids_of(model)
    expected = logits(model.network, ids)
    merge(model)
    torch.testing.assert_close(logits(model.network, ids), expected, rtol=1e-4, atol=1e-5)


def test_a_narrow_base_is_not_compiled_unasked(tiny_decoder: Path) -> None:
    assert not compile_if_worthwhile(built(tiny_decoder, "int4"), Training(), 10_000, tiny.Events())


def test_numbers_that_the_library_cannot_narrow_are_refused(tiny_decoder: Path) -> None:
    with pytest.raises(UsageError, match=r"while it computes in torch\.float64"):
        quantize_base(tiny.build(tiny_decoder, "generate"), "int8")


def test_a_missing_library_is_named_with_its_extra(tiny_decoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.build(tiny_decoder, "generate")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None)
    with pytest.raises(MissingExtraError, match="torchao") as caught:
        quantize_base(model, "int4")
    assert "tunesmith[quantization]" in str(caught.value.fix)


# --- through bitsandbytes --------------------------------------------------------------------------------------------

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="needs the extra `bitsandbytes`"
)


@needs_bitsandbytes
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("quantization", "share"), [("int8", 0.60), ("int4", 0.30)])
def test_bitsandbytes_learns_is_saved_and_merges(
    tiny_decoder: Path, tmp_path: Path, quantization: Quantization, share: float, dtype: torch.dtype
) -> None:
    wide = tiny.build(tiny_decoder, "generate", dtype=torch.bfloat16)
    model = built(tiny_decoder, quantization, dtype, quantizer="bitsandbytes")
    linear = sum(m.weight.nbytes for block in wide.blocks() for m in block.modules() if isinstance(m, nn.Linear))
    narrow = [m for m in model.network.modules() if is_narrow_layer(m)]
    tables = 14 * 4 * (16 + 256) if quantization == "int4" else 0  # the values that 4 and 8 bits stand for, a layer
    assert len(narrow) == 14 and sum(map(weight_bytes, narrow)) - tables <= share * linear
    assert model.total_parameters == wide.total_parameters + model.trainable_parameters
    before = [p.detach().clone() for _, p in model.trainable()]
    trained(model, tmp_path)
    assert all(not torch.equal(old, new) for old, (_, new) in zip(before, model.trainable(), strict=True))
    ids = ids_of(model)
    expected = logits(model.network, ids)
    save_artefact(model, tmp_path / "model", task="text-generation", system_prompt=None)
    again, notes = load_artefact(tmp_path / "model")
    assert (notes.quantization, notes.quantizer) == (quantization, "bitsandbytes")
    assert torch.equal(logits(again.network, ids), expected)
    merge(again)
    assert all(type(m) is nn.Linear for m in again.network.modules() if "Linear" in type(m).__name__)
    # Both round: bf16 the sum of base and adapter, and int8 the inputs of each product.
    assert float((logits(again.network, ids) - expected).abs().max()) < 3e-2


@needs_bitsandbytes
def test_loftq_knows_what_bitsandbytes_lost(tiny_decoder: Path) -> None:
    wide = tiny.build(tiny_decoder, "generate", dtype=torch.float32)
    plain, loftq = (built(tiny_decoder, "int4", quantizer="bitsandbytes", **more) for more in ({}, {"init": "loftq"}))
    ids = ids_of(wide)
    right, without, with_it = (logits(model.network, ids) for model in (wide, plain, loftq))
    assert float((with_it - right).square().sum()) < 0.9 * float((without - right).square().sum())


def test_bitsandbytes_is_for_lora_and_named_where_it_is_missing(
    tiny_decoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = {"task": "chat", "model": "smollm2-135m-instruct", "data": {"train": "a.jsonl"}}
    with pytest.raises(RecipeError, match="only LoRA"):
        parse({**tree, "parameters": {"kind": "ia3", "quantization": "int4", "quantizer": "bitsandbytes"}})
    with pytest.raises(RecipeError, match="quantizes nothing"):
        parse({**tree, "parameters": {"kind": "lora", "quantizer": "bitsandbytes"}})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="bitsandbytes"):
        quantize_base(tiny.build(tiny_decoder, "generate", dtype=torch.float32), "int4", "bitsandbytes")


# --- 4 bits in groups -------------------------------------------------------------------------------------------------


def test_a_grid_of_sixteen_values_is_met() -> None:
    """What was published in 4 bits, with a step and a smallest value for 32 weights, stays what it was."""
    from tunesmith.models.grouped_int4 import to_int4

    draw = torch.Generator().manual_seed(0)
    grid = torch.randint(0, 16, (640, 32), generator=draw).float()
    grid[:, 0], grid[:, 1] = 0.0, 15.0
    steps, lows = torch.rand(640, 1, generator=draw) + 0.5, -8 - torch.rand(640, 1, generator=draw)
    wide = (grid * steps + lows).reshape(128, 160)
    error = (to_int4(wide).dequantize() - wide).abs()
    assert float(error.max()) < 0.08  # half of 9 / 127 for the smallest value, 15 halves of 1.5 / 255 for the steps
    assert float(error.mean()) < 0.03 < 0.25 * float(steps.mean()) / 2  # half a step is the error of a foreign grid


@pytest.mark.parametrize("values", [torch.zeros(4, 32), torch.full((4, 32), -3.0), torch.eye(32) * 1e-30])
def test_groups_without_a_range_stand_for_what_they_were(values: torch.Tensor) -> None:
    from tunesmith.models.grouped_int4 import to_int4

    found = to_int4(values).dequantize()
    assert bool(torch.isfinite(found).all())
    torch.testing.assert_close(found, values, rtol=0.01, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_product_in_4_bits_is_that_of_the_widened_weight(dtype: torch.dtype) -> None:
    from tunesmith.models.grouped_int4 import to_int4

    torch.manual_seed(0)
    narrow, bias = to_int4(torch.randn(48, 64, dtype=dtype)), torch.randn(48, dtype=dtype, requires_grad=True)
    x, same = (torch.linspace(-1, 1, 3 * 5 * 64, dtype=dtype).view(3, 5, 64).requires_grad_() for _ in range(2))
    ours = nn.functional.linear(x, narrow, bias)
    right = nn.functional.linear(same, narrow.dequantize()) + bias
    assert torch.equal(ours, right)
    ours.square().sum().backward()
    bias_gradient, bias.grad = bias.grad, None
    right.square().sum().backward()
    assert torch.equal(x.grad, same.grad) and torch.equal(bias_gradient, bias.grad)  # type: ignore[arg-type]
