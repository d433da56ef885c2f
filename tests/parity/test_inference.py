"""Answers computed in batches against the plain way, one at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from conftest import sentences
from tunesmith.models import inference
from tunesmith.models.load import load_model
from tunesmith.models.model import Model


@pytest.fixture(scope="module")
def decoder(tiny_decoder: Path) -> Model:
    model = load_model(tiny_decoder, name="tiny", form="generate", dtype=torch.float64)
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.mul_(3)  # a random model is nearly indifferent: errors would not show
    return model


def ids_of(model: Model, texts: list[str]) -> list[list[int]]:
    return [model.tokenizer(text)["input_ids"] for text in texts]


def log_likelihood(model: Model, prompt: list[int], answer: list[int]) -> float:
    network: Any = model.network
    with torch.no_grad():
        log_p = torch.log_softmax(network(input_ids=torch.tensor([prompt + answer])).logits[0].double(), -1)
    return sum(float(log_p[len(prompt) + n - 1, token]) for n, token in enumerate(answer))


@pytest.mark.parametrize("start", ["", "the question is about films and plots "], ids=["nothing shared", "shared"])
def test_choices_scored_together_equal_choices_scored_apart(
    start: str, decoder: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels of one to many tokens, among them one that begins with another."""
    monkeypatch.setattr(inference, "TOKENS_A_PASS", 150)  # several passes
    prompts = ids_of(decoder, [start + text for text in sentences(9, seed=3)])
    choices = [[*ids, decoder.eos_ids[0]] for ids in ids_of(decoder, ["good", "good film", "not very good", "bad"])]
    found = inference.choice_probabilities(decoder, prompts, choices)
    scores = np.array([[log_likelihood(decoder, p, c) for c in choices] for p in prompts])
    expected = np.exp(scores - scores.max(1, keepdims=True))
    expected /= expected.sum(1, keepdims=True)
    assert expected.max(1).min() > 0.3 and expected.std() > 0.1
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-9)


def test_choices_of_one_token(decoder: Model) -> None:
    prompts = ids_of(decoder, ["the film", "a plot was", "the film"])
    found = inference.choice_probabilities(decoder, prompts, [[7], [9], [11]])
    scores = np.array([[log_likelihood(decoder, p, [c]) for c in (7, 9, 11)] for p in prompts])
    expected = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert (found[0] == found[2]).all() or np.allclose(found[0], found[2])


