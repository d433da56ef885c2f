"""The field's named methods: each is a function that fills in what a recipe left open.

A method chooses; it never overrules. Whatever the recipe says itself stands.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

from tunesmith.recipe import (
    HEADS,
    Full,
    Head,
    Layers,
    LoRA,
    NoParameters,
    ObjectiveName,
    Parameters,
    Recipe,
    Stage,
    Training,
)


@dataclass(frozen=True)
class Method:
    """One row of ``tunesmith methods``."""

    name: str
    what: str
    when: str
    objective: str
    parameters: str
    choose: Callable[[Recipe], Parameters]

    def as_dict(self) -> dict[str, str]:
        """The row without its function."""
        row = asdict(self)
        row.pop("choose")
        return row


def _all_or_adapter(recipe: Recipe) -> Parameters:
    return Full() if recipe.task in HEADS else LoRA()


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            "supervised",
            "learn the answer that each example shows",
            "you have labelled examples and no other wish: classification trains all, generation an adapter",
            "classify or supervised",
            "full or lora",
            _all_or_adapter,
        ),
        Method(
            "instruction",
            "learn to follow instructions; the loss is on the answers only",
            "your data are prompts or conversations with good answers",
            "supervised",
            "lora",
            lambda recipe: LoRA(),
        ),
        Method(
            "full",
            "train every parameter",
            "the model is small or the data are many, and memory allows it (about 16 bytes a parameter)",
            "classify or supervised",
            "full",
            lambda recipe: Full(),
        ),
        Method(
            "transfer",
            "train the head, or the last layers, on top of frozen ones",
            "data are few, or the base already knows the domain: quick, and it cannot forget much",
            "classify or supervised",
            "head or layers",
            lambda recipe: Head() if recipe.task in HEADS else Layers(),
        ),
        Method(
            "peft",
            "train added parameters on a frozen base: LoRA, or one of its variants and kin by `parameters`",
            "the base is large, or many tasks shall share it: megabytes a task, near the quality of full training",
            "classify or supervised",
            "lora, or another: see `tunesmith methods --parameters`",
            lambda recipe: LoRA(),
        ),
        Method(
            "preference",
            "learn to write the better of two answers, straight from the pairs (DPO and its kin)",
            "you have pairs of a better and a worse answer, and a model that already answers passably",
            "dpo",
            "lora",
            lambda recipe: LoRA(),
        ),
        Method(
            "reward",
            "learn to score answers from pairs: a reward model, or a judge",
            "you want to rank answers, or to train another model by reinforcement",
            "reward",
            "full or lora",
            lambda recipe: Full(),
        ),
        Method(
            "features",
            "fit a classical classifier on the frozen model's features",
            "seconds count, data are few, or a baseline is wanted: nothing of the model changes",
            "logistic regression",
            "none",
            lambda recipe: NoParameters(),
        ),
    )
}


_OBJECTIVES: dict[str, ObjectiveName] = {"preference": "dpo", "reward": "reward"}
"""What a method teaches where the task alone does not say."""


def fill_in(recipe: Recipe) -> Recipe:
    """Spell out the stages of a recipe: its own words first, then the top of the recipe, then its method."""
    chosen = recipe.parameters or METHODS[recipe.method].choose(recipe)
    stages = [
        stage.model_copy(
            update={
                "objective": stage.objective or recipe.objective or _OBJECTIVES.get(recipe.method),
                "parameters": stage.parameters or chosen,
                "training": _merged(recipe.training, stage.training),
            }
        )
        for stage in recipe.stages or [Stage()]
    ]
    last = recipe.of_stage(stages[-1])  # the model is for what it learned last
    if (last.task, last.data) != (recipe.task, recipe.data):
        views = [recipe.of_stage(stage) for stage in stages]
        stages = [
            stage.model_copy(update={"task": view.task, "data": view.data})
            for stage, view in zip(stages, views, strict=True)
        ]
    return recipe.model_copy(update={"stages": stages, "task": last.task, "data": last.data})


def _merged(shared: Training, own: Training | None) -> Training:
    """The shared settings, with those that a stage states itself on top."""
    if own is None:
        return shared
    return Training.model_validate(shared.model_dump(exclude_unset=True) | own.model_dump(exclude_unset=True))
