"""Tokens that are added: their rows train, no other does, and plain transformers and PEFT load the result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from tunesmith.adapter_set import AdapterSet
from tunesmith.errors import RecipeError, UsageError
from tunesmith.models.merging import merge
from tunesmith.models.model import Model
from tunesmith.models.new_tokens import ids_of, tables
from tunesmith.models.saving import load_artefact, save_artefact
from tunesmith.recipe import Full, Layers, LoRA, Parameters
from tunesmith.recipe_file import parse

TOKENS = ["<tool>", "<end>"]


def built(folder: Path, form: Any, choice: Parameters, dtype: torch.dtype = torch.float32) -> Model:
    return tiny.build(folder, form, choice, dtype=dtype)


def rows(count: int = 16) -> list[dict[str, Any]]:
    return [{"prompt": f"what is the film <tool> {n}", "completion": "the good film <end>"} for n in range(count)]


def trained(model: Model, folder: Path, **settings: Any) -> Model:
    kept: dict[str, Any] = {"max_steps": 4, "batch_size": 8, "learning_rate": 1e-2, "weight_decay": 0.1}
    values = rows() if model.form == "generate" else [
        {"text": f"<tool> {row['text']}", "label": row["label"]} for row in tiny_labels()
    ]  # fmt: skip
    tiny.trainer(model, values, folder, kind="layers", warmup=0.0, **{**kept, **settings}).run()
    return model


def tiny_labels() -> list[dict[str, str]]:
    from conftest import labelled_rows

    return labelled_rows(16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("form", ["generate", "classify"])
def test_rows_of_known_tokens_stay_to_the_bit(
    form: str, dtype: torch.dtype, tiny_decoder: Path, tiny_encoder: Path, tmp_path: Path
) -> None:
    folder = tiny_decoder if form == "generate" else tiny_encoder
    choice = Layers(layers="new tokens", new_tokens=TOKENS)
    model = built(folder, form, choice, dtype)
    new = ids_of(model)
    before = [weight.detach().clone() for weight in tables(model)]
    trained(model, tmp_path)
    for old, weight in zip(before, tables(model), strict=True):
        changed = (weight != old).any(dim=1).nonzero()[:, 0].tolist()
        assert changed and set(changed) <= set(new), "weight decay and moments must not reach the others"
        assert new[0] in changed


def test_new_rows_begin_as_the_mean_of_their_pieces(tiny_decoder: Path) -> None:
    plain = tiny.build(tiny_decoder, "generate", dtype=torch.float32)
    model = built(tiny_decoder, "generate", Layers(layers="new tokens", new_tokens=TOKENS))
    pieces = plain.tokenizer("<tool>", add_special_tokens=False)["input_ids"]
    assert len(pieces) > 1 and len(model.tokenizer("<tool>", add_special_tokens=False)["input_ids"]) == 1
    network: Any = plain.transformer()
    expected = network.get_input_embeddings().weight[pieces].mean(0)
    torch.testing.assert_close(tables(model)[0][ids_of(model)[0]], expected)
    known = built(tiny_decoder, "generate", Layers(layers="new tokens", new_tokens=["the"]))
    assert len(known.tokenizer) == len(plain.tokenizer), "a known token gets no second row"


def test_a_whole_model_loads_in_plain_transformers(tiny_decoder: Path, tmp_path: Path) -> None:
    import transformers

    choice = Layers(layers=["last 1", "new tokens"], new_tokens=TOKENS)
    model = trained(built(tiny_decoder, "generate", choice), tmp_path)
    save_artefact(model, tmp_path / "model", task="text-generation", system_prompt=None)
    network = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    ids = tokenizer("the <tool> film <end>", return_tensors="pt")["input_ids"]
    assert set(ids_of(model)) <= set(ids[0].tolist())
    model.network.eval()
    with torch.no_grad():
        torch.testing.assert_close(network(ids).logits, model.network(ids).logits, rtol=1e-4, atol=1e-5)
    again, _ = load_artefact(tmp_path / "model")
    with torch.no_grad():
        assert torch.equal(again.network(ids).logits, model.network(ids).logits)


def test_an_adapter_holds_the_rows_and_loads_in_plain_peft(tiny_decoder: Path, tmp_path: Path) -> None:
    import peft
    import transformers
    from safetensors.torch import load_file

    model = trained(built(tiny_decoder, "generate", LoRA(rank=4, new_tokens=TOKENS)), tmp_path)
    save_artefact(model, tmp_path / "model", task="text-generation", system_prompt=None)
    saved = load_file(tmp_path / "model" / "adapter_model.safetensors")
    assert {tuple(t.shape) for name, t in saved.items() if "trainable_tokens" in name} == {(2, 32)}
    assert not [name for name in saved if name.endswith("embed_tokens.weight")], "no copy of the embeddings"
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny_decoder)
    untouched = base.get_input_embeddings().weight.detach().clone()
    base.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    network = peft.PeftModel.from_pretrained(base, tmp_path / "model").eval()
    ids = tokenizer("the <tool> film <end>", return_tensors="pt")["input_ids"]
    model.network.eval()
    with torch.no_grad():
        expected = model.network(ids).logits
        torch.testing.assert_close(network(ids).logits, expected, rtol=1e-4, atol=1e-5)
        again, _ = load_artefact(tmp_path / "model")
        assert torch.equal(again.network(ids).logits, expected)
        merge(again)
        torch.testing.assert_close(again.network(ids).logits, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(tables(again)[0][: len(untouched)], untouched)
    with pytest.raises(UsageError, match="tokens of its own"):
        AdapterSet({"one": tmp_path / "model"})


def test_a_run_that_was_killed_goes_on_with_the_same_rows(tiny_decoder: Path, tmp_path: Path) -> None:
    import shutil

    for choice in (Layers(layers="new tokens", new_tokens=TOKENS), LoRA(rank=4, new_tokens=TOKENS)):
        folder = tmp_path / choice.kind
        whole = trained(built(tiny_decoder, "generate", choice), folder, checkpoint_steps=2)
        shutil.rmtree(folder / "checkpoints" / "step-00000004")
        again = trained(built(tiny_decoder, "generate", choice), folder, checkpoint_steps=2)
        for (name, one), (_, other) in zip(whole.trainable(), again.trainable(), strict=True):
            assert torch.equal(one, other), name


def test_all_may_train_beside_them(tiny_decoder: Path) -> None:
    model = built(tiny_decoder, "generate", Full(new_tokens=TOKENS))
    assert model.trainable_parameters == model.total_parameters and not model.undecayed


@pytest.mark.parametrize(
    "choice", [Layers(layers="new tokens", new_tokens=TOKENS), LoRA(rank=4, new_tokens=TOKENS)], ids=lambda c: c.kind
)
def test_a_plan_counts_them_without_weights(choice: Parameters, tiny_decoder: Path) -> None:
    from tunesmith.models.load import load_config, load_tokenizer
    from tunesmith.models.skeleton import skeleton

    planned = skeleton(tiny_decoder, load_config(tiny_decoder), load_tokenizer(tiny_decoder), "generate", None, choice)
    real = built(tiny_decoder, "generate", choice)
    assert planned.trainable_parameters == real.trainable_parameters
    assert planned.total_parameters == real.total_parameters


def test_what_cannot_be_is_refused(tiny_decoder: Path) -> None:
    tree = {"task": "chat", "model": "smollm2-135m-instruct", "data": {"train": "a.jsonl"}}
    with pytest.raises(RecipeError, match="there are none"):
        parse({**tree, "parameters": {"kind": "layers", "layers": "new tokens"}})
    with pytest.raises(RecipeError, match="new_tokens"):
        parse({**tree, "parameters": {"kind": "lora", "new_tokens": [""]}})
