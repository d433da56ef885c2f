"""Rollouts by vLLM: what it is asked for, and that it always writes with the weights of the moment.

vLLM needs a GPU. A stand-in with the part of its interface that is used loads what it is given, with plain transformers
and PEFT, and writes greedily with it.
"""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

import tiny
from conftest import sentences
from tunesmith import objectives, rewards
from tunesmith.data.batches import TokenFile, write_tokens
from tunesmith.data.render import ConversationRenderer, prompt_renderer
from tunesmith.errors import MissingExtraError, RecipeError
from tunesmith.events import Step
from tunesmith.generation.vllm_rollouts import VLLMRollouts
from tunesmith.models.model import Model
from tunesmith.models.plain_lora import first_weights
from tunesmith.objectives import policy
from tunesmith.objectives.rollouts import write
from tunesmith.recipe import Full, LoRA, RewardSource, Training
from tunesmith.tasks import TASKS
from tunesmith.training.loop import Trainer

TRAINING: dict[str, Any] = {
    "rewards": [RewardSource(kind="exact")],  # replaced below
    "rollouts": {"max_new_tokens": 6, "temperature": 1e-4, "validation_prompts": 4, "engine": "vllm"},
    "learning_rate": 0.05,
    "micro_tokens": 4096,
    "batch_size": 8,
    "max_steps": 3,
    "eval_steps": 3,
    "ppo": {"value_trunk": "separate", "epochs": 1},
}


class Asked(types.SimpleNamespace):
    """Named values, as vLLM's own classes for them."""


class StandIn:
    """What is used of ``vllm.LLM``."""

    made: ClassVar[list[dict[str, Any]]] = []
    adapters: ClassVar[list[Any]] = []

    def __init__(self, **options: Any) -> None:
        StandIn.made.append(options)
        self.base = options["model"]

    def generate(self, prompts: Any, sampling: Any, *, lora_request: Any, use_tqdm: bool) -> list[Any]:
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        StandIn.adapters.append(lora_request)
        network = AutoModelForCausalLM.from_pretrained(self.base, dtype=torch.float32)
        before = {name for name, _ in network.named_parameters()}
        network = PeftModel.from_pretrained(network, lora_request.lora_path)
        assert before
        answers = []
        for prompt, how in zip(prompts, sampling, strict=True):
            ids, reason = list(prompt["prompt_token_ids"]), "length"
            for _ in range(how.max_tokens):
                with torch.no_grad():
                    ids.append(int(network(torch.tensor([ids])).logits[0, -1].argmax()))
                if ids[-1] in how.stop_token_ids:
                    reason = "stop"  # vLLM leaves the stop token among the tokens
                    break
            found = Asked(token_ids=ids[len(prompt["prompt_token_ids"]) :], finish_reason=reason)
            answers.append(Asked(outputs=[found]))
        return answers


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> type[StandIn]:
    module: Any = types.ModuleType("vllm")
    module.LLM, module.SamplingParams = StandIn, Asked
    module.lora = types.ModuleType("vllm.lora")
    module.lora.request = types.ModuleType("vllm.lora.request")
    module.lora.request.LoRARequest = lambda name, number, path: Asked(
        lora_name=name, lora_int_id=number, lora_path=path
    )
    for name, part in {"vllm": module, "vllm.lora": module.lora, "vllm.lora.request": module.lora.request}.items():
        monkeypatch.setitem(sys.modules, name, part)
    StandIn.made, StandIn.adapters = [], []
    return StandIn


def prompts(model: Model, folder: Path) -> TokenFile:
    rows = tiny.rows_of([{"prompt": text, "completion": "film"} for text in sentences(16, 3)])
    renderer = ConversationRenderer(model.tokenizer, model.max_length, model.eos_ids)
    return write_tokens(rows, prompt_renderer(renderer, TASKS["text-generation"]), folder)


def disturb(model: Model) -> None:
    """Change the adapter so much that the model writes other things."""
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.trainable():
            if "lora_" in name:
                weight += 0.5 * torch.randn(weight.shape, generator=random)


@pytest.mark.parametrize("name", ["ppo", "grpo"])
def test_it_writes_with_the_weights_of_the_moment(
    name: Any, tiny_decoder: Path, tmp_path: Path, vllm: type[StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    def shares(answers: list[rewards.Answered]) -> list[float]:
        return [sum(token % 2 for token in answer.tokens) / len(answer.tokens) for answer in answers]

    monkeypatch.setattr(policy.rewards, "make", lambda sources: shares)
    training = Training(**TRAINING)
    model = tiny.build(tiny_decoder, "generate", LoRA(rank=4), training, dtype=torch.float32)
    objective, events = objectives.make(name, training), tiny.Events()
    data = prompts(model, tmp_path / "data")
    objective.start(model, [data, data], tmp_path, events)
    engine = objective.engine
    Trainer(model, objective, data, data, training, tmp_path, on_event=events).run()
    disturb(model)  # what three updates change, the likeliest tokens of a tiny model do not show
    asked = {"group": 1, "max_new_tokens": 6, "temperature": 1e-4, "seed": "s"}
    rows = list(range(8))
    theirs = [sample.tokens for sample in write(model, data, rows, engine=engine, **asked)]
    ours = [sample.tokens for sample in write(model, data, rows, **asked)]
    assert theirs == ours
    with model.network.disable_adapter():  # type: ignore[operator]
        untrained = [sample.tokens for sample in write(model, data, rows, **asked)]
    assert ours != untrained  # else old weights would have passed for the new ones
    assert len(events.of(Step)) == 3
    [options] = vllm.made
    assert options["enable_lora"] and options["max_lora_rank"] == 8 and options["dtype"] == "float32"
    numbers = [adapter.lora_int_id for adapter in vllm.adapters]
    assert numbers == sorted(set(numbers))  # vLLM keeps what it has read of a number
    assert Path(vllm.adapters[-1].lora_path).is_dir() and not Path(vllm.adapters[0].lora_path).exists()
    objective.finish(model)
    assert not Path(vllm.adapters[-1].lora_path).exists()


def test_an_adapter_that_began_with_a_part_of_the_base(tiny_decoder: Path, tmp_path: Path, vllm: type[StandIn]) -> None:
    model = tiny.build(tiny_decoder, "generate", LoRA(rank=4, init="pissa"), Training(), dtype=torch.float32)
    assert model.first_weights.keys() == first_weights(model.wrapped).keys()
    disturb(model)
    data = prompts(model, tmp_path / "data")
    asked = {"group": 1, "max_new_tokens": 6, "temperature": 1e-4, "seed": "s"}
    theirs = [s.tokens for s in write(model, data, [0, 1, 2], engine=VLLMRollouts(model), **asked)]
    assert theirs == [s.tokens for s in write(model, data, [0, 1, 2], **asked)]


def test_what_it_cannot_do_is_refused(tiny_decoder: Path, vllm: type[StandIn], monkeypatch: pytest.MonkeyPatch) -> None:
    for choice in (Full(), LoRA(rank=4, dora=True), LoRA(rank=600)):
        model = tiny.build(tiny_decoder, "generate", choice, Training(), dtype=torch.float32)
        with pytest.raises(RecipeError, match="vLLM"):
            VLLMRollouts(model)
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(MissingExtraError, match=r"engine: vllm"):
        VLLMRollouts(tiny.build(tiny_decoder, "generate", LoRA(rank=4), Training(), dtype=torch.float32))
