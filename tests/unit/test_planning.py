"""Forecasts against the real thing, on models of a few thousand parameters."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from tunesmith import parameters, planning
from tunesmith.events import Event
from tunesmith.models.load import load_config, load_model, load_tokenizer
from tunesmith.planning import costs, machine
from tunesmith.planning.costs import Sample
from tunesmith.planning.shape import Shape, shape_of, skeleton
from tunesmith.recipe import Full, Head, Layers, LoRA, NoParameters
from tunesmith.recipe_file import parse

RATES = {"fp32": 1e11, "bf16": 2e11, "copy": 1e10}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A sentence encoder and a chat model, tiny, with a vocabulary of letters."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    letters = ["[PAD]", "[UNK]", "</s>", *"abcdefghijklmnopqrstuvwxyz .:,\nABCDEFGHIJKLMNOPQRSTUVWXYZ"]
    raw = Tokenizer(models.WordLevel({letter: n for n, letter in enumerate(letters)}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]", eos_token="</s>"
    )
    sizes = {"vocab_size": len(letters), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 4, "max_position_embeddings": 256}
    bert = transformers.BertModel(transformers.BertConfig(**sizes, **heads), add_pooling_layer=False)
    llama = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**sizes, **heads, num_key_value_heads=2, tie_word_embeddings=True, eos_token_id=2)
    )
    found = {}
    for name, model in {"encoder": bert, "decoder": llama}.items():
        folder = tmp_path_factory.mktemp(name)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        found[name] = folder
    (found["encoder"] / "1_Pooling").mkdir()
    (found["encoder"] / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    return found


@pytest.fixture(autouse=True)
def known_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(planning, "speed", lambda device: dict(RATES))


@pytest.mark.parametrize(
    ("name", "form", "settings"),
    [
        ("encoder", "classify", Full()),
        ("encoder", "classify", Head()),
        ("encoder", "classify", Layers(layers="last 1")),
        ("encoder", "classify", LoRA(rank=4)),
        ("decoder", "generate", Full()),
        ("decoder", "generate", Layers(layers="last 2")),
        ("decoder", "generate", LoRA(rank=8)),
        ("decoder", "classify", LoRA(rank=4)),
    ],
)
def test_counts_are_those_of_the_loaded_model(folders, name, form, settings):
    labels = ["x", "y", "z"]
    real = load_model(folders[name], name=name, form=form, labels=labels)
    parameters.apply(real, settings)
    config = load_config(folders[name])
    bare = skeleton(folders[name], config, load_tokenizer(folders[name]), form, labels, settings)
    assert bare.total_parameters == real.total_parameters
    assert bare.trainable_parameters == real.trainable_parameters > 0
    assert all(p.is_meta for p in bare.network.parameters())


def test_operations_follow_the_formulae(folders):
    layers, heads_width, length = 3, 32, 40.0
    config = load_config(folders["decoder"])
    tokenizer = load_tokenizer(folders["decoder"])
    shapes = {
        kind: shape_of(skeleton(folders["decoder"], config, tokenizer, "generate", None, settings), config)
        for kind, settings in {"full": Full(), "lora": LoRA(rank=8), "layers": Layers(layers="last 1")}.items()
    }
    in_layers = layers * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48)  # q and o, k and v for two heads, gate up down
    n = in_layers + config.vocab_size * 32
    attention = 6 * layers * heads_width * length
    assert costs.flops_per_token(shapes["full"], length, 1.0)[0] == pytest.approx(6 * n + attention)
    p = shapes["lora"].adapter_weights
    assert p == layers * 8 * ((32 + 32) * 2 + (32 + 16) * 2 + (32 + 48) * 3)
    assert costs.flops_per_token(shapes["lora"], length, 1.0)[0] == pytest.approx(4 * n + 6 * p + attention)
    step, forward = costs.flops_per_token(shapes["layers"], length, 1.0)
    assert forward == pytest.approx(2 * n + attention / 3)
    one_layer = in_layers / layers
    assert step == pytest.approx(forward + 4 * one_layer + 2 * config.vocab_size * 32 + 2 * attention / 9)


def test_memory_and_time_grow_with_what_they_depend_on():
    shape = Shape(4, 4, 10_000, 10_000, 0, 0, 64, 256, 64, 4, False)
    sample = Sample(np.full(1000, 50), 0, 0.0, 0.0)

    def need(trainable: int = 10_000, micro: int = 1000, wide: int = 4) -> float:
        return costs.memory(
            shape, sample, total=10_000, trainable=trainable, micro_tokens=micro, device="cpu", wide=wide
        ).high

    assert need(micro=2000) > need() > need(wide=2)
    assert need() - need(trainable=0) == 10_000 * 12
    assert need(wide=2) - need(trainable=0, wide=2) == 10_000 * 18

    def took(tokens: int, rate: float = 1.0) -> float:
        rates = {name: value * rate for name, value in RATES.items()}
        given = {"trained_tokens": tokens, "read_tokens": 0, "machine": rates, "device": "cpu", "wide": 4}
        return costs.seconds(shape, sample, **given).low

    assert took(2000) == pytest.approx(2 * took(1000)) == pytest.approx(2 * 2 * took(1000, rate=2.0))


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    path = tmp_path / "reviews.csv"
    words = ["good", "fine", "nice", "bad", "poor", "dull"]
    random = np.random.default_rng(0)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for n in range(200):
            text = " ".join(random.choice(words, 6)) + f" {'abcdefghij'[n % 10]}{'klmnopqrstuvwxyz'[n // 13]}"
            writer.writerow([text, "yes" if n % 2 else "no"])
    return path


def planned(folder: Path, reviews: Path, events: list[Event] | None = None, **more: object) -> planning.Plan:
    tree = {"task": "text-classification", "model": str(folder), "data": {"train": str(reviews)}, **more}
    return planning.plan(parse(tree), on_event=(events if events is not None else []).append)


def test_a_plan_counts_the_steps_and_tokens_of_the_run(folders, reviews):
    from tunesmith.data.prepare import prepare

    made = planned(folders["encoder"], reviews, training={"epochs": 2, "batch_size": 8})
    rows = prepare(parse({"task": "text-classification", "model": "x", "data": {"train": str(reviews)}})).train
    tokenizer = load_tokenizer(folders["encoder"])
    tokens = sum(len(tokenizer(row.fields["text"])["input_ids"]) for row in rows)
    assert made.tokens == 2 * tokens
    assert made.steps == 2 * -(-len(rows) // 8)
    keys = ["trainable_parameters", "total_parameters", "tokens", "steps", "memory_bytes", "seconds", "fits", "advice"]
    assert list(made.as_dict()) == [*keys, "parts"] and json.loads(json.dumps(made.as_dict())) == made.as_dict()
    assert 0 < made.seconds.low < made.seconds.high and made.memory_bytes.low < made.memory_bytes.high

    limited = planned(folders["encoder"], reviews, training={"max_steps": 3, "batch_size": 8})
    assert limited.steps == 3 and limited.tokens < made.tokens / 4


def test_features_take_no_steps(folders, reviews):
    made = planned(folders["encoder"], reviews, method="features")
    assert made.steps == 0 and made.trainable_parameters == 0 and made.tokens > 0


def test_a_decoder_classifies_by_writing(folders, reviews):
    made = planned(folders["decoder"], reviews, method="peft", parameters={"kind": "lora", "rank": 4})
    assert made.trainable_parameters == 3 * 4 * ((32 + 32) * 2 + (32 + 16) * 2 + (32 + 48) * 3)


def test_too_little_memory_is_said_with_a_way_out(folders, reviews, monkeypatch):
    assert planned(folders["encoder"], reviews, method="full").fits
    monkeypatch.setattr(planning, "free_memory", lambda device: 1000)
    made = planned(folders["encoder"], reviews, method="full")
    assert not made.fits and "micro_tokens" in made.advice[0] and "method: peft" in made.advice[0]


def test_several_stages_add_up(folders, reviews):
    one = planned(folders["encoder"], reviews, training={"epochs": 1})
    stages = [{"name": "first", "parameters": {"kind": "head"}}, {"name": "second", "parameters": {"kind": "full"}}]
    two = planned(folders["encoder"], reviews, training={"epochs": 1}, stages=stages)
    assert two.steps == 2 * one.steps and two.tokens == 2 * one.tokens
    assert two.trainable_parameters == one.trainable_parameters == one.total_parameters


def test_the_machine_is_measured_once_and_never_looks_slower(tmp_path, monkeypatch):
    import torch

    from tunesmith import doctor

    answers = iter([{"fp32_gflops": 100, "bf16_gflops": 300}, {"fp32_gflops": 150, "bf16_gflops": 200}])
    monkeypatch.setattr(doctor, "speed", lambda: next(answers))
    device = torch.device("cpu")
    first = machine.speed(device)
    assert (first["fp32"], first["bf16"]) == (1e11, 3e11) and first["copy"] > 1e8
    assert machine.speed(device) == first
    monkeypatch.setattr(machine, "SPEED_SECONDS", 0)
    again = machine.speed(device)
    assert (again["fp32"], again["bf16"]) == (1.5e11, 3e11)


def test_nothing_trains_without_parameters(folders):
    config, tokenizer = load_config(folders["encoder"]), load_tokenizer(folders["encoder"])
    model = skeleton(folders["encoder"], config, tokenizer, "classify", ["a", "b"], NoParameters())
    assert model.trainable_parameters == 0 and shape_of(model, config).trained_layers == 0