def test_choices_under_a_sliding_window(tmp_path: Path, decoder: Model) -> None:
    """Mistral's layers see the last few tokens only; the layout must not let them see more, or less."""
    import shutil

    from transformers import AutoModelForCausalLM, Gemma3TextConfig

    config = Gemma3TextConfig(
        vocab_size=len(decoder.tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=3, head_dim=8,
        num_attention_heads=4, num_key_value_heads=1, sliding_window=5, max_position_embeddings=128,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    )  # fmt: skip
    torch.manual_seed(0)
    shutil.copytree(decoder.folder, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    model = load_model(tmp_path / "model", name="window", form="generate", dtype=torch.float64)
    prompts = ids_of(model, [f"the film {text}" for text in sentences(6, seed=5)])
    choices = [[*ids, 2] for ids in ids_of(model, ["good", "not very good film", "bad"])]
    found = inference.choice_probabilities(model, prompts, choices)
    scores = np.array([[log_likelihood(model, p, c) for c in choices] for p in prompts])
    expected = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_likelihoods_of_answers(decoder: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "TOKENS_A_PASS", 60)
    prompts, answers = ids_of(decoder, sentences(8)), ids_of(decoder, sentences(8, seed=1))
    weights = [[0.0] * len(p) + [1.0] * len(a) for p, a in zip(prompts, answers, strict=True)]
    found = inference.answer_nats(decoder, [p + a for p, a in zip(prompts, answers, strict=True)], weights)
    expected = [-log_likelihood(decoder, p, a) for p, a in zip(prompts, answers, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_greedy_answers_equal_answers_written_one_by_one(decoder: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are padded on the left: padding must not change what is written."""
    monkeypatch.setattr(inference, "TOKENS_A_PASS", 100)
    prompts = ids_of(decoder, sentences(10, seed=2))
    found = inference.generate(decoder, prompts, max_new_tokens=6)
    network: Any = decoder.network
    for prompt, answer in zip(prompts, found, strict=True):
        ids = list(prompt)
        for _ in range(6):
            with torch.no_grad():
                token = int(network(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
            if token in decoder.eos_ids:
                break
            ids.append(token)
        assert answer == ids[len(prompt) :]


def test_beams_equal_a_search_over_all_answers(decoder: Model) -> None:
    """With more beams than there are prefixes a beam search is exhaustive: it finds the likeliest answer."""
    vocabulary = len(decoder.tokenizer)
    prompts = ids_of(decoder, sentences(3, seed=6))
    found = inference.generate(decoder, prompts, max_new_tokens=2, num_beams=vocabulary, length_penalty=0.0)
    network: Any = decoder.network
    for prompt, answer in zip(prompts, found, strict=True):
        pairs = torch.tensor([[*prompt, first] for first in range(vocabulary)])
        with torch.no_grad():
            log_p = torch.log_softmax(network(input_ids=pairs).logits.double(), -1)
        scores = log_p[0, len(prompt) - 1][:, None] + log_p[:, len(prompt)]
        for end in decoder.eos_ids:  # an answer that ended has no second token
            scores[end] = -torch.inf
            scores[end, end] = log_p[0, len(prompt) - 1, end]
        first, second = divmod(int(scores.argmax()), vocabulary)
        assert answer == [token for token in (first, second) if token not in decoder.eos_ids]


@pytest.mark.parametrize("beams", [1, 3])
def test_no_run_of_tokens_occurs_twice_in_an_answer(decoder: Model, beams: int) -> None:
    prompts = ids_of(decoder, sentences(5, seed=2))

    def repeats(size: int) -> int:
        keys = {"max_new_tokens": 24, "num_beams": beams, "no_repeat_ngram_size": size}
        answers = inference.generate(decoder, prompts, **keys)
        runs = [[tuple(ids[n : n + 2]) for n in range(len(ids) - 1)] for ids in answers]
        return sum(len(found) - len(set(found)) for found in runs)

    assert repeats(0) > 0 and repeats(2) == 0


def test_draws_from_the_two_likeliest_tokens(decoder: Model) -> None:
    prompts = ids_of(decoder, sentences(1, seed=4)) * 40
    network: Any = decoder.network
    with torch.no_grad():
        likeliest = network(input_ids=torch.tensor(prompts[:1])).logits[0, -1].topk(2).indices.tolist()
    drawn = inference.generate(decoder, prompts, max_new_tokens=1, temperature=4.0, top_k=2, seed=3)
    assert {token for ids in drawn for token in ids or decoder.eos_ids[:1]} == set(likeliest)
    assert drawn == inference.generate(decoder, prompts, max_new_tokens=1, temperature=4.0, top_k=2, seed=3)


def test_class_probabilities_come_back_in_order(tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "TOKENS_A_PASS", 40)
    model = tiny.build(tiny_encoder, "classify")
    examples = ids_of(model, sentences(15))
    found = inference.class_probabilities(model, examples)
    model.network.eval()
    for ids, row in zip(examples, found, strict=True):
        with torch.no_grad():
            logits = model.network(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.bool))
        np.testing.assert_allclose(row, torch.softmax(logits.double(), -1)[0].numpy(), rtol=1e-6)


def test_embeddings_are_the_mean_over_real_tokens(tiny_encoder: Path) -> None:
    model = tiny.build(tiny_encoder, "classify")
    examples = ids_of(model, sentences(5))
    found = inference.embeddings(model, examples)
    model.network.eval()
    encoder: Any = model.network.encoder
    for ids, row in zip(examples, found, strict=True):
        with torch.no_grad():
            hidden = encoder(input_ids=torch.tensor([ids])).last_hidden_state[0]
        np.testing.assert_allclose(row, hidden.mean(0).numpy(), rtol=1e-5, atol=1e-7)


def test_a_decoders_classifier_reads_the_last_real_token(tiny_decoder: Path, tmp_path: Path) -> None:
    """The stock classifier finds it by the pad id of the config, which must be the one that rows are filled with."""
    import json
    import shutil

    folder = shutil.copytree(tiny_decoder, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"pad_token_id": 5}))  # not the tokenizer's
    model = load_model(Path(folder), name="tiny", form="classify", labels=tiny.LABELS, dtype=torch.float64)
    examples = ids_of(model, ["the film was good", "bad", "a very very long plot with actor and scene"])
    alone = np.concatenate([inference.class_probabilities(model, [ids]) for ids in examples])
    np.testing.assert_allclose(inference.class_probabilities(model, examples), alone, rtol=1e-6)


def test_three_pairs_are_learned_word_for_word_and_end(tiny_decoder: Path, tmp_path: Path) -> None:
    """EOS is trained: the model stops by itself, although pad and EOS are one token (trl#1623)."""
    from tunesmith.data.render import ConversationRenderer

    pairs = [
        {"prompt": "what is the capital of france", "completion": "paris"},
        {"prompt": "tell me more", "completion": "the film is very good"},
        {"prompt": "classify the text", "completion": "not bad and not awful"},
    ]
    model = tiny.build(tiny_decoder, "generate", dtype=torch.float32)
    trainer = tiny.trainer(model, pairs, tmp_path, batch_size=3, max_steps=80, learning_rate=1e-2, warmup=0.05)
    trainer.run()
    rendering = ConversationRenderer(model.tokenizer, model.max_length, model.eos_ids)
    prompts = [rendering.prompt([{"role": "user", "content": pair["prompt"]}]) for pair in pairs]
    written = inference.generate(model, prompts, max_new_tokens=40)
    assert [model.tokenizer.decode(ids) for ids in written] == [pair["completion"] for pair in pairs]
    assert all(len(ids) < 20 for ids in written)
