"""What may train: short forms, selections of layers, virtual tokens, and what is refused with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import torch

import tiny
from tunesmith.errors import RecipeError
from tunesmith.models import inference
from tunesmith.models.model import Model
from tunesmith.parameters.adapter import CONFIGS
from tunesmith.parameters.kinds import KINDS
from tunesmith.parameters.settings import SHORT_FORMS, AdapterKind, PromptKind
from tunesmith.recipe import Adapter, Layers, LoRA, Prompt
from tunesmith.recipe_file import parse

SHORT = {"task": "text-classification", "model": "minilm-l6", "data": {"train": "reviews.csv"}}


def chosen(value: object) -> Any:
    return parse(SHORT | {"parameters": value}).parameters


def trained(model: Model) -> set[str]:
    return {name for name, _ in model.trainable()}


# --- the recipe ------------------------------------------------------------------------------------------------------


def test_a_kind_alone_and_short_forms_are_spelled_out() -> None:
    assert chosen("lora") == LoRA()
    assert chosen("dora") == LoRA(dora=True)
    assert chosen({"kind": "lora+", "rank": 8}) == LoRA(lr_ratio=16.0, rank=8)
    assert chosen({"kind": "qlora", "quantization": "int8"}) == LoRA(quantization="int8")
    assert chosen("bitfit") == Layers(layers="biases")
    assert all(chosen(name) for name in SHORT_FORMS)


def test_the_tables_know_the_same_kinds() -> None:
    recipe_kinds = {
        "full",
        "head",
        "layers",
        "lora",
        "in-context",
        "none",
        *get_args(AdapterKind),
        *get_args(PromptKind),
    }
    assert set(KINDS) == recipe_kinds
    assert set(CONFIGS) == set(get_args(AdapterKind))
    assert not set(SHORT_FORMS) & recipe_kinds


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"kind": "lora", "rank": 0}, "greater than or equal to 1"),
        ({"kind": "lora", "alpha": 0}, "greater than 0"),
        ({"kind": "lora", "rank_pattern": {"query": 0}}, "rank of 'query' is 0"),
        ({"kind": "full", "quantization": "int4"}, "a quantized base cannot change"),
        ({"kind": "layers", "layers": "lst 4"}, "'lst 4' chooses nothing"),
        ({"kind": "layers", "layers": []}, "nothing is chosen"),
        ({"kind": "lorra"}, "cannot be 'lorra'"),
        ({"kind": "prefix-tuning", "tokens": 0}, "greater than or equal to 1"),
        ({"kind": "vera", "rang": 3}, "unknown key `parameters.rang`"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_loaded(value: object, said: str) -> None:
    with pytest.raises(RecipeError, match=said) as caught:
        chosen(value)
    if said.startswith("unknown"):
        assert caught.value.fix == "did you mean `rank`?"


# --- layers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("last 1", {"model.layers.1", "model.norm"}),
        ("first 1", {"model.layers.0"}),
        (1, {"model.layers.1"}),
        ("0-1", {"model.layers.0", "model.layers.1"}),
        ("*.mlp.*", {"model.layers.0.mlp", "model.layers.1.mlp"}),
        ("model.layers.?.self_attn.q_proj", {"model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"}),
        (["0", "head"], {"model.layers.0", "model.embed_tokens"}),  # the head is tied to the embeddings
    ],
)
def test_a_selection_trains_what_it_names(tiny_decoder: Path, layers: Any, expected: set[str]) -> None:
    model = tiny.build(tiny_decoder, "generate", Layers(layers=layers))
    every = [name for name, _ in model.network.named_parameters()]
    assert trained(model) == {name for name in every if any(name.startswith(f"{part}.") for part in expected)}


def test_biases_or_norms_alone_train_beside_the_head(tiny_bert: Path) -> None:
    biases = tiny.build(tiny_bert, "classify", Layers(layers="biases"))
    assert all(name.endswith("bias") or name == "classifier.weight" for name in trained(biases))
    assert biases.trainable_parameters < 0.06 * biases.total_parameters
    norms = tiny.build(tiny_bert, "classify", Layers(layers="norms"))
    assert all("LayerNorm" in name or name.startswith("classifier") for name in trained(norms))


def test_a_selection_that_names_nothing_lists_what_there_is(tiny_decoder: Path) -> None:
    with pytest.raises(RecipeError, match="has 2 layers, 0 to 1, so `1-2` cannot") as caught:
        tiny.build(tiny_decoder, "generate", Layers(layers="1-2"))
    assert "last 2" in str(caught.value.fix)
    with pytest.raises(RecipeError, match="matches nothing") as caught:
        tiny.build(tiny_decoder, "generate", Layers(layers="*.attn.*"))
    assert "model.layers.*.self_attn.q_proj.weight" in str(caught.value.fix)
    with pytest.raises(RecipeError, match="`biases` matches nothing"):
        tiny.build(tiny_decoder, "generate", Layers(layers="biases"))


# --- adapters --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "choice", [LoRA(targets="qwery"), Adapter(kind="vera", targets=["qwery"])], ids=["lora", "vera"]
)
def test_targets_that_match_nothing_list_what_there_is(tiny_bert: Path, choice: Any) -> None:
    with pytest.raises(RecipeError, match="matches the targets") as caught:
        tiny.build(tiny_bert, "classify", choice)
    assert "query" in str(caught.value.fix) and "all-linear" in str(caught.value.fix)


@pytest.mark.parametrize(
    ("said", "where", "named", "fix"),
    [
        ({"targets": ["query", "q_proj"]}, "targets", "'q_proj'", "query"),
        ({"targets": ".*no_such.*"}, "targets", "'.*no_such.*'", "all-linear"),
        ({"targets": "*query"}, "targets", "is no regular expression", "`.*` any text"),
        ({"exclude": "nonexistent"}, "exclude", "'nonexistent'", "query"),
        ({"exclude": ["query", "foo"]}, "exclude", "'foo'", "query"),
        ({"modules_to_save": ["foo"]}, "modules_to_save", "'foo'", "LayerNorm"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern", "'q_proj'", "query"),
        ({"targets": ["query"], "rank_pattern": {"key": 2}}, "rank_pattern", "'key'", "adapter: query"),
        ({"alpha_pattern": {"query|q_proj": 2.0, "foo": 1.0}}, "alpha_pattern", "'foo'", "query"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_every_name_that_matches_nothing_is_an_error(
    tiny_bert: Path, said: dict[str, Any], where: str, named: str, fix: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        tiny.build(tiny_bert, "classify", LoRA.model_validate(said))
    assert caught.value.where == f"parameters.{where}" and named in caught.value.what
    assert fix in str(caught.value.fix)


def test_one_of_several_targets_of_another_kind_must_match_too(tiny_bert: Path) -> None:
    with pytest.raises(RecipeError, match="matches the targets 'q_proj'"):
        tiny.build(tiny_bert, "classify", Adapter(kind="vera", targets=["query", "q_proj"]))


def test_one_target_may_be_a_name_or_a_pattern(tiny_bert: Path) -> None:
    by_name = tiny.build(tiny_bert, "classify", LoRA(targets="query"))
    by_pattern = tiny.build(tiny_bert, "classify", LoRA(targets=r".*layer\.\d\.attention\.self\.query"))
    assert trained(by_name) == trained(by_pattern)
    without = tiny.build(tiny_bert, "classify", LoRA(exclude=["query", "key"]))
    assert not any("query" in name or ".key" in name for name in trained(without))


def test_sizes_and_options_that_do_not_fit_are_refused(tiny_decoder: Path) -> None:
    with pytest.raises(RecipeError, match="does not suit"):
        tiny.build(tiny_decoder, "generate", Adapter(kind="vblora", options={"vector_length": 7}))
    with pytest.raises(RecipeError, match="has no setting 'vera_droput'") as caught:
        tiny.build(tiny_decoder, "generate", Adapter(kind="vera", options={"vera_droput": 0.1}))
    assert caught.value.fix == "did you mean `vera_dropout`?"
    with pytest.raises(RecipeError, match="`ia3` has no rank"):
        tiny.build(tiny_decoder, "generate", Adapter(kind="ia3", rank=4))


def test_the_ratio_of_lora_plus_reaches_the_rates_of_b(tiny_decoder: Path) -> None:
    model = tiny.build(tiny_decoder, "generate", LoRA(rank=2, lr_ratio=16.0))
    assert set(model.rates) == {name for name in trained(model) if "lora_B" in name}
    assert set(model.rates.values()) == {16.0}


# --- virtual tokens --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", get_args(PromptKind))
def test_virtual_tokens_stand_before_choices_and_written_answers(tiny_decoder: Path, kind: Any) -> None:
    """Scores of choices and greedy answers follow from PEFT's own forward pass, one text at a time."""
    model = tiny.build(tiny_decoder, "generate", Prompt(kind=kind, tokens=3), dtype=torch.float32)
    with torch.no_grad():
        for _, parameter in model.trainable():
            parameter.mul_(3.0)  # so that they matter
    assert model.max_length == 256 - 3
    prompts = [model.tokenizer(text)["input_ids"] for text in ("the film was", "the film was a good")]
    choices = [model.tokenizer(text)["input_ids"] for text in ("good", "very bad")]
    found = inference.choice_probabilities(model, prompts, choices)
    for row, prompt in enumerate(prompts):
        scores = torch.tensor([_log_likelihood(model, prompt, choice) for choice in choices])
        assert found[row] == pytest.approx(torch.softmax(scores, 0).numpy(), abs=1e-5)
    answers = inference.generate(model, prompts, max_new_tokens=4)
    assert answers == [_greedy(model, prompt, 4) for prompt in prompts]


