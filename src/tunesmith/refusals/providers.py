"""Jobs at a provider, which decides what trains, and how."""

from __future__ import annotations

from collections.abc import Iterator

from tunesmith.recipe import Recipe, TaskName, Training
from tunesmith.refusals.base import Chosen
from tunesmith.strict import Refusal

HOSTED_TASKS: tuple[TaskName, ...] = (
    "text-classification",
    "text-generation",
    "chat",
    "summarization",
    "token-classification",
    "preference",
    "prompts",
)
"""Tasks that can be put to a provider as conversations and measured by its answers."""


def of_hosted(recipe: Recipe, chosen: Chosen) -> Iterator[Refusal]:
    """What is not the provider's to read, and not ours to choose."""
    if recipe.method != "hosted":
        if recipe.hosted is not None:
            yield Refusal(
                "`hosted` is read by `method: hosted` alone", fix="use that method, or leave it out", key="hosted"
            )
        return
    if recipe.task not in HOSTED_TASKS:
        yield Refusal(
            f"a provider tunes models that write, and `{recipe.task}` is no task for that",
            fix="use `task: chat`",
            key="task",
        )
    yield from _of_what_trains(recipe, chosen)
    if recipe.quantize is not None:
        yield Refusal("`quantize` needs the weights, and a provider keeps them", fix="leave it out", key="quantize")
    graded = recipe.hosted is not None and recipe.hosted.grader is not None
    if graded != (recipe.task == "prompts"):
        yield Refusal(
            "`hosted.grader` and `task: prompts` (rows without answers) belong together",
            fix="give both or neither",
            key="hosted.grader" if graded else "task",
        )


def _of_what_trains(recipe: Recipe, chosen: Chosen) -> Iterator[Refusal]:
    usual, chosen_here = Training(), chosen.kind not in (None, "none")
    if chosen_here or chosen.objective or recipe.objective or chosen.of > 1:
        key = chosen.at("parameters") if chosen_here else chosen.at("objective") if chosen.objective else "objective"
        yield Refusal(
            "with `method: hosted` the provider chooses what trains",
            fix="leave out `parameters`, `objective` and `stages`",
            key="stages" if chosen.of > 1 else key,
        )
    asked = [name for name in Training.model_fields if getattr(chosen.training, name) != getattr(usual, name)]
    ignored = [name for name in asked if name != "seed"]
    if ignored:
        yield Refusal(
            f"`training.{ignored[0]}` is for training on this machine",
            fix="use `hosted.epochs`, `hosted.batch_size`, `hosted.learning_rate_multiplier` or `hosted.beta`",
            key=chosen.at(f"training.{ignored[0]}"),
        )
