"""Forecasts against the real thing, on models of a few thousand parameters."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tunesmith import parameters, planning
from tunesmith.errors import DataError
from tunesmith.events import Event
from tunesmith.models.load import load_config, load_model, load_tokenizer
from tunesmith.models.skeleton import skeleton
from tunesmith.planning import dry_run, machine
from tunesmith.planning.costs import LATER_BYTES
from tunesmith.planning.dry_run import Layout
from tunesmith.planning.machine import Machine
from tunesmith.planning.sampling import different_tokens
from tunesmith.planning.shape import by_formula, flops_per_token, shape_of
from tunesmith.recipe import Full, Head, Layers, LoRA, NoParameters
from tunesmith.recipe_file import parse

RATES = {"fp32": 1e11, "bf16": 2e11, "copy": 1e10, "draws": 1e8}
HERE = Machine("test", "cpu", **RATES, memory_bytes=10**10)
GPU = Machine("gpu", "cuda", **RATES, memory_bytes=10**10)


def networks(words: int, *, tied: bool) -> dict[str, Any]:
    """A sentence encoder and a model that writes, whose head is its table of word vectors or one of its own."""
    import transformers

    sizes = {"vocab_size": words, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 4, "max_position_embeddings": 256}
    bert = transformers.BertModel(transformers.BertConfig(**sizes, **heads), add_pooling_layer=False)
    llama = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**sizes, **heads, num_key_value_heads=2, tie_word_embeddings=tied, eos_token_id=2)
    )
    return {"encoder": bert, "decoder": llama}


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
    found = {}
    for name, model in networks(len(letters), tied=True).items():
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
    monkeypatch.setattr(machine, "speed", lambda device: dict(RATES))


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


@pytest.mark.parametrize("where", [HERE, GPU])
@pytest.mark.parametrize(
    ("settings", "factors"),
    [(Full(), (6, 0)), (LoRA(rank=8), (4, 6))],
)
def test_a_dry_run_counts_what_the_formulae_say(folders, where, settings, factors):
    """6 N + 6 L H h S operations a token with all weights training, 4 N + 6 P + 6 L H h S with adapters."""
    config, tokenizer = load_config(folders["decoder"]), load_tokenizer(folders["decoder"])
    model = skeleton(folders["decoder"], config, tokenizer, "generate", None, settings)
    layout = Layout(rows=5, width=40)
    counted = dry_run.step(model, where, layout)
    n = 3 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48)  # q and o, k and v for two heads, gate up down
    adapters = shape_of(model, config).adapter_weights
    scores = 12 * 3 * 32 * layout.width  # batched products compute what is masked too: twice the causal 6 L H h S
    if where is GPU:
        scores *= 7 / 6 / 2  # the fused kernel skips it, and computes the scores once more
    whole = layout.tokens * (factors[0] * n + factors[1] * adapters + scores)
    # the first layer's input needs no gradient where all trains: 2 operations less for q, k and v, or for their A
    spared = 2 * 32 * (32 + 2 * 16) if settings.kind == "full" else 2 * 3 * 32 * 8 + 2 * 32 * (32 + 2 * 16)
    assert counted.train.flops == pytest.approx(whole - layout.tokens * spared * (settings.kind == "lora"), rel=0.02)
    assert counted.forward.flops < counted.train.flops / 2


def test_few_layers_are_counted_for_all(folders):
    config, tokenizer = load_config(folders["encoder"]), load_tokenizer(folders["encoder"])
    for settings in (Full(), Layers(layers="last 2"), LoRA(rank=4), Head()):
        model = skeleton(folders["encoder"], config, tokenizer, "classify", ["a", "b"], settings)
        largest = Layout(rows=8, width=32)
        found = dry_run.scaled(model, HERE, largest)
        assert len(model.blocks()) == 3  # what was taken out for a moment is there again
        for layout in (largest, Layout(rows=6, width=24)):
            whole = dry_run.step(model, HERE, layout)
            guessed = found.work(layout.tokens, layout.pairs)
            for name in ("flops", "element_seconds", "random_seconds", "operations", "kept_bytes"):
                assert getattr(guessed, name) == pytest.approx(getattr(whole.train, name), rel=0.02, abs=1e-6), name
            assert guessed.peak_bytes == pytest.approx(whole.train.peak_bytes, rel=0.1)
            assert found.work(layout.tokens, layout.pairs, forward=True).flops == pytest.approx(whole.forward.flops)


def test_what_is_kept_for_the_backward_pass_is_what_autograd_saves(folders):
    """Against the tensors that a real step of the same network saves."""
    import torch

    model = load_model(folders["decoder"], name="decoder", form="generate")
    model.network.train()
    ids = torch.ones(6, 40, dtype=torch.long)
    saved: dict[int, int] = {}

    def remember(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    decoder = model.network.model
    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        decoder(input_ids=ids, use_cache=False)
    real = sum(saved.values()) - sum(p.untyped_storage().nbytes() for p in decoder.parameters())
    config, tokenizer = load_config(folders["decoder"]), load_tokenizer(folders["decoder"])
    bare = skeleton(folders["decoder"], config, tokenizer, "generate", None, Full())
    assert dry_run.step(bare, HERE, Layout(6, 40)).forward.kept_bytes == pytest.approx(real, rel=0.1)


def test_networks_that_cannot_run_dry_are_planned_by_formula(folders):
    config, tokenizer = load_config(folders["decoder"]), load_tokenizer(folders["decoder"])
    model = skeleton(folders["decoder"], config, tokenizer, "generate", None, Layers(layers="last 1"))
    shape = shape_of(model, config)
    in_layers, one_layer = shape.layer_weights, shape.layer_weights / 3
    step, forward = flops_per_token(shape, 40.0)
    attention = 2 * 3 * 32 * 40.0
    assert forward == pytest.approx(2 * in_layers + attention)
    assert step == pytest.approx(forward + 4 * one_layer + 2 * attention / 3)
    found = by_formula(model, HERE).work(100.0, 100.0 * 40)
    assert found.flops == pytest.approx(100 * step) and found.kept_bytes > 0


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
    assert list(made.as_dict())[: len(keys)] == keys and json.loads(json.dumps(made.as_dict())) == made.as_dict()
    assert 0 < made.seconds.low < made.seconds.high and made.memory_bytes.low < made.memory_bytes.high

    limited = planned(folders["encoder"], reviews, training={"max_steps": 3, "batch_size": 8})
    assert limited.steps == 3 and limited.tokens < made.tokens / 4


@pytest.mark.parametrize("drop", [False, True])
def test_no_plan_is_made_of_rows_of_which_none_can_be_used(folders, reviews, drop):
    data = {"train": str(reviews), "max_length": 8, "truncate": False, "drop_bad": drop}
    with pytest.raises(DataError, match=r"longer than `data\.max_length`") as caught:
        planned(folders["encoder"], reviews, data=data, training={"epochs": 1, "batch_size": 8})
    assert str(caught.value.where).startswith(str(reviews))


def test_rounding_in_training_takes_time_and_memory(folders, reviews):
    training = {"epochs": 2, "batch_size": 8}
    plain = planned(folders["encoder"], reviews, training=training)
    rounded = planned(folders["encoder"], reviews, training=training | {"quantization_aware": "int8"})
    assert rounded.trainable_parameters == plain.trainable_parameters
    assert rounded.memory_bytes.high > plain.memory_bytes.high
    assert rounded.seconds.high > plain.seconds.high


def test_features_take_no_steps(folders, reviews):
    made = planned(folders["encoder"], reviews, method="features")
    assert made.steps == 0 and made.trainable_parameters == 0 and made.tokens > 0


def test_a_decoder_classifies_by_writing(folders, reviews):
    made = planned(folders["decoder"], reviews, method="peft", parameters={"kind": "lora", "rank": 4})
    assert made.trainable_parameters == 3 * 4 * ((32 + 32) * 2 + (32 + 16) * 2 + (32 + 48) * 3)


def test_too_little_memory_is_said_with_a_way_out(folders, reviews, monkeypatch):
    assert planned(folders["encoder"], reviews, method="full").fits
    whole = planned(folders["encoder"], reviews, method="full")
    monkeypatch.setattr(machine, "free_memory", lambda device: 0)
    made = planned(folders["encoder"], reviews, method="full")  # what the process has already is still there
    assert not made.fits and "not fit into" in made.advice[0]
    assert any("smaller model" in line or "would fit" in line for line in made.advice)
    assert sum(whole.memory_parts.values()) == pytest.approx(whole.memory_bytes.expected)


def test_the_changes_that_make_it_fit_are_planned_themselves(folders, reviews, tmp_path, monkeypatch):
    """On a network with far more weights than adapters: LoRA spares their gradients and moments."""
    import transformers

    sizes = {"hidden_size": 512, "intermediate_size": 1024, "head_dim": None}
    config = load_config(folders["decoder"])
    wide = transformers.LlamaConfig(**{**config.to_dict(), **sizes})
    transformers.LlamaForCausalLM(wide).save_pretrained(tmp_path / "wide")
    load_tokenizer(folders["decoder"]).save_pretrained(tmp_path / "wide")
    whole = planned(tmp_path / "wide", reviews, method="full", training=FEW)
    lora = planned(tmp_path / "wide", reviews, method="peft", training=FEW)
    assert whole.memory_bytes.high > lora.memory_bytes.high + 50e6
    between = (whole.memory_bytes.high + lora.memory_bytes.high) / 2
    process = whole.stages[0].memory_parts["process"] - LATER_BYTES  # what it takes now
    monkeypatch.setattr(machine, "free_memory", lambda device: int(between - process))
    made = planned(tmp_path / "wide", reviews, method="full", training=FEW)
    assert not made.fits and any("would fit" in line and "`method: peft`" in line for line in made.advice)


def test_recomputed_activations_take_less_memory_and_more_time(folders, reviews):
    """Of three layers only the inputs are kept, and their forward passes are counted twice."""
    kept, again = (
        planned(folders["decoder"], reviews, method="full", training={**FEW, "recompute": switch, "compile": "off"})
        for switch in ("off", "on")
    )
    assert again.stages[0].memory_parts["activations"] < 0.8 * kept.stages[0].memory_parts["activations"]
    assert 1.1 * kept.seconds.expected < again.seconds.expected < 1.6 * kept.seconds.expected
    assert again.stages[0].memory_parts["optimizer"] == kept.stages[0].memory_parts["optimizer"]


def test_moments_in_8_bits_take_a_quarter(folders, reviews):
    wide, narrow = (
        planned(folders["decoder"], reviews, method="full", precision="fp32", training={**FEW, "optimizer": kind})
        for kind in ("adamw", "adamw-8bit")
    )
    parts = [made.stages[0].memory_parts["optimizer"] for made in (wide, narrow)]
    assert parts[1] == pytest.approx(parts[0] / 4, rel=0.02)


def test_what_does_not_change_the_result_is_tried_first(folders, reviews, monkeypatch):
    """With room for less than passes of the usual size take, but for more than those of recomputed layers."""
    training = {**FEW, "batch_size": 32, "micro_tokens": 4096}
    whole = planned(folders["decoder"], reviews, method="full", training=training)
    again = planned(folders["decoder"], reviews, method="full", training={**training, "recompute": "on"})
    between = (whole.memory_bytes.high + again.memory_bytes.high) / 2
    process = whole.stages[0].memory_parts["process"] - LATER_BYTES
    monkeypatch.setattr(machine, "free_memory", lambda device: int(between - process))
    made = planned(folders["decoder"], reviews, method="full", training=training)
    ways = [line for line in made.advice if line.startswith("it would fit: ")]
    assert not made.fits and "micro_tokens" in ways[0] and "recompute: on" in ways[1] and "adamw-8bit" in ways[2]


def test_what_is_there_already_is_no_activation(folders):
    """A product with a frozen weight looks at it in another way: that is not memory of the step's."""
    config, tokenizer = load_config(folders["decoder"]), load_tokenizer(folders["decoder"])
    model = skeleton(folders["decoder"], config, tokenizer, "generate", None, LoRA(rank=1))
    one_token = dry_run.step(model, HERE, Layout(1, 1))
    layers = sum(p.numel() * p.element_size() for block in model.blocks() for p in block.parameters())
    assert 0 < one_token.forward.kept_bytes < one_token.train.peak_bytes < layers / 3


