"""Learning to score answers from preferences between them."""

from __future__ import annotations

import dataclasses

import torch
from torch.nn import functional

from tunesmith.data.batches import SECOND_TEXT, Batch
from tunesmith.models.model import Model
from tunesmith.objectives.base import LossSum, Objective
from tunesmith.recipe import Training


class Reward(Objective):
    """-log sigmoid(r(better) - r(worse) - margin), summed over pairs.

    The model of Bradley and Terry (1952) as in InstructGPT (arXiv 2203.02155, equation 1), with the margin of Llama 2
    (arXiv 2307.09288, equation 2). Differences alone leave the level of the scores open: ``center`` times
    (r(better) + r(worse))^2 keeps it near zero (Eisenstein et al. 2023, arXiv 2312.09244).
    """

    name = "reward"

    def __init__(self, settings: Training) -> None:
        self.center, self.margin = settings.reward.center, settings.reward.margin

    def loss(self, model: Model, batch: Batch) -> LossSum:
        """Sum over B pairs; each weighs 1. Metrics: ``pair_accuracy`` (ties count half) and ``reward_gap``."""
        better_B = model.class_logits(batch)[:, 0]
        worse_B = model.class_logits(rejected(batch, model.pad_id))[:, 0]
        gap_B = better_B - worse_B
        total = -functional.logsigmoid(gap_B - self.margin * batch.extra["margin"][:, 0].to(gap_B.dtype)).sum()
        if self.center:
            total = total + self.center * (better_B + worse_B).square().sum()
        sure_B = gap_B.detach()
        right = (sure_B > 0).sum() + 0.5 * (sure_B == 0).sum()
        return LossSum(total, float(len(sure_B)), {"pair_accuracy": right, "reward_gap": sure_B.sum()})

    def score(self, metrics: dict[str, float]) -> list[float]:
        """Pairs told apart first; of two equal ones the lower loss."""
        return [metrics["pair_accuracy"], -metrics["loss"]]


def rejected(batch: Batch, pad_id: int) -> Batch:
    """The worse texts of a batch of pairs, as a batch of their own."""
    ids = batch.extra[SECOND_TEXT]
    return dataclasses.replace(
        batch,
        input_ids=torch.where(ids < 0, pad_id, ids),
        attention_mask=ids >= 0,
        tokens=int((ids >= 0).sum()),
        extra={},
    )
