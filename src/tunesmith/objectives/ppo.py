"""Proximal policy optimisation for language models.

Many details are those of Huang et al. 2024, "The N+ Implementation Details of RLHF with PPO" (arXiv 2403.17031): the
value head's first weights, the penalty for answers without an end, whitening, the clipped value loss.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from tunesmith.arrays import FloatArray
from tunesmith.data.batches import Batch, TokenFile, collate, micro_batches
from tunesmith.events import Listener
from tunesmith.models.inference import TOKENS_A_PASS
from tunesmith.models.model import Model, decoder_of
from tunesmith.objectives.base import Experience, LossSum
from tunesmith.objectives.cross_entropy import linear_token_nats, scored_token_nats
from tunesmith.objectives.policy import Policy, described, minibatches
from tunesmith.objectives.returns import (
    advantages_and_returns,
    clipped_policy_loss,
    explained_variance,
    kl_estimate,
    whiten,
)
from tunesmith.objectives.rollouts import Sample, aligned
from tunesmith.recipe import Training

VALUE_HEAD = "value_head"
VALUE_TRUNK = "value_trunk"


class PPO(Policy):
    """The policy learns from its own answers, with a value head as the judge of single tokens.

    The head stands on the policy's own trunk, or on one that begins as a copy of it and learns nothing but values.

    A token's reward is minus the price of its divergence from the reference; the last one also gets the score of the
    answer (Ziegler et al. 2019, arXiv 1909.08593, equation 2).
    """

    name = "ppo"

    def __init__(self, settings: Training) -> None:
        super().__init__(settings)
        self.own = settings.ppo
        self.price = self.own.kl

    def start(self, model: Model, sets: list[TokenFile], folder: Path, tell: Listener) -> None:
        """Put a value head on the model, with its own trunk if it shall have one; both train beside what trains."""
        super().start(model, sets, folder, tell)  # first: the reference has no use for values
        if self.own.value_trunk == "separate":
            model.network.add_module(VALUE_TRUNK, _trunk_like(model))
        width = int(cast(Any, model.transformer()).config.hidden_size)
        head = nn.Linear(width, 1).to(model.device)
        torch.manual_seed(self.settings.seed)
        nn.init.normal_(head.weight, std=1 / (width + 1) ** 0.5)  # arXiv 2403.17031
        nn.init.zeros_(head.bias)
        model.network.add_module(VALUE_HEAD, head)

    def finish(self, model: Model) -> None:
        """Take away what values need: nobody who uses the model needs it."""
        super().finish(model)
        for name in {VALUE_HEAD, VALUE_TRUNK} & dict(model.network.named_children()).keys():
            delattr(model.network, name)

    # --- what a step learns from ---------------------------------------------------------------------------------

    def experience(self, model: Model, data: TokenFile, rows: np.ndarray, step: int) -> Experience:
        """One answer to each prompt of the batch, with advantages and returns of its tokens."""
        samples = self.write(model, data, rows, 1, f"{step}")
        scores = self.scored(samples)
        metrics = described(samples, scores)
        worth = self._worth(samples, scores)
        examples = self.examples(samples)
        old, values, entropies = self._think(model, examples)
        reference = self.of_reference(model, examples)
        log_ratios = [a - b for a, b in zip(old, reference, strict=True)]
        rewards = [self._token_rewards(r, score) for r, score in zip(log_ratios, worth, strict=True)]
        if self.own.whiten_rewards:
            rewards = _split(whiten(np.concatenate(rewards), shift=False), rewards)
        pairs = [
            advantages_and_returns(r, v, gamma=self.own.gamma, lam=self.own.lam)
            for r, v in zip(rewards, values, strict=True)
        ]
        advantages, returns = [a for a, _ in pairs], [r for _, r in pairs]
        metrics |= {
            "kl": float(np.mean([ratio.sum() for ratio in log_ratios])),
            "kl_price": self.price,
            "reward_with_kl": float(np.mean([r.sum() for r in rewards])),
            "entropy": float(np.concatenate(entropies).mean()),
            "explained_variance": explained_variance(np.concatenate(values), np.concatenate(returns)),
        }
        if self.own.whiten_advantages:
            advantages = _split(whiten(np.concatenate(advantages)), advantages)
        self.watch(samples, scores, metrics)
        self._adapt(metrics["kl"], len(samples))
        columns = [
            {"old": o.tolist(), "value": v.tolist(), "advantage": a.tolist(), "return": r.tolist()}
            for o, v, a, r in zip(old, values, advantages, returns, strict=True)
        ]
        examples = self.examples(samples, columns)
        seed = [self.settings.seed, step]
        parts = minibatches(len(samples), epochs=self.own.epochs, parts=self.own.minibatches, seed=seed)
        return Experience(examples, parts, metrics)

    def _worth(self, samples: Sequence[Sample], scores: FloatArray) -> FloatArray:
        """Scores as they are learned from: cut, and less for answers that the limit cut off (arXiv 2403.17031)."""
        if self.own.reward_clip is not None:
            scores = scores.clip(-self.own.reward_clip, self.own.reward_clip)
        missing = np.asarray([not sample.finished for sample in samples])
        return np.asarray(scores - self.own.missing_eos_penalty * missing)

    def _token_rewards(self, log_ratio_T: FloatArray, score: float) -> FloatArray:
        kl_T = kl_estimate(torch.from_numpy(log_ratio_T), self.own.kl_estimator).numpy()
        rewards_T = -self.price * kl_T
        rewards_T[-1] += score
        return np.asarray(rewards_T)

    def _think(self, model: Model, data: TokenFile) -> tuple[list[FloatArray], list[FloatArray], list[FloatArray]]:
        """Log likelihood, value and entropy at each token of each answer."""
        found: list[list[FloatArray]] = [[np.zeros(0)] * len(data) for _ in range(3)]
        model.network.eval()
        with torch.no_grad():
            for rows in micro_batches(data.lengths, np.arange(len(data)), TOKENS_A_PASS):
                batch = collate(data, rows.tolist(), model.pad_id).to(model.device)
                log_p_N, values_N, entropy_N, rows_N, _ = self._look(model, batch)
                owners = rows_N.cpu().numpy()
                for kind, numbers in enumerate((log_p_N, values_N, entropy_N)):
                    flat = numbers.double().cpu().numpy()
                    for place, row in enumerate(rows.tolist()):
                        found[kind][row] = flat[owners == place]
        return found[0], found[1], found[2]

    def _look(
        self, model: Model, batch: Batch
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Log likelihood, value and entropy of the N answer tokens, all before the token is known; row and column."""
        assert batch.loss_weights is not None
        rows_N, before_N = batch.loss_weights[:, 1:].nonzero(as_tuple=True)
        hidden_Nd = model.hidden_states(batch)[rows_N, before_N]
        targets_N = batch.input_ids[rows_N, before_N + 1]
        temperature = self.settings.rollouts.temperature
        if model.scores_are_plain():
            weight_Vd = model.vocabulary_weight()
            nats = linear_token_nats(hidden_Nd, weight_Vd, targets_N, temperature)
        else:
            nats = scored_token_nats(model.vocabulary_scores(hidden_Nd), targets_N, temperature)
        head = cast(nn.Linear, model.network.get_submodule(VALUE_HEAD))
        if self.own.value_trunk == "separate":
            hidden_Nd = model.hidden_states(batch, model.network.get_submodule(VALUE_TRUNK))[rows_N, before_N]
        values_N = head(hidden_Nd.to(head.weight.dtype)).squeeze(-1)
        return -nats.nats_N, values_N, nats.entropy_N, rows_N, before_N + 1

    def _adapt(self, kl: float, answers: int) -> None:
        """Raise the price of divergence where there is too much of it (arXiv 1909.08593, section 2.2)."""
        if self.own.kl_target is not None:
            error = float(np.clip(kl / self.own.kl_target - 1, -0.2, 0.2))
            self.price *= 1 + error * answers / self.own.kl_horizon

    # --- the loss ------------------------------------------------------------------------------------------------

    def loss(self, model: Model, batch: Batch) -> LossSum:
        """Sum over the N tokens of the answers; each weighs 1.

        Metrics: ``policy_loss``, ``value_loss`` (clipped as the policy is), ``clipped`` (share of tokens)
        and ``kl_step`` (k3 estimate of the divergence from the policy that wrote, in nats a token).
        """
        log_p_N, values_N, entropy_N, rows_N, columns_N = self._look(model, batch)

        def column(name: str) -> torch.Tensor:
            return aligned(batch.extra[name], rows_N, columns_N).to(log_p_N.dtype)

        log_ratio_N = log_p_N - column("old")
        policy_N, clipped_N = clipped_policy_loss(log_ratio_N, column("advantage"), self.own.clip, self.own.clip)
        old_values_N, returns_N = column("value"), column("return")
        values_N = values_N.to(log_p_N.dtype)
        near_N = old_values_N + (values_N - old_values_N).clamp(-self.own.value_clip, self.own.value_clip)
        value_N = 0.5 * torch.maximum((values_N - returns_N).square(), (near_N - returns_N).square())
        total_N = policy_N + self.own.value_weight * value_N - self.own.entropy_weight * entropy_N
        metrics = {
            "policy_loss": policy_N.detach().sum(),
            "value_loss": value_N.detach().sum(),
            "clipped": clipped_N.sum(),
            "kl_step": kl_estimate(-log_ratio_N.detach(), "k3").sum(),
        }
        return LossSum(total_N.sum(), float(len(log_p_N)), metrics)

    def enough(self, metrics: dict[str, float]) -> bool:
        """Whether the policy has left the one that wrote the answers too far behind."""
        return self.own.stop_at_kl is not None and metrics["kl_step"] > self.own.stop_at_kl

    def state(self) -> dict[str, float]:
        """The price of divergence, besides what all policies remember."""
        return super().state() | {"price": self.price}

    def load_state(self, state: dict[str, float]) -> None:
        """Take it back."""
        super().load_state(state)
        self.price = state["price"]


def _trunk_like(model: Model) -> nn.Module:
    """A copy of what stands below the vocabulary head, in which the frozen weights are the model's own."""
    shared = {id(weight): weight for weight in model.network.parameters() if not weight.requires_grad}
    return copy.deepcopy(decoder_of(model.transformer()), shared)


def _split(flat: FloatArray, like: Sequence[FloatArray]) -> list[FloatArray]:
    """Cut a flat array into pieces of given lengths."""
    return list(np.split(flat, np.cumsum([len(piece) for piece in like])[:-1]))
