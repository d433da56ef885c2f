"""Losses on preferences: cases worked by hand, gradients against autograd, and the rows they are computed from."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from tunesmith import objectives
from tunesmith.data.batches import TokenFile, collate, write_tokens
from tunesmith.data.render import ConversationRenderer
from tunesmith.data.renderers import row_renderer
from tunesmith.events import nobody
from tunesmith.models.model import Model
from tunesmith.objectives.cross_entropy import linear_token_nats, scored_token_nats
from tunesmith.objectives.preference import Pairs, likelihoods, pair_loss
from tunesmith.recipe import LoRA, PreferenceLoss, Training
from tunesmith.tasks import TASKS

ROWS = [
    {"prompt": "what is the capital of france", "chosen": "paris", "rejected": "madrid is very good"},
    {"prompt": "tell me more please", "chosen": "the film was great", "rejected": "no"},
    {"prompt": "a question", "chosen": "a good answer", "rejected": "bad"},
]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # log ratios: better -4 - -5 = 1, worse -8 - -6 = -2; per token 0.5 and -0.5; h = 0.1 * 3
        ({"loss": "sigmoid"}, -math.log(sigmoid(0.3))),
        ({"loss": "sigmoid", "label_smoothing": 0.2}, -0.8 * math.log(sigmoid(0.3)) - 0.2 * math.log(sigmoid(-0.3))),
        (
            {"loss": "robust", "label_smoothing": 0.2},
            (-0.8 * math.log(sigmoid(0.3)) + 0.2 * math.log(sigmoid(-0.3))) / 0.6,
        ),
        ({"loss": "hinge"}, 0.7),
        ({"loss": "sigmoid", "length_normalised": True}, -math.log(sigmoid(0.1 * 1.0))),
        ({"loss": "ipo", "beta": 0.5}, (1.0 - 1.0) ** 2),
    ],
)  # fmt: skip
def test_losses_with_a_reference_by_hand(settings: dict[str, Any], expected: float) -> None:
    one = torch.ones(1, dtype=torch.float64)
    pairs = Pairs(-4 * one, -8 * one, 2 * one, 4 * one, -5 * one, -6 * one)
    loss, better, worse = pair_loss(pairs, PreferenceLoss(**settings))
    assert float(loss) == pytest.approx(expected)
    if settings == {"loss": "sigmoid"}:
        assert (float(better), float(worse)) == pytest.approx((0.1, -0.2))


def test_losses_without_a_reference_by_hand() -> None:
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    pairs = Pairs(-4 * one, -8 * one, 2 * one, 8 * one, zero, zero)  # per token -2 and -1
    simpo = pair_loss(pairs, PreferenceLoss(loss="simpo", beta=2.0, gamma=0.5))[0]
    assert float(simpo) == pytest.approx(-math.log(sigmoid(2.0 * (-2 + 1) - 0.5)))
    odds = [math.exp(-m) / (1 - math.exp(-m)) for m in (2, 1)]
    orpo = pair_loss(pairs, PreferenceLoss(loss="orpo", beta=0.3))[0]
    assert float(orpo) == pytest.approx(-0.3 * math.log(sigmoid(math.log(odds[0] / odds[1]))))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_token_nats_and_their_gradients_are_those_of_autograd(
    temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunesmith.objectives.cross_entropy.CHUNK_SCORES", 40)  # several chunks
    torch.manual_seed(0)
    hidden = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(11, 5, dtype=torch.float64, requires_grad=True)
    targets, of_nats, of_entropy = torch.randint(0, 11, (7,)), torch.randn(7).double(), torch.randn(7).double()
    gradients = []
    for found in (
        linear_token_nats(hidden, weight, targets, temperature),
        scored_token_nats(hidden @ weight.T, targets, temperature),
    ):
        total = found.nats_N @ of_nats + found.entropy_N @ of_entropy
        gradients.append([total.detach(), *torch.autograd.grad(total, [hidden, weight])])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def pair_data(model: Model, folder: Path, rows: list[dict[str, Any]] = ROWS) -> TokenFile:
    render = row_renderer(
        model.tokenizer,
        TASKS["preference"],
        form=model.form,
        labels=None,
        max_length=model.max_length,
        eos_ids=model.eos_ids,
    )
    return write_tokens(tiny.rows_of(rows), render, folder)


def test_answers_in_one_row_are_as_likely_as_alone(tiny_decoder: Path, tmp_path: Path) -> None:
    model = tiny.build(tiny_decoder, "generate")
    model.network.eval()
    data = pair_data(model, tmp_path)
    with torch.no_grad():
        pairs = likelihoods(model, collate(data, [0, 1, 2], model.pad_id, 16))
        renderer = ConversationRenderer(model.tokenizer, model.max_length, model.eos_ids)
        for name, sums, counts in (
            ("chosen", pairs.chosen, pairs.chosen_tokens),
            ("rejected", pairs.rejected, pairs.rejected_tokens),
        ):
            for n, row in enumerate(ROWS):
                turns = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row[name]}]
                rendered = renderer(turns)
                ids = torch.tensor([rendered.input_ids])
                log_p = torch.log_softmax(model.network(input_ids=ids).logits[0, :-1], -1)
                taken = log_p.gather(1, ids[0, 1:, None])[:, 0]
                weights = torch.tensor(rendered.loss_weights or [])[1:].double()
                assert float(sums[n]) == pytest.approx(float(taken @ weights), abs=1e-9)
                assert float(counts[n]) == float(weights.sum())


def test_the_reference_stays_what_the_model_was(tiny_decoder: Path, tmp_path: Path) -> None:
    model = tiny.build(tiny_decoder, "generate", LoRA(rank=4))
    data = pair_data(model, tmp_path)
    objective = objectives.make("dpo", Training())
    objective.start(model, [data], tmp_path, nobody)
    batch = collate(data, [0, 1, 2], model.pad_id, 16)
    model.network.eval()
    first = objective.loss(model, batch)
    assert float(first.total.detach()) == pytest.approx(3 * math.log(2), abs=1e-6)  # no log ratio differs from 0 yet
    with torch.no_grad():
        for _, parameter in model.trainable():
            parameter += 0.05
    assert float(objective.loss(model, batch).total.detach()) != pytest.approx(3 * math.log(2), abs=1e-3)
    assert np.isfinite(data.extra["reference"][0]).all()


@pytest.mark.parametrize("fixture", ["tiny_encoder", "tiny_decoder"])
def test_a_reward_model_has_the_loss_of_bradley_and_terry(
    fixture: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    model = tiny.build(request.getfixturevalue(fixture), "classify", labels=None)
    model.network.eval()
    rows = [{**row, "margin": 0.25} for row in ROWS]
    data = pair_data(model, tmp_path, rows)
    batch = collate(data, [0, 1, 2], model.pad_id, 16)
    objective = objectives.make("reward", Training(reward={"center": 0.1, "margin": 1.0}))
    with torch.no_grad():
        found = objective.loss(model, batch)
        total = 0.0
        for n in range(3):
            scores = []
            for ids in (data.tokens(n), data.extra["rejected"][n]):
                inputs = {"input_ids": torch.tensor([ids.tolist()])}
                inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
                output = model.network(**inputs)
                scores.append(float(getattr(output, "logits", output)[0, 0]))
            better, worse = scores
            total += -math.log(sigmoid(better - worse - 0.25)) + 0.1 * (better + worse) ** 2
    assert float(found.total) == pytest.approx(total, rel=1e-6)
    assert found.weight == 3.0
