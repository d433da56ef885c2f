"""What an answer is worth: rules, tuned models, graders and functions of the user's own, behind one protocol."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tunesmith.errors import RewardError
from tunesmith.tasks import TASKS
from tunesmith.tasks.base import Message

if TYPE_CHECKING:
    from tunesmith.data.rows import Row
    from tunesmith.recipe import RewardSource

KINDS = {
    "exact": "tunesmith.rewards.rules:Exact",
    "number": "tunesmith.rewards.rules:Number",
    "regex": "tunesmith.rewards.rules:Regex",
    "json": "tunesmith.rewards.rules:Json",
    "tests": "tunesmith.rewards.rules:UnitTests",
    "run": "tunesmith.rewards.runs:OfRun",
    "python": "tunesmith.rewards.functions:Function",
    "http": "tunesmith.rewards.functions:Endpoint",
    "grader": "tunesmith.rewards.graders:Grader",
}


@dataclass(frozen=True)
class Answered:
    """An answer to be rewarded.

    Attributes:
        messages: The conversation up to the answer.
        text: The answer.
        reference: The right answer, if the data have one.
        row: Where the prompt came from, with all its fields.
        tokens: The answer's token ids, with the EOS that ended it.
    """

    messages: list[Message]
    text: str
    reference: str
    row: Row
    tokens: Sequence[int] = ()


class Reward(Protocol):
    """Scores answers."""

    def __call__(self, answers: Sequence[Answered]) -> Sequence[float]:
        """One number for each answer; the higher, the better."""
        ...


def answered(row: Row, text: str, tokens: Sequence[int] = ()) -> Answered:
    """An answer to the prompt of a row."""
    turns = TASKS["text-generation"].conversation(row, None, None)
    return Answered(turns[:-1], text, str(turns[-1].get("content") or ""), row, tokens)


def item_of(row: Row) -> dict[str, Any]:
    """What a reward may look at: the fields of the row, and all that came with it beside the prompt."""
    fields = dict(row.fields)
    return fields | fields.pop("item", {})


def of_stages(sources: Sequence[RewardSource], made: Mapping[str, Path]) -> list[RewardSource]:
    """The sources with the models that stages of the run made in the place of the stages' names.

    Args:
        sources: As the recipe has them.
        made: Name of each stage -> the folder of its model.
    """
    return [
        source.model_copy(update={"kind": "run", "run": str(made[source.stage])})
        if source.stage is not None
        else source
        for source in sources
    ]


def make(sources: Sequence[RewardSource]) -> Reward:
    """The weighted sum of all sources of a recipe."""
    rewards = []
    for source in sources:
        module, _, name = KINDS[source.kind].partition(":")
        rewards.append((source, getattr(importlib.import_module(module), name)(source)))

    def total(answers: Sequence[Answered]) -> list[float]:
        sums = [0.0] * len(answers)
        for source, reward in rewards:
            for number, value in enumerate(checked(reward, answers, source.kind)):
                sums[number] += source.weight * value
        return sums

    return total


def checked(reward: Reward, answers: Sequence[Answered], name: str) -> list[float]:
    """The rewards, if they are what they should be.

    Raises:
        RewardError: The reward raised, gave another number of values than there are answers, or a value that is no
            finite number; the first row is named.
    """
    try:
        values = list(reward(answers))
    except RewardError:
        raise
    except Exception as error:  # the user's own code may raise anything
        raise RewardError(
            f"the reward `{name}` raised {type(error).__name__}: {error}",
            where=str(answers[0].row.origin) if answers else None,
            fix="try it by itself on this row; a reward must score every answer, empty ones too",
        ) from error
    if len(values) != len(answers):
        raise RewardError(
            f"the reward `{name}` gave {len(values)} values for {len(answers)} answers",
            where=str(answers[0].row.origin) if answers else None,
            fix="return one number for each answer, in their order",
        )
    for answer, value in zip(answers, values, strict=True):
        if not isinstance(value, int | float) or not math.isfinite(value):  # True and False are 1 and 0
            raise RewardError(
                f"the reward `{name}` is {value!r} for the answer {answer.text[:60]!r}",
                where=str(answer.row.origin),
                fix="return a finite number for every answer",
            )
    return [float(value) for value in values]
