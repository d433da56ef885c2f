"""Encoder-decoder models against transformers: loss, likelihoods, answers, and the files that are left."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from conftest import sentences
from tunesmith import objectives
from tunesmith.data.batches import collate
from tunesmith.data.source_target import TARGET_IDS, encode_target
from tunesmith.errors import UsageError
from tunesmith.models import inference
from tunesmith.models.load import load_model
from tunesmith.models.model import Model
from tunesmith.models.saving import save_artefact
from tunesmith.recipe import LoRA, Recipe, Training

FAMILIES = ["tiny_t5", "tiny_bart"]


@pytest.fixture(params=FAMILIES)
def folder(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


def lively(folder: Path, factor: float = 4.0) -> Model:
    """A fresh model is nearly indifferent: with larger matrices errors show."""
    model = load_model(folder, name="tiny", dtype=torch.float64)
    with torch.no_grad():
        for parameter in model.network.parameters():
            if parameter.ndim == 2:
                parameter.mul_(factor)
    return model


def pairs(count: int) -> list[dict[str, str]]:
    return [
        {"prompt": source, "completion": " ".join(target.split()[:4])}
        for source, target in zip(sentences(count), sentences(count, seed=1), strict=True)
    ]


def sources(model: Model, texts: list[str]) -> list[list[int]]:
    return [model.tokenizer(text)["input_ids"] for text in texts]


def test_the_loss_is_transformers_own(folder: Path, tmp_path: Path) -> None:
    model = lively(folder)
    data = tiny.tokens(model, pairs(6), tmp_path)
    batch = collate(data, list(range(6)), model.pad_id)
    targets = batch.extra[TARGET_IDS]
    assert len({len(row[row >= 0]) for row in targets}) > 1, "rows of one length would not show a wrong mask"
    ours = objectives.make("supervised", Training()).loss(model, batch)
    labels = targets.masked_fill(targets < 0, -100)
    theirs = model.network(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=labels).loss
    assert ours.weight == int((targets >= 0).sum())
    assert ours.total.item() / ours.weight == pytest.approx(theirs.item(), rel=1e-6)


def test_the_targets_are_those_of_the_tokenizer(folder: Path) -> None:
    model = lively(folder)
    ids, cut = encode_target(model.tokenizer, "the film was good", 64)
    assert (ids, cut) == (model.tokenizer(text_target="the film was good")["input_ids"], 0)
    assert ids[-1] == model.tokenizer.eos_token_id
    short, cut = encode_target(model.tokenizer, "the film was good", 4)
    assert short == [*ids[:3], model.tokenizer.eos_token_id] and cut == len(ids) - 4
    assert model.tokenizer.eos_token_id not in encode_target(model.tokenizer, "a </s> b", 64)[0][:-1]


def test_likelihoods_of_answers_and_of_choices(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "TOKENS_A_PASS", 60)
    model = lively(folder)
    rows = pairs(7)
    rendered = [tiny.renderer(model)(row) for row in tiny.rows_of(rows)]
    found = inference.target_nats(model, [r.input_ids for r in rendered], [r.extra[TARGET_IDS] for r in rendered])
    network: Any = model.network

    def nats(source: list[int], target: list[int]) -> float:
        with torch.no_grad():
            output = network(input_ids=torch.tensor([source]), labels=torch.tensor([target]))
        return float(output.loss) * len(target)

    np.testing.assert_allclose(found, [nats(r.input_ids, list(r.extra[TARGET_IDS])) for r in rendered], rtol=1e-6)
    choices = [encode_target(model.tokenizer, text, 64)[0] for text in ("good", "not very good", "bad")]
    asked = [r.input_ids for r in rendered]
    scores = np.array([[-nats(source, choice) for choice in choices] for source in asked])
    expected = np.exp(scores - scores.max(1, keepdims=True))
    expected /= expected.sum(1, keepdims=True)
    np.testing.assert_allclose(inference.choice_probabilities(model, asked, choices), expected, rtol=1e-5)


def test_greedy_answers_equal_answers_written_one_by_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In batches, without the beams and the least length that BART's generation config asks for."""
    monkeypatch.setattr(inference, "TOKENS_A_PASS", 100)
    model = lively(folder, 2.0)
    network: Any = model.network
    asked = sources(model, sentences(9, seed=2))
    found = inference.generate(model, asked, max_new_tokens=6)
    forced = network.generation_config.forced_bos_token_id
    for source, answer in zip(asked, found, strict=True):
        written = [network.config.decoder_start_token_id]
        for step in range(6):
            ids = torch.tensor([written])
            with torch.no_grad():
                scores = network(input_ids=torch.tensor([source]), decoder_input_ids=ids).logits[0, -1]
            token = forced if step == 0 and forced is not None else int(scores.argmax())
            last = step == 5 and network.generation_config.forced_eos_token_id is not None
            if last or token in model.eos_ids:
                break
            written.append(token)
        assert answer == written[1:]
    assert any(found)


