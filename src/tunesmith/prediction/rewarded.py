"""What written answers are worth: by the reward that was learned from, and by a second judge that was not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tunesmith import rewards
from tunesmith.arrays import FloatArray
from tunesmith.data.rows import Row
from tunesmith.recipe import Recipe
from tunesmith.rewards import Reward


@dataclass(frozen=True)
class Judges:
    """What scores the answers of all systems alike.

    Attributes:
        reward: That of the last stage.
        second: ``evaluate.judge``; ``None`` without.
    """

    reward: Reward
    second: Reward | None

    def score(
        self, rows: Sequence[Row], texts: Sequence[str], tokens: Sequence[Sequence[int]]
    ) -> dict[str, FloatArray]:
        """``rewards`` (N,) and, with a second judge, ``judged`` (N,) of N answers, as fields of the outputs.

        Raises:
            RewardError: A reward misbehaves; the row is named.
        """
        answers = [rewards.answered(*one) for one in zip(rows, texts, tokens, strict=True)]
        judges = {"rewards": self.reward} | ({} if self.second is None else {"judged": self.second})
        return {name: np.asarray(judge(answers), dtype=np.float64) for name, judge in judges.items()}


def judges_of(recipe: Recipe, made: Mapping[str, Path]) -> Judges | None:
    """The judges of a run, if its last stage learned from rewards.

    Args:
        recipe: Resolved.
        made: Name of each stage -> the folder of the model that it left.
    """
    training = recipe.stages[-1].training
    if not recipe.learns_from_rewards or training is None:
        return None
    second = recipe.evaluate.judge
    reward = rewards.make(rewards.of_stages(training.rewards, made))
    return Judges(reward, None if second is None else rewards.make([second]))


def check_judges(recipe: Recipe) -> None:
    """Find out before any training that a reward cannot be had.

    Raises:
        TunesmithError: A run, a file or a grader that a reward names is not there, or cannot score.
    """
    sources = [source for stage in recipe.stages if stage.training is not None for source in stage.training.rewards]
    judge = [recipe.evaluate.judge] if recipe.evaluate.judge is not None else []
    rewards.make([source for source in [*sources, *judge] if source.stage is None])
