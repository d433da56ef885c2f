"""Step 4: what is minimised. One module of this folder an objective.

An objective never asks which parameters train, in which dtype, or on how many processes. It returns sums; only the
loop divides, by the weight of the whole global batch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tunesmith.objectives.base import Objective
    from tunesmith.recipe import ObjectiveName, Training

OBJECTIVES = {
    "causal-lm": "tunesmith.objectives.language:CausalLM",
    "classify": "tunesmith.objectives.classify:Classify",
    "focal": "tunesmith.objectives.classify:Focal",
    "multi-label": "tunesmith.objectives.multi_label:MultiLabel",
    "mse": "tunesmith.objectives.score:SquaredError",
    "huber": "tunesmith.objectives.score:Huber",
    "ordinal": "tunesmith.objectives.score:Ordinal",
    "contrastive": "tunesmith.objectives.contrastive:Contrastive",
    "dpo": "tunesmith.objectives.preference:Preference",
    "distill": "tunesmith.objectives.distill:distill",
    "kto": "tunesmith.objectives.kto:KTO",
    "grpo": "tunesmith.objectives.grpo:GRPO",
    "ppo": "tunesmith.objectives.ppo:PPO",
    "reward": "tunesmith.objectives.reward:Reward",
    "tag": "tunesmith.objectives.tag:Tag",
    "masked-lm": "tunesmith.objectives.language:MaskedLM",
    "supervised": "tunesmith.objectives.supervised:Supervised",
}


def make(name: ObjectiveName, settings: Training) -> Objective:
    """An objective by its name in the recipe."""
    path, _, attribute = OBJECTIVES[name].partition(":")
    objective: Objective = getattr(importlib.import_module(path), attribute)(settings)
    return objective
