"""How a model will answer a task, and what teaches it to: settled before any weight is loaded."""

from __future__ import annotations

from typing import Any

from tunesmith.errors import UsageError
from tunesmith.models.load import natural_form
from tunesmith.models.model import Form
from tunesmith.recipe import ObjectiveName, Recipe, Stage
from tunesmith.tasks import TASKS


def answer_form(recipe: Recipe, stage: Stage, config: Any) -> tuple[Form, ObjectiveName]:
    """The form of the answer and the objective: from the stage, else from the kind of the model.

    Args:
        recipe: Its task and model are read.
        stage: Of the resolved recipe.
        config: The base model's configuration.

    Raises:
        UsageError: The model cannot do the task.
    """
    natural = natural_form(config)
    answer = TASKS[recipe.task].answer
    if answer == "pair":
        return _of_pairs(recipe, stage, natural)
    if answer == "spans" and stage.objective != "supervised":
        return "tag", "tag"
    if answer == "text":
        if natural != "generate":
            raise UsageError(
                f"{recipe.model} is an encoder: it cannot write text, which the task `{recipe.task}` wants",
                where="model",
                fix="choose a causal language model: `tunesmith catalog list`",
            )
        return "generate", stage.objective or "supervised"
    if stage.objective == "supervised" and natural != "generate":
        raise UsageError(
            f"{recipe.model} is an encoder: it cannot write the answer",
            where="objective",
            fix=f"use `objective: {'tag' if answer == 'spans' else 'classify'}`, or a causal language model",
        )
    needs_head = stage.parameters is not None and stage.parameters.kind in ("head", "none")
    if stage.objective == "classify" or natural == "classify" or needs_head:
        return "classify", "classify"
    return "generate", "supervised"


def _of_pairs(recipe: Recipe, stage: Stage, natural: Form) -> tuple[Form, ObjectiveName]:
    """Preferences teach a model to score answers, or one that writes to write the better ones."""
    objective = stage.objective or ("reward" if natural == "classify" else "dpo")
    if objective == "reward":
        return "classify", "reward"
    if natural != "generate":
        raise UsageError(
            f"{recipe.model} is an encoder: it cannot write, so it cannot learn by `{objective}`",
            where="objective",
            fix="use `objective: reward`, or a causal language model",
        )
    return "generate", objective
