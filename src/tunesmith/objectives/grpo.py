"""Group-relative policy optimisation: answers to one prompt are measured against each other; no value model."""

from __future__ import annotations

import numpy as np
import torch

from tunesmith.data.batches import Batch, TokenFile
from tunesmith.models.model import Model
from tunesmith.objectives.base import Experience, LossSum
from tunesmith.objectives.policy import Policy, described, minibatches
from tunesmith.objectives.returns import clipped_policy_loss, group_advantages, kl_estimate, leave_one_out
from tunesmith.objectives.rollouts import aligned, log_likelihoods
from tunesmith.objectives.supervised import token_nats
from tunesmith.recipe import Training


class GRPO(Policy):
    """GRPO (Shao et al. 2024, arXiv 2402.03300) with the choices of Dr. GRPO, DAPO and RLOO as settings."""

    name = "grpo"

    def __init__(self, settings: Training) -> None:
        super().__init__(settings)
        self.own = settings.grpo
        self.needs_reference = self.own.kl > 0

    def experience(self, model: Model, data: TokenFile, rows: np.ndarray, step: int) -> Experience:
        """A group of answers to each prompt of the batch, with what each is worth beside the others."""
        samples = self.write(model, data, rows, self.own.group, f"{step}")
        values = self.scored(samples)
        values_PG = values.reshape(len(rows), self.own.group)
        if self.own.advantage == "group":
            advantages_PG = group_advantages(values_PG, scale=self.own.scale)
        else:
            advantages_PG = leave_one_out(values_PG)
        metrics = described(samples, values)
        spread_P = values_PG.std(axis=1) > 0
        metrics["groups_alike"] = float(1 - spread_P.mean())
        used = np.repeat(spread_P | (not self.own.dynamic_sampling), self.own.group)
        if not used.any():
            used[:] = True  # nothing to learn from: the step stays, with a gradient of zero
        chosen = [sample for sample, use in zip(samples, used, strict=True) if use]
        worth = advantages_PG.reshape(-1)[used]
        columns = [{"advantage": [float(value)] * len(s.tokens)} for s, value in zip(chosen, worth, strict=True)]
        examples = self.examples(chosen, columns)
        old = log_likelihoods(model, examples, self.settings.rollouts.temperature)
        for column, values_of_row in zip(columns, old, strict=True):
            column["old"] = values_of_row.tolist()
        if self.needs_reference:
            reference = self.of_reference(model, examples)
            for column, values_of_row in zip(columns, reference, strict=True):
                column["reference"] = values_of_row.tolist()
            metrics["kl"] = float(np.mean([(a - b).sum() for a, b in zip(old, reference, strict=True)]))
        self.watch(samples, values, metrics)
        examples = self.examples(chosen, columns)
        seed = [self.settings.seed, step]
        parts = minibatches(len(chosen), epochs=self.own.epochs, parts=self.own.minibatches, seed=seed)
        return Experience(examples, parts, metrics)

    def loss(self, model: Model, batch: Batch) -> LossSum:
        """Clipped policy loss of B answers, and ``kl`` times the divergence; what it is a mean over, ``length`` says.

        Metrics: ``clipped`` (share of the weight on tokens where the clip acted) and ``entropy``.
        """
        found, rows_N, columns_N = token_nats(model, batch, self.settings.rollouts.temperature)
        log_p_N = -found.nats_N

        def column(name: str) -> torch.Tensor:
            return aligned(batch.extra[name], rows_N, columns_N).to(log_p_N.dtype)

        loss_N, clipped_N = clipped_policy_loss(
            log_p_N - column("old"), column("advantage"), self.own.clip, self.own.clip_high
        )
        if self.needs_reference:
            loss_N = loss_N + self.own.kl * kl_estimate(log_p_N - column("reference"), self.own.kl_estimator)
        weights_N, weight = self._weights(batch, rows_N, log_p_N.dtype)
        metrics = {
            "clipped": clipped_N.to(weights_N.dtype) @ weights_N,
            "entropy": found.entropy_N.detach() @ weights_N,
        }
        return LossSum(loss_N @ weights_N, weight, metrics)

    def _weights(self, batch: Batch, rows_N: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, float]:
        """Weight of each token in the sum, and what the sum is divided by in the end."""
        ones_N = torch.ones(len(rows_N), dtype=dtype, device=rows_N.device)
        if self.own.length == "token":
            return ones_N, float(len(rows_N))
        if self.own.length == "constant":
            return ones_N / self.settings.rollouts.max_new_tokens, float(len(batch.rows))
        counts_B = torch.zeros(len(batch.rows), dtype=dtype, device=rows_N.device).index_add(0, rows_N, ones_N)
        return (1 / counts_B)[rows_N], float(len(batch.rows))
