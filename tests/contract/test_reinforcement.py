"""Learning from rewards, on a tiny model and a reward that is known exactly: the share of one token in the answer."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from conftest import sentences
from tunesmith import objectives, rewards
from tunesmith.data.batches import TokenFile, write_tokens
from tunesmith.data.render import ConversationRenderer, prompt_renderer
from tunesmith.events import Event, Notice, Step
from tunesmith.models.model import Model
from tunesmith.objectives import policy
from tunesmith.recipe import Full, LoRA, Parameters, RewardSource, Training
from tunesmith.tasks import TASKS
from tunesmith.training.loop import Trainer

TOKEN = 77
SETTINGS: dict[str, Any] = {
    "rewards": [RewardSource(kind="exact")],  # replaced below
    "rollouts": {"max_new_tokens": 6, "validation_prompts": 16},
    "learning_rate": 1e-2,
    "schedule": "constant",
    "warmup": 0.0,
    "batch_size": 64,
    "micro_tokens": 4096,
}
PPO = {"ppo": {"kl": 0.0, "missing_eos_penalty": 0.0, "stop_at_kl": None}}
GRPO = {"batch_size": 16}


def share(answers: list[rewards.Answered]) -> list[float]:
    return [sum(token == TOKEN for token in answer.tokens) / len(answer.tokens) for answer in answers]


def prompts(model: Model, folder: Path) -> TokenFile:
    rows = tiny.rows_of([{"prompt": text, "completion": "film"} for text in sentences(128, 3)])
    renderer = ConversationRenderer(model.tokenizer, model.max_length, model.eos_ids)
    return write_tokens(rows, prompt_renderer(renderer, TASKS["text-generation"]), folder)


def trainer(
    name: Any, folder: Path, decoder: Path, monkeypatch: pytest.MonkeyPatch, parameters: Parameters, **more: Any
) -> tuple[Trainer, tiny.Events]:
    monkeypatch.setattr(policy.rewards, "make", lambda sources: share)
    training = Training(**(SETTINGS | more))
    model = tiny.build(decoder, "generate", parameters, training, dtype=torch.float32)
    objective, events = objectives.make(name, training), tiny.Events()
    train, validation = prompts(model, folder / "train"), prompts(model, folder / "validation")
    objective.start(model, [train, validation], folder, events)
    return Trainer(model, objective, train, validation, training, folder, on_event=events), events


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", ["ppo", "grpo"])
def test_the_optimum_is_reached(
    name: str, seed: int, tiny_decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = (PPO if name == "ppo" else GRPO) | {"max_steps": 80, "eval_steps": 80, "seed": seed}
    tune, events = trainer(name, tmp_path, tiny_decoder, monkeypatch, Full(), **more)

    class Reached(Exception):
        """There is no need to wait for the last step."""

    def watch(event: Event) -> None:
        events(event)
        if isinstance(event, Step) and event.metrics["reward"] >= 0.95:
            raise Reached

    tune.on_event = watch
    with pytest.raises(Reached):
        tune.run()
    tune.objective.finish(tune.model)
    assert "value_head" not in dict(tune.model.network.named_modules())


@pytest.mark.parametrize("parameters", [Full(), LoRA(rank=4)], ids=["full", "lora"])
def test_values_of_a_trunk_of_their_own_leave_the_policy_alone(
    parameters: Parameters, tiny_decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = {}
    for trunk, weight in itertools.product(("shared", "separate"), (0.01, 10.0)):
        own = PPO["ppo"] | {"value_trunk": trunk, "value_weight": weight}
        more: dict[str, Any] = {"ppo": own, "max_steps": 1, "eval_steps": 1, "max_grad_norm": 1e9, "seed": 0}
        folder = tmp_path / f"{trunk}-{weight}"
        tune, _ = trainer("ppo", folder, tiny_decoder, monkeypatch, parameters, **more)
        frozen = {id(p) for p in tune.model.network.parameters() if not p.requires_grad}
        if trunk == "separate":
            copy = tune.model.network.get_submodule("value_trunk")
            began = {name: p.detach().clone() for name, p in copy.named_parameters() if p.requires_grad}
            assert began
            assert {id(p) for p in copy.parameters() if not p.requires_grad} <= frozen
        tune.run()
        if trunk == "separate":
            learned = dict(copy.named_parameters())
            assert any(not torch.equal(learned[name], was) for name, was in began.items())
        tune.objective.finish(tune.model)
        assert not [name for name, _ in tune.model.network.named_modules() if name.startswith("value_")]
        ends[trunk, weight] = torch.cat([p.detach().flatten() for _, p in tune.model.trainable()])
    assert torch.equal(ends["separate", 0.01], ends["separate", 10.0])
    assert not torch.equal(ends["shared", 0.01], ends["shared", 10.0])


def test_a_high_price_of_divergence_keeps_the_policy_at_home(
    tiny_decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {}
    for price in (0.0, 20.0):
        more = {"ppo": PPO["ppo"] | {"kl": price}, "max_steps": 20, "eval_steps": 20, "seed": 0}
        tune, events = trainer("ppo", tmp_path / str(price), tiny_decoder, monkeypatch, Full(), **more)
        tune.run()
        found[price] = events.of(Step)[-1].metrics
    assert found[20.0]["kl"] < found[0.0]["kl"] / 10
    assert found[20.0]["reward"] < found[0.0]["reward"] / 5


def test_the_price_follows_its_target(tiny_decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = PPO["ppo"] | {"kl": 0.1, "kl_target": 1.0, "kl_horizon": 100}
    tune, events = trainer("ppo", tmp_path, tiny_decoder, monkeypatch, Full(), ppo=own, max_steps=12, eval_steps=12)
    tune.run()
    steps = [step.metrics for step in events.of(Step)]
    for before, after in itertools.pairwise(steps):
        assert (after["kl_price"] > before["kl_price"]) == (before["kl"] > 1.0)


@pytest.mark.parametrize("parameters", [Full(), LoRA(rank=4)], ids=["full", "lora"])
@pytest.mark.parametrize("name", ["ppo", "ppo, separate trunk", "grpo"])
def test_a_resumed_run_ends_with_the_same_bits(
    name: str, parameters: Parameters, tiny_decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more: dict[str, Any] = {"max_steps": 4, "checkpoint_steps": 2, "eval_steps": 4, "keep_checkpoints": 3}
    more |= {"batch_size": 16, "ppo": {"kl": 0.1, "kl_target": 1.0, "minibatches": 2}}
    more |= {"grpo": {"kl": 0.1, "group": 4, "epochs": 2, "minibatches": 2}}
    if name == "ppo, separate trunk":
        name, more["ppo"] = "ppo", more["ppo"] | {"value_trunk": "separate"}
    whole, _ = trainer(name, tmp_path, tiny_decoder, monkeypatch, parameters, **more)
    whole.run()
    shutil.rmtree(tmp_path / "checkpoints" / "step-00000004")
    # killed while the answers of step 3 were written: what they were is not kept, but written again
    again, events = trainer(name, tmp_path, tiny_decoder, monkeypatch, parameters, **more)
    again.run()
    assert [step.step for step in events.of(Step)] == [3, 4]
    for (key, one), (_, other) in zip(whole.model.trainable(), again.model.trainable(), strict=True):
        assert torch.equal(one, other), key


def test_a_collapse_is_told_once(tiny_decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = PPO | {"max_steps": 44, "eval_steps": 44, "seed": 0}
    tune, events = trainer("ppo", tmp_path, tiny_decoder, monkeypatch, Full(), **more)
    tune.run()
    told = [notice.message for notice in events.of(Notice) if "hardly varies" in notice.message]
    assert len(told) == 1


def test_nothing_that_scores_is_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match="needs something that scores"):
        objectives.make("ppo", Training())
