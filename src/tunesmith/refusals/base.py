"""What the rules share: a stage as they see it, and sets of tasks."""

from __future__ import annotations

from dataclasses import dataclass

from tunesmith.recipe import (
    HEADS,
    ObjectiveName,
    Parameters,
    Recipe,
    Stage,
    TaskName,
    Training,
    objective_of,
    task_of,
)

TAUGHT: tuple[TaskName, ...] = (
    "text-classification",
    "token-classification",
    "text-generation",
    "chat",
    "summarization",
    "language-modeling",
)
"""Tasks that a student can learn from a teacher."""
WRITTEN: tuple[TaskName, ...] = ("text-generation", "chat", "summarization")
"""Those whose answers are texts."""
ANSWERED: tuple[TaskName, ...] = ("text-generation", "chat", "prompts")
"""Tasks whose prompts a model can answer to learn from what its answers are worth."""
COMPARED: tuple[TaskName, ...] = ("preference", "feedback", "prompts")
"""Those in which an answer is better or worse than what the model would have said, and none is right."""


@dataclass(frozen=True)
class Chosen:
    """A stage with what it takes from the top of the recipe.

    Attributes:
        stage: As the recipe has it.
        number: Of the stage, from 1 on.
        of: How many there are.
        task: What it teaches.
        objective: What it minimises, if the recipe says.
        parameters: What may change, if the recipe says.
        training: Its own settings, or those for all stages.
    """

    stage: Stage
    number: int
    of: int
    task: TaskName
    objective: ObjectiveName | None
    parameters: Parameters | None
    training: Training

    @property
    def kind(self) -> str | None:
        """The kind of its parameters, if the recipe says."""
        return None if self.parameters is None else self.parameters.kind

    @property
    def usual_objective(self) -> ObjectiveName:
        """What its task calls for."""
        return HEADS.get(self.task, ("supervised",))[0]

    def at(self, key: str) -> str:
        """Path of one of its keys: its own, or that at the top of the recipe if it says nothing itself.

        Its place is ``NUMBER:NAME``, for a method may have it elsewhere than the file.
        """
        own = getattr(self.stage, key.partition(".")[0]) is not None
        return f"stages.{self.number - 1}:{self.stage.name}.{key}" if own else key


def stages_of(recipe: Recipe) -> list[Chosen]:
    """All stages of a recipe; where it names none, the one that it has."""
    return [
        Chosen(
            stage,
            number,
            max(1, len(recipe.stages)),
            task_of(recipe, stage),
            objective_of(recipe, stage),
            stage.parameters or recipe.parameters,
            stage.training or recipe.training,
        )
        for number, stage in enumerate(recipe.stages or [Stage()], 1)
    ]