def test_several_stages_add_up(folders, reviews):
    one = planned(folders["encoder"], reviews, training={"epochs": 1})
    stages = [{"name": "first", "parameters": {"kind": "head"}}, {"name": "second", "parameters": {"kind": "full"}}]
    two = planned(folders["encoder"], reviews, training={"epochs": 1}, stages=stages)
    assert two.steps == 2 * one.steps and two.tokens == 2 * one.tokens
    assert two.trainable_parameters == one.trainable_parameters == one.total_parameters


FEW = {"epochs": 1, "batch_size": 1}


def test_the_machine_is_measured_once_and_never_looks_slower(tmp_path, monkeypatch):
    import torch

    from tunesmith import doctor

    answers = iter([{"fp32_gflops": 100, "bf16_gflops": 300}, {"fp32_gflops": 150, "bf16_gflops": 200}])
    monkeypatch.undo()
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(doctor, "speed", lambda: next(answers))
    monkeypatch.setattr(doctor, "PROBE_SECONDS", 0.01)
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


@pytest.fixture
def wide_vocabulary(folders: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    """The same kinds of models with 400 words, of which the texts read a few; the decoder's head is its own."""
    import shutil

    found = {}
    for name, model in networks(400, tied=False).items():
        found[name] = Path(shutil.copytree(folders[name], tmp_path / name))
        model.save_pretrained(found[name])
    return found


@pytest.mark.parametrize(("precision", "copied"), [("fp32", 4), ("bf16", 0)])
def test_word_vectors_that_no_text_reads_take_no_optimizer(wide_vocabulary, reviews, precision, copied):
    """In fp32 those that are read are updated in a copy, in bf16 all are; the same in memory and in checkpoints."""
    from tunesmith.data.prepare import prepare

    made = planned(wide_vocabulary["encoder"], reviews, method="full", precision=precision, training=FEW).stages[0]
    tokenizer = load_tokenizer(wide_vocabulary["encoder"])
    rows = prepare(parse({"task": "text-classification", "model": "x", "data": {"train": str(reviews)}})).train
    read = 32 * len({token for row in rows for token in tokenizer(row.fields["text"])["input_ids"]})
    updated = made.trainable - 32 * 400 + read
    expected = (8 if precision == "fp32" else 12) * updated + copied * read
    assert made.memory_parts["optimizer"] == pytest.approx(expected)
    assert made.checkpoint_bytes == pytest.approx(expected + (4 if precision == "fp32" else 2) * made.trainable)


def test_a_plan_runs_no_reward(wide_vocabulary, tmp_path):
    rows = "".join(json.dumps({"prompt": f"what is {n}", "completion": str(n)}) + "\n" for n in range(40))
    (tmp_path / "rows.jsonl").write_text(rows)
    recipe = {
        "task": "text-generation",
        "model": str(wide_vocabulary["decoder"]),
        "data": {"train": str(tmp_path / "rows.jsonl")},
        "objective": "grpo",
        "parameters": "full",
        "training": {**FEW, "rewards": [{"kind": "python", "function": str(tmp_path / "not-yet.py:score")}]},
        "evaluate": {"baselines": []},
    }
    made = planning.plan(parse(recipe)).stages[0]
    assert made.memory_parts["optimizer"] == 12 * made.trainable, "it writes any word"


def test_different_tokens_of_more_rows_by_hand() -> None:
    """Three of four tokens are in one row alone and one is in two."""
    rows = [[1, 2, 2], [1, 3], [4, 4]]
    unseen = 2 / 3 * 3**2 / (2 * 1)
    expected = 4 + unseen * (1 - (1 - 3 / (3 * unseen + 3)) ** 3)
    assert different_tokens(rows, 2.0) == pytest.approx(expected)
    assert different_tokens(rows, 1.0) == 4.0
    assert different_tokens([[1, 2], [1, 2], [1, 2]], 9.0) == 2.0, "no token in one row alone"
    assert different_tokens([[1, 2, 3]], 5.0) == 3.0, "one row says nothing of others"
