"""The running batch against transformers' own ``generate``, one row at a time."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from conftest import sentences
from tunesmith.generation import batch as batches
from tunesmith.generation.batch import Request, RunningBatch, Token
from tunesmith.generation.sampling import Sampling
from tunesmith.models.load import load_model
from tunesmith.models.model import Model
from tunesmith.recipe import Prompt


def amplified(folder: Path) -> Model:
    model = load_model(folder, name="tiny", form="generate", dtype=torch.float64)
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.mul_(3)  # a random model is nearly indifferent: errors would not show
    return model


@pytest.fixture(scope="module")
def decoder(tiny_decoder: Path) -> Model:
    return amplified(tiny_decoder)


def variant(tiny_decoder: Path, folder: Path, config: Any) -> Model:
    """A random model of another architecture with the same tokenizer."""
    from transformers import AutoModelForCausalLM

    shutil.copytree(tiny_decoder, folder)
    (folder / "model.safetensors").unlink()
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return amplified(folder)


def prompts_of(model: Model, count: int) -> list[list[int]]:
    """Prompts of mixed lengths, half of which begin alike."""
    texts = sentences(count, seed=4)
    return [
        model.tokenizer(("what is the plot of a film " if n % 2 else "") + t)["input_ids"] for n, t in enumerate(texts)
    ]


def by_transformers(model: Model, prompt: list[int], max_new_tokens: int) -> list[int]:
    network: Any = model.network
    ids = torch.tensor([prompt])
    written = network.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new_tokens, do_sample=False,
        eos_token_id=model.eos_ids, pad_token_id=model.pad_id,
    )[0, len(prompt) :].tolist()  # fmt: skip
    return written[:-1] if written[-1] in model.eos_ids else written


def by_batch(model: Model, prompts: list[list[int]], lengths: list[int], **options: Any) -> list[list[int]]:
    """Greedy answers; the requests arrive a few at a time while others are running."""
    batch = RunningBatch(model, **options)
    answers: list[list[int]] = [[] for _ in prompts]

    def hear(number: int, token: Token) -> None:
        if token.choice is not None:
            answers[number].append(token.choice.token)

    source, arrived = random.Random(0), 0
    while batch.busy or arrived < len(prompts):
        for _ in range(source.randrange(4)):
            if arrived < len(prompts):
                sampling = Sampling(max_new_tokens=lengths[arrived])
                number = arrived
                batch.add(
                    Request(
                        prompt=prompts[number], sampling=sampling, on_token=lambda t, number=number: hear(number, t)
                    )
                )
                arrived += 1
        batch.step()
    return answers


@pytest.mark.parametrize(
    ("options", "budget"),
    [({}, 1024), ({"max_rows": 5}, 30), ({"cache_tokens": 200}, 64), ({"reuse_prompts": False, "max_rows": 3}, 7)],
    ids=["at once", "few rows, prompts in parts", "rows sent back to wait", "nothing reused"],
)
def test_greedy_answers_equal_those_of_transformers(
    options: dict[str, Any], budget: int, decoder: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "PROMPT_TOKENS", budget)
    prompts = prompts_of(decoder, 14)
    lengths = [3 + 5 * (n % 7) for n in range(14)]
    found = by_batch(decoder, prompts, lengths, **options)
    expected = [by_transformers(decoder, p, n) for p, n in zip(prompts, lengths, strict=True)]
    assert len({tuple(answer) for answer in expected}) > 7
    assert found == expected


@pytest.mark.parametrize("kind", ["gemma3", "mistral", "gpt2"])
def test_other_kinds_of_attention(kind: str, tiny_decoder: Path, tmp_path: Path, decoder: Model) -> None:
    """Windows over the last tokens in some or all layers; positions from a table that padding must not run over."""
    from transformers import Gemma3TextConfig, GPT2Config, MistralConfig

    shape: dict[str, Any] = dict(vocab_size=len(decoder.tokenizer), hidden_size=32, num_attention_heads=4)
    config: Any = {
        "gemma3": lambda: Gemma3TextConfig(
            **shape, intermediate_size=48, num_hidden_layers=3, head_dim=8, num_key_value_heads=1, sliding_window=5,
            max_position_embeddings=128, layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        ),
        "mistral": lambda: MistralConfig(
            **shape, intermediate_size=48, num_hidden_layers=2, num_key_value_heads=2, sliding_window=6,
            max_position_embeddings=128,
        ),
        "gpt2": lambda: GPT2Config(vocab_size=len(decoder.tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=48),
    }[kind]()  # fmt: skip
    model = variant(tiny_decoder, tmp_path / "model", config)
    prompts = prompts_of(model, 8)
    found = by_batch(model, prompts, [16] * 8, max_rows=4)
    assert found == [by_transformers(model, prompt, 16) for prompt in prompts]


@pytest.mark.parametrize("kind", ["prompt-tuning", "prefix-tuning"])
def test_virtual_tokens_stay_before_every_row(kind: Any, tiny_decoder: Path) -> None:
    """Whatever joins and leaves; that one row alone is right is tested against PEFT's own forward pass."""
    model = tiny.build(tiny_decoder, "generate", Prompt(kind=kind, tokens=3))
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.mul_(3)
    model.network.eval()
    prompts, lengths = prompts_of(model, 10), [4 + 4 * (n % 5) for n in range(10)]
    found = by_batch(model, prompts, lengths, max_rows=4, cache_tokens=260)
    alone = [
        by_batch(model, [prompt], [length], max_rows=1)[0] for prompt, length in zip(prompts, lengths, strict=True)
    ]
    assert found == alone and len({tuple(answer) for answer in alone}) > 4


def test_log_probabilities_are_those_of_the_model(decoder: Model) -> None:
    prompt = prompts_of(decoder, 1)[0]
    heard: list[Token] = []
    batch = RunningBatch(decoder)
    sampling = Sampling(max_new_tokens=6, temperature=1.3, seed=5, top_logprobs=3, presence_penalty=1.0)
    batch.add(Request(prompt=prompt, sampling=sampling, on_token=heard.append))
    batch.run()
    ids = list(prompt)
    network: Any = decoder.network
    choices = [token.choice for token in heard if token.choice]
    assert len(choices) == 6
    for choice in choices:
        with torch.no_grad():
            log_p = torch.log_softmax(network(input_ids=torch.tensor([ids])).logits[0, -1].double(), -1)
        assert choice.logprob == pytest.approx(float(log_p[choice.token]), abs=1e-4)
        values, tokens = log_p.topk(3)
        assert [token for token, _ in choice.top] == tokens.tolist()
        assert [p for _, p in choice.top] == pytest.approx(values.tolist(), abs=1e-4)
        ids.append(choice.token)