@torch.no_grad()
def _scores(model: Model, ids: list[int]) -> torch.Tensor:
    """By PEFT's wrapper alone, (S, V)."""
    network: Any = model.network.eval()
    tokens = torch.tensor([ids])
    return network(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits[0, -len(ids) :]


def _log_likelihood(model: Model, prompt: list[int], choice: list[int]) -> float:
    log_p = torch.log_softmax(_scores(model, prompt + choice), -1)
    return float(sum(log_p[len(prompt) - 1 + n, token] for n, token in enumerate(choice)))


def _greedy(model: Model, prompt: list[int], count: int) -> list[int]:
    written: list[int] = []
    while len(written) < count:
        token = int(_scores(model, prompt + written)[-1].argmax())
        if token in model.eos_ids:
            break
        written.append(token)
    return written


def test_virtual_tokens_are_refused_where_they_would_be_in_the_way(
    tiny_decoder: Path, tiny_encoder: Path, tiny_bert: Path
) -> None:
    with pytest.raises(RecipeError, match="finds the last token by its id"):
        tiny.build(tiny_decoder, "classify", Prompt(kind="prompt-tuning"))
    with pytest.raises(RecipeError, match="takes no keys and values"):
        tiny.build(tiny_encoder, "classify", Prompt(kind="prefix-tuning"))
    with pytest.raises(RecipeError, match="room for 64 tokens"):
        tiny.build(tiny_bert, "classify", Prompt(kind="prompt-tuning", tokens=60))


def test_virtual_tokens_are_gone_where_the_adapter_is_switched_off(tiny_decoder: Path) -> None:
    """What a reference model, the base under the adapter, is asked by."""
    model = tiny.build(tiny_decoder, "generate", Prompt(kind="prompt-tuning", tokens=3))
    network: Any = model.network
    for _ in range(2):
        assert model.virtual_tokens == 3
        with network.disable_adapter():
            assert model.virtual_tokens == 0


def test_virtual_tokens_belong_to_the_last_stage() -> None:
    stages = [{"name": "a", "parameters": "prompt-tuning"}, {"name": "b", "parameters": "lora"}]
    with pytest.raises(RecipeError, match="part of the next stage's base"):
        parse({"task": "chat", "model": "m", "data": {"train": "a.jsonl"}, "stages": stages})
    assert parse({"task": "chat", "model": "m", "data": {"train": "a.jsonl"}, "stages": stages[::-1]})


def test_a_prompt_begins_with_the_embeddings_of_a_text(tiny_decoder: Path) -> None:
    model = tiny.build(tiny_decoder, "generate", Prompt(kind="prompt-tuning", tokens=3, init="very good film"))
    network: Any = model.network
    ids = model.tokenizer("very good film")["input_ids"][:3]
    words = network.word_embeddings.weight[torch.tensor((ids * 3)[:3])]
    torch.testing.assert_close(network.get_prompt(batch_size=1)[0].double(), words.double())