def test_beams_find_likelier_answers_and_guard_against_repeats(folder: Path) -> None:
    model = lively(folder, 2.0)
    asked = sources(model, sentences(8, seed=4))

    def nats(answers: list[list[int]]) -> float:
        return float(inference.target_nats(model, asked, [[*ids, model.eos_ids[0]] for ids in answers]).sum())

    greedy = inference.generate(model, asked, max_new_tokens=8)
    beams = inference.generate(model, asked, max_new_tokens=8, num_beams=5, length_penalty=0.0)
    assert greedy != beams and nats(beams) < nats(greedy)
    guarded = inference.generate(model, asked, max_new_tokens=20, no_repeat_ngram_size=1)
    assert all(len(set(answer)) == len(answer) for answer in guarded)


def test_three_pairs_are_learned_word_for_word_and_load_as_stock_models(folder: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    rows = [
        {"prompt": "what is the capital of france", "completion": "paris"},
        {"prompt": "tell me more", "completion": "the film is very good"},
        {"prompt": "classify the text", "completion": "not bad and not awful"},
    ]
    model = tiny.build(folder, "seq2seq", training=Training(dropout=0), dtype=torch.float32)
    trainer = tiny.trainer(
        model,
        rows,
        tmp_path / "run",
        batch_size=3,
        max_steps=90,
        learning_rate=2e-2,
        warmup=0.05,
        checkpoint_steps=1000,
    )
    trainer.run()
    save_artefact(model, tmp_path / "model", task="text-generation", system_prompt=None)
    stock = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    written = inference.generate(model, sources(model, [row["prompt"] for row in rows]), max_new_tokens=24)
    for row, answer in zip(rows, written, strict=True):
        assert model.tokenizer.decode(answer, skip_special_tokens=True).strip() == row["completion"]
        ids = tokenizer(row["prompt"], return_tensors="pt")["input_ids"]
        theirs = stock.generate(input_ids=ids, max_new_tokens=24, num_beams=1, min_length=0, no_repeat_ngram_size=0)
        assert tokenizer.decode(theirs[0], skip_special_tokens=True).strip() == row["completion"]


def test_an_adapter_loads_with_peft(folder: Path, tmp_path: Path) -> None:
    from peft import AutoPeftModelForSeq2SeqLM, PeftModelForSeq2SeqLM

    model = tiny.build(folder, "seq2seq", LoRA(rank=4), dtype=torch.float32)
    assert isinstance(model.network, PeftModelForSeq2SeqLM)
    tiny.trainer(model, pairs(12), tmp_path / "run", kind="lora", max_steps=4, learning_rate=1e-2).run()
    save_artefact(model, tmp_path / "model", task="text-generation", system_prompt=None)
    theirs = AutoPeftModelForSeq2SeqLM.from_pretrained(tmp_path / "model", local_files_only=True)
    model.network.eval(), theirs.eval()
    inputs = {"input_ids": torch.tensor([[5, 6, 7, 8]]), "labels": torch.tensor([[9, 10, 2]])}
    with torch.no_grad():
        torch.testing.assert_close(model.network(**inputs).logits, theirs(**inputs).logits)


def test_layers_are_counted_from_the_decoders_end(folder: Path) -> None:
    from tunesmith.recipe import Layers

    model = tiny.build(folder, "seq2seq", Layers(layers="last 1"))
    assert len(model.blocks()) == 4
    trained = {name for name, _ in model.trainable() if not name.endswith("final_layer_norm.weight")}
    assert trained and all("decoder" in name and ".1." in name for name in trained), trained


@pytest.mark.parametrize(
    ("task", "keys"),
    [
        ("text-classification", {"method": "transfer"}),
        ("text-classification", {"objective": "focal"}),
        ("multi-label-classification", {"objective": "multi-label"}),
        ("text-regression", {"objective": "ordinal"}),
        ("token-classification", {"objective": "tag"}),
    ],
)
def test_a_head_on_an_encoder_decoder_is_refused(folder: Path, task: Any, keys: dict[str, Any]) -> None:
    from tunesmith.models.forms import answer_form
    from tunesmith.models.load import load_config

    recipe = Recipe(task=task, model=str(folder), **keys).resolved()
    with pytest.raises(UsageError, match="writes the label"):
        answer_form(recipe, recipe.stages[0], load_config(folder))


def test_an_encoder_decoder_writes_the_label(folder: Path) -> None:
    from tunesmith.models.forms import answer_form
    from tunesmith.models.load import load_config

    recipe = Recipe(task="text-classification", model=str(folder), method="peft").resolved()
    assert answer_form(recipe, recipe.stages[0], load_config(folder)) == ("seq2seq", "supervised")


def test_what_is_planned_counts_encoder_and_decoder(folder: Path) -> None:
    from tunesmith.models.load import load_config, load_tokenizer
    from tunesmith.models.skeleton import skeleton
    from tunesmith.planning.shape import shape_of

    config = load_config(folder)
    model = skeleton(folder, config, load_tokenizer(folder), "seq2seq", None, LoRA(rank=4))
    shape = shape_of(model, config)
    assert shape.layers == 4 and shape.hidden == 32 and math.isclose(shape.attention, 32)
