"""Stages that learn from rewards, those that make a judge for them, and the judge who only measures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tunesmith.recipe import Recipe, RewardSource
from tunesmith.refusals.base import ANSWERED, Chosen
from tunesmith.strict import Refusal

RLHF_STAGES = ("sft", "reward", "ppo")
"""Of ``method: rlhf``, in their order."""


def of_prompts(recipe: Recipe, stages: Sequence[Chosen]) -> Iterator[Refusal]:
    """Rows without answers."""
    if recipe.task != "prompts" or recipe.method in ("verifiable-reward", "rlhf", "hosted"):
        return
    if any(chosen.objective not in ("ppo", "grpo") for chosen in stages):
        yield Refusal("`task: prompts` has no answers to learn from", fix="use `method: verifiable-reward`", key="task")


def of_rewards(recipe: Recipe, stages: Sequence[Chosen]) -> Iterator[Refusal]:
    """What rewards a stage, and which stage makes it."""
    judges = {"reward"} if recipe.method == "rlhf" else set()
    for place, chosen in enumerate(stages):
        made_before = RLHF_STAGES[:2] if recipe.method == "rlhf" else [other.stage.name for other in stages[:place]]
        named = [source.stage for source in _rewards(recipe, chosen) if source.stage is not None]
        judges.update(named)
        yield from _of_rewarded(recipe, chosen, named, made_before)
    for chosen in stages:
        if chosen.stage.model is not None and chosen.stage.name not in judges:
            name = chosen.stage.name
            yield Refusal(
                f"the stage `{name}` has a `model` of its own, and no later stage is rewarded by what it makes",
                fix=f"name it there (`rewards: [{{kind: stage, stage: {name}}}]`), or leave out `model`",
                key=chosen.at("model"),
            )
    sequence = recipe.sequence
    if judges and (sequence.adapters != "chain" or sequence.replay or sequence.hold != "none"):
        yield Refusal(
            "`sequence` is about tasks that one model learns in turn",
            fix="leave it out beside a reward's stage",
            key="sequence",
        )


def _rewards(recipe: Recipe, chosen: Chosen) -> Sequence[RewardSource]:
    """A stage's own rewards, else the recipe's."""
    training = chosen.stage.training
    return (training.rewards if training is not None else []) or recipe.training.rewards


def _of_rewarded(recipe: Recipe, chosen: Chosen, named: Sequence[str], made_before: Sequence[str]) -> Iterator[Refusal]:
    """One stage: what it learns from, and the stages that its rewards name, of which some are made before it."""
    objective = chosen.objective or ("grpo" if recipe.method == "verifiable-reward" else None)
    if objective in ("ppo", "grpo") and chosen.task not in ANSWERED:
        yield Refusal(
            f"the objective `{objective}` learns from answers to prompts, which the task `{chosen.task}` has not",
            fix="write the rows as prompts, and use `task: text-generation`",
            key=chosen.at("task"),
        )
    for name in named:
        if name not in made_before and objective in ("ppo", "grpo", None):
            known = f"one of {', '.join(made_before)}" if made_before else "a run (`kind: run`)"
            yield Refusal(
                f"there is no stage {name!r} before `{chosen.stage.name}` that could be its reward",
                fix=f"use {known}",
                key=chosen.at("training.rewards"),
            )


def of_judges(recipe: Recipe, stages: Sequence[Chosen]) -> Iterator[Refusal]:
    """The second judge, of whom nothing was learned."""
    judge = recipe.evaluate.judge
    if judge is None:
        return
    if judge.kind == "stage":
        yield Refusal(
            "`evaluate.judge` must be a judge that nothing was learned from",
            fix="name another run",
            key="evaluate.judge",
        )
    if recipe.method not in ("rlhf", "verifiable-reward") and not any(c.objective in ("ppo", "grpo") for c in stages):
        yield Refusal(
            "`evaluate.judge` judges what learned from rewards",
            fix="leave it out, or use `method: rlhf`",
            key="evaluate.judge",
        )


def of_rlhf(recipe: Recipe, stages: Sequence[Chosen]) -> Iterator[Refusal]:
    """The three stages of InstructGPT, and the data of the second."""
    if recipe.method != "rlhf":
        if recipe.data.preferences:
            yield Refusal(
                "`data.preferences` is read by `method: rlhf` alone",
                fix="use it, or `task: preference`",
                key="data.preferences",
            )
        return
    first = {chosen.task for chosen in stages if chosen.stage.name == "sft"} or {recipe.task}
    if "prompts" in first:
        yield Refusal(
            "the stage `sft` learns from answers, which `prompts` has not", fix="give it `task` and `data`", key="task"
        )
    elif recipe.task not in ANSWERED:
        yield Refusal(
            f"`method: rlhf` teaches to write, and `{recipe.task}` does not",
            fix="use `task: text-generation`",
            key="task",
        )
    names = [stage.name for stage in recipe.stages]
    if len(set(names)) < len(names) or not set(names) <= set(RLHF_STAGES):
        yield Refusal(
            f"`method: rlhf` has the stages {', '.join(RLHF_STAGES)}, each once, not {', '.join(names)}",
            fix="give its stages these names, or use another method",
            key="stages",
        )
    if not recipe.data.preferences and not any(stage.name == "reward" and stage.data for stage in recipe.stages):
        yield Refusal(
            "`method: rlhf` needs pairs of answers to learn what to reward",
            fix="name them by `data: {preferences: FILE}`",
            key="data.preferences",
        )
