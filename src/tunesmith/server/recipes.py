"""From a job of the API to a recipe of ours: formats, hyper-parameters, and what ``auto`` means.

The client's choices are the number of epochs, the batch size and a multiplier of the learning rate; everything else is
the recipe's default, or what ``models.yaml`` sets for the base.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from tunesmith import recipe_file
from tunesmith.recipe import Recipe

TARGET_EPOCHS, MOST_EPOCHS = 3, 25
FEW_EXAMPLES, MANY_EXAMPLES = 100, 25_000
"""OpenAI's documented rule for ``n_epochs: auto``: three, more for so few examples, fewer for so many."""
METHODS = ("supervised", "dpo", "reinforcement")
GROUP = 8
"""Answers to each prompt at ``compute_multiplier: 1``: the recipe's default."""
_METHODS = {
    "supervised": ("text-generation", "instruction"),
    "dpo": ("preference", "preference"),
    "reinforcement": ("prompts", "verifiable-reward"),
}
"""Task and method of ours."""
AUTO_BETA = 0.1
"""As in the paper on DPO (arXiv 2305.18290), and what OpenAI starts from."""
KEPT_CHECKPOINTS = 3
"""As at OpenAI: those of the last three epochs can be used; of ``reinforcement`` the three that validated best."""


def auto_epochs(examples: int) -> int:
    """What OpenAI takes for ``n_epochs: auto``."""
    if examples * TARGET_EPOCHS < FEW_EXAMPLES:
        return min(MOST_EPOCHS, FEW_EXAMPLES // max(1, examples))
    if examples * TARGET_EPOCHS > MANY_EXAMPLES:
        return max(1, MANY_EXAMPLES // examples)
    return TARGET_EPOCHS


def auto_batch_size(examples: int) -> int:
    """What the loop takes for a generating model when the recipe leaves it open."""
    from tunesmith.training.defaults import BATCH_SIZE

    return max(4, min(BATCH_SIZE["generate"], examples // 20))


def resolve(asked: dict[str, Any], examples: int, validation_examples: int = 0) -> dict[str, Any]:
    """The hyper-parameters with numbers in place of ``auto``."""
    auto: dict[str, Any] = {
        "n_epochs": auto_epochs(examples),
        "batch_size": min(examples, auto_batch_size(examples)),
        "learning_rate_multiplier": 1.0,
    }
    if "beta" in asked:
        auto["beta"] = AUTO_BETA
    if "compute_multiplier" in asked:
        batch_size = auto["batch_size"] if asked["batch_size"] == "auto" else asked["batch_size"]
        auto |= {
            "compute_multiplier": 1.0,
            "eval_interval": math.ceil(examples / batch_size),  # once an epoch
            "eval_samples": max(1, min(64, validation_examples)),
        }
    return asked | {name: value for name, value in auto.items() if asked.get(name, "auto") == "auto"}


def job_recipe(
    model: str,
    more: dict[str, Any],
    *,
    method: str = "supervised",
    training: Path,
    validation: Path | None,
    seed: int,
    hyperparameters: dict[str, Any],
    grader: dict[str, Any] | None = None,
) -> Recipe:
    """The recipe of a job.

    Args:
        model: The base, as a recipe calls it.
        more: The base's ``recipe`` in ``models.yaml``; it may set anything that the client does not.
        method: One of :data:`METHODS`.
        training: Rows of ``messages``, or of ``prompt`` and ``completion``; for ``dpo`` of two outputs to one input;
            for ``reinforcement`` of ``messages`` up to the answer, and whatever the grader looks at.
        validation: The same, to validate on after each epoch.
        seed: Of the order of the rows and of dropout.
        hyperparameters: Numbers, as :func:`resolve` gives them; ``auto`` leaves the recipe's defaults.
        grader: Of ``reinforcement``.

    Raises:
        RecipeError: ``models.yaml`` asks for something impossible.
    """
    chosen = {name: value for name, value in hyperparameters.items() if value != "auto"}
    task, ours_method = _METHODS[method]
    base: dict[str, Any] = {
        "task": task,
        "method": ours_method,
        "data": {"validation": 0.0, "test": 0.0},
        "training": {
            "keep_checkpoints": KEPT_CHECKPOINTS,
            "keep_best_checkpoints": KEPT_CHECKPOINTS if method == "reinforcement" else 1,
        },
        "evaluate": {"baselines": ["base"]},
    }
    ours: dict[str, Any] = {
        "model": model,
        "data": {"train": [str(training)], "format": "jsonl"},
        "training": {"seed": seed, **_training(chosen)},
    }
    if validation is not None:
        ours["data"]["validation"] = [str(validation)]
    if grader is not None:
        ours["training"]["rewards"] = [{"kind": "grader", "grader": grader}]
    recipe = recipe_file.parse(recipe_file.merged(recipe_file.merged(base, more), ours), source="models.yaml")
    multiplier = chosen.get("learning_rate_multiplier", 1.0)
    if multiplier != 1.0:
        rate = (recipe.training.learning_rate or _default_rate(recipe)) * multiplier
        recipe = recipe.model_copy(update={"training": recipe.training.model_copy(update={"learning_rate": rate})})
    return recipe


def _training(chosen: dict[str, Any]) -> dict[str, Any]:
    """Hyper-parameters of the API as keys of a recipe's ``training``; the rate is not among them, but a multiplier."""
    training: dict[str, Any] = {}
    if "n_epochs" in chosen:
        training["epochs"] = chosen["n_epochs"]
    if "batch_size" in chosen:
        training |= {"batch_size": chosen["batch_size"], "batch_tokens": None}
    if "beta" in chosen:
        training["preference"] = {"beta": chosen["beta"]}
    if "compute_multiplier" in chosen:
        training["grpo"] = {"group": max(2, round(GROUP * chosen["compute_multiplier"]))}
    if "eval_interval" in chosen:
        training["eval_steps"] = chosen["eval_interval"]
    if "eval_samples" in chosen:
        training["rollouts"] = {"validation_prompts": chosen["eval_samples"]}
    return training


def _default_rate(recipe: Recipe) -> float:
    """The rate that the multiplier multiplies: the default of what trains."""
    from tunesmith import parameters

    kind = recipe.resolved().stages[-1].parameters
    assert kind is not None
    return parameters.learning_rate(kind.kind, "generate")
