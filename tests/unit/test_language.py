"""Blocks, windows and masks; and runs that learn from bare text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from conftest import make_decoder, sentences, write_jsonl
from tunesmith import pipeline, tune
from tunesmith.data.batches import collate
from tunesmith.data.documents import causal_blocks, masked_blocks, opened, windows
from tunesmith.errors import DataError, RecipeError, UsageError
from tunesmith.evaluation import general
from tunesmith.events import Notice
from tunesmith.models.load import load_model
from tunesmith.models.model import Model
from tunesmith.models.saving import save_artefact
from tunesmith.objectives.language import KEPT, MaskedLM, hide
from tunesmith.recipe import LoRA, Training
from tunesmith.recipe_file import parse
from tunesmith.training.loop import Trainer

QUIET: dict[str, Any] = {"on_event": lambda event: None, "precision": "fp32"}


@pytest.fixture(scope="module")
def filler(tiny_encoder: Path) -> Model:
    return tiny.build(tiny_encoder, "mask", dtype=torch.float32)


@pytest.mark.parametrize(("length", "context"), [(8, 1), (8, 4), (8, 7), (100, 50)])
def test_windows_predict_each_token_but_the_first_once(length: int, context: int) -> None:
    ids = list(range(37))
    asked: list[int] = []
    for tokens, weights in windows(ids, length, context):
        assert len(tokens) == len(weights) <= length and weights[0] == 0.0
        asked += [token for token, weight in zip(tokens, weights, strict=True) if weight]
    assert asked == ids[1:]


def test_a_causal_document_is_opened_ended_and_not_shortened(tiny_decoder: Path) -> None:
    tokenizer = load_model(tiny_decoder, name="tiny").tokenizer
    text = " ".join(sentences(10))
    blocks = causal_blocks(tokenizer, text + " <|im_end|>", 16)
    learned = [i for b in blocks for i, w in zip(b.input_ids, b.loss_weights or [], strict=True) if w]
    assert blocks[0].input_ids[0] == tokenizer.bos_token_id
    assert learned[-1] == tokenizer.eos_token_id
    assert learned.count(tokenizer.eos_token_id) == 1, "a special token spelled out in a text stays text"
    assert tokenizer.decode(learned[:-1]) == text + " <|im_end|>"
    assert opened(tokenizer, "film")[1:] == tokenizer("film", add_special_tokens=False)["input_ids"]


def test_masked_blocks_hold_the_whole_document(filler: Model) -> None:
    text = " ".join(sentences(20))
    blocks = masked_blocks(filler.tokenizer, text, 16)
    tokens = [i for b in blocks for i, w in zip(b.input_ids, b.loss_weights or [], strict=True) if w]
    assert tokens == filler.tokenizer(text, add_special_tokens=False)["input_ids"]
    for block in blocks:
        assert len(block.input_ids) <= 16
        assert block.input_ids[0] == filler.tokenizer.cls_token_id
        assert [word < 0 for word in block.extra["word"]] == [w == 0 for w in block.loss_weights or []]


def test_masks_are_berts(filler: Model) -> None:
    """15 % of the tokens, of which 80 % are masks, 10 % anything and 10 % themselves; never a special token."""
    random = np.random.default_rng(0)
    ids, maskable = np.arange(100, 200), np.arange(100) % 10 > 0
    masks = kept = others = 0
    for _ in range(400):
        hidden, targets = hide(ids, np.arange(100), maskable, filler.tokenizer, 0.15, random)
        places = np.flatnonzero(targets != KEPT)
        assert len(places) == round(0.15 * 90) and maskable[places].all()
        assert (targets[places] == ids[places]).all() and (hidden[targets == KEPT] == ids[targets == KEPT]).all()
        masks += int((hidden[places] == filler.tokenizer.mask_token_id).sum())
        kept += int((hidden[places] == ids[places]).sum())
        others += len(places)
    assert abs(masks / others - 0.8) < 0.03 and abs(kept / others - 0.1) < 0.03


def test_whole_words_are_hidden_whole(filler: Model) -> None:
    words = np.repeat(np.arange(40), 3)
    _, targets = hide(np.arange(120), words, np.ones(120, bool), filler.tokenizer, 0.15, np.random.default_rng(1))
    hidden = (targets != KEPT).reshape(40, 3)
    assert hidden.all(1).sum() == hidden.any(1).sum() == 6


def test_masks_follow_from_epoch_and_row_alone(filler: Model, tmp_path: Path) -> None:
    data = tiny.documents(filler, sentences(8), tmp_path)
    objective = MaskedLM(Training())

    def drawn(rows: list[int], epoch: int | None) -> list[list[int]]:
        _, targets = objective._hide(filler, collate(data, rows, filler.pad_id, 64, epoch))
        return [line.tolist() for line in targets]

    assert drawn([3, 5], 1) == [drawn([3], 1)[0], drawn([5, 0], 1)[0]]
    assert drawn([3], 0) != drawn([3], 1)
    assert drawn([3], None) == drawn([3], None)


def test_a_killed_masked_run_draws_the_same_masks_again(tiny_encoder: Path, tmp_path: Path) -> None:
    def trainer(folder: Path, steps: int) -> Trainer:
        model = tiny.build(tiny_encoder, "mask", dtype=torch.float32)
        data = tiny.documents(model, sentences(20), folder / "tokens")
        settings = Training(
            max_steps=steps, batch_size=5, learning_rate=1e-3, micro_tokens=64, checkpoint_steps=5, schedule="constant",
            warmup=0.0,
        )  # fmt: skip
        return Trainer(model, MaskedLM(settings), data, None, settings, folder)

    whole = trainer(tmp_path / "whole", 10)
    whole.run()
    trainer(tmp_path / "cut", 5).run()
    again = trainer(tmp_path / "cut", 10)
    again.run()
    for (name, one), (_, other) in zip(whole.model.trainable(), again.model.trainable(), strict=True):
        assert torch.equal(one, other), name


def test_a_filler_is_saved_as_stock_model_and_sentence_encoder(filler: Model, tmp_path: Path) -> None:
    from transformers import AutoModelForMaskedLM

    save_artefact(filler, tmp_path, task="language-modeling", system_prompt=None)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["BertForMaskedLM"]
    stock = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    ids = torch.tensor([filler.tokenizer("the film was [MASK]")["input_ids"]])
    filler.network.eval()
    network: Any = filler.network
    with torch.no_grad():
        torch.testing.assert_close(stock(ids).logits, network(ids).logits)
    encoder: Any = load_model(tmp_path, name="next", form="classify", labels=["a", "b"]).network
    assert encoder.pooling == "mean"
    torch.testing.assert_close(
        encoder.encoder.embeddings.word_embeddings.weight, network.bert.embeddings.word_embeddings.weight
    )


def test_an_adapter_has_no_place_for_a_new_vocabulary_head(tiny_encoder: Path) -> None:
    with pytest.raises(RecipeError, match="vocabulary head"):
        tiny.build(tiny_encoder, "mask", LoRA(rank=2))


def test_a_run_learns_a_corpus_and_says_what_was_lost(
    tiny_decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(general, "DOCUMENTS", 5)
    other = write_jsonl(tmp_path / "other.jsonl", [{"text": f"ZEBRA {n} QUX! " * 9} for n in range(12)])
    corpus = write_jsonl(tmp_path / "corpus.jsonl", [{"text": text} for text in sentences(150)])
    recipe = {
        "task": "language-modeling", "model": str(tiny_decoder), "method": "self-supervised", "precision": "fp32",
        "data": {"train": str(corpus), "packing": True}, "evaluate": {"general": str(other), "resamples": 200},
        "training": {"epochs": 8, "learning_rate": 1e-2, "batch_size": 8},
    }  # fmt: skip
    run = pipeline.run(parse(recipe), run_dir=tmp_path / "run")
    tuned, base = run.metrics["bits_per_byte"], run.baselines["base"]["bits_per_byte"]
    assert tuned.value < 0.9 * base.value and tuned.high < base.low
    assert run.metrics["perplexity"].value < run.baselines["base"]["perplexity"].value
    lost = run.summary()["general_text"]
    assert lost["documents"] == 5
    assert lost["change"]["value"] == pytest.approx(lost["after"]["value"] - lost["before"]["value"])
    assert lost["change"]["low"] < lost["change"]["value"] < lost["change"]["high"]
    assert lost["after"]["value"] > tuned.value
    report = json.loads((run.path / "report.json").read_text())
    assert report["general_text"] == lost
    assert "other text" in run.report().read_text()
    assert run.predict(["the film was great"])[0].answer.endswith("bits per byte")


def test_an_encoder_learns_a_corpus(tiny_encoder: Path, tmp_path: Path) -> None:
    pairs = (("france", "paris"), ("spain", "madrid"), ("italy", "rome"))
    texts = [f"the capital of {pairs[n % 3][0]} is {pairs[n % 3][1]} {n}" for n in range(150)]
    corpus = write_jsonl(tmp_path / "corpus.jsonl", [{"text": text} for text in texts])
    notices = tiny.Events()
    run = tune(
        str(corpus), task="language-modeling", model=str(tiny_encoder), method="self-supervised",
        run_dir=tmp_path / "run", training={"epochs": 6, "learning_rate": 1e-2, "batch_size": 8, "whole_words": True},
        evaluate={"general": None, "resamples": 200}, precision="fp32", on_event=notices,
    )  # fmt: skip
    assert run.metrics["masked_loss"].value < run.baselines["majority"]["masked_loss"].value
    assert "bits_per_byte" not in run.metrics
    assert any("no head that predicts words" in notice.message for notice in notices.of(Notice))


def test_an_objective_that_the_model_cannot_follow_is_refused(tiny_decoder: Path, tmp_path: Path) -> None:
    corpus = write_jsonl(tmp_path / "corpus.jsonl", [{"text": text} for text in sentences(60)])
    with pytest.raises(UsageError, match="decoder"):
        tune(
            str(corpus), task="language-modeling", model=str(tiny_decoder), method="self-supervised",
            objective="masked-lm", run_dir=tmp_path / "run", **QUIET,
        )  # fmt: skip


def test_a_language_objective_wants_bare_text() -> None:
    with pytest.raises(RecipeError, match="language-modeling"):
        parse({"task": "chat", "model": "m", "objective": "causal-lm"})
    with pytest.raises(RecipeError, match="language-modeling"):
        parse({"task": "language-modeling", "model": "m", "objective": "supervised"})


def test_an_empty_corpus_is_an_error_with_its_place(tmp_path: Path) -> None:
    decoder = tmp_path / "decoder"
    decoder.mkdir()
    make_decoder(decoder)
    empty = tmp_path / "empty.md"
    empty.write_text("\n\n")
    with pytest.raises(DataError, match="no usable row") as error:
        tune(
            str(empty),
            task="language-modeling",
            model=str(decoder),
            method="self-supervised",
            run_dir=tmp_path / "run",
            **QUIET,
        )
    assert error.value.where == str(empty)
    assert "data.train" in str(error.value.fix)
