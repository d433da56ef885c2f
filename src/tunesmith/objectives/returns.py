"""The arithmetic of reinforcement: returns, advantages, and estimators of how far the policy has gone."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

from tunesmith.arrays import FloatArray

Estimator = Literal["k1", "k2", "k3"]


def kl_estimate(log_ratio: torch.Tensor, estimator: Estimator) -> torch.Tensor:
    """Estimate KL(policy || reference) of each sampled token from log(policy / reference).

    J. Schulman, "Approximating KL divergence" (2020), for samples of the policy: ``k1`` = log ratio (unbiased, may be
    negative), ``k2`` = (log ratio)^2 / 2 (biased, little spread), ``k3`` = exp(-log ratio) - 1 + log ratio (unbiased,
    never negative).
    """
    if estimator == "k1":
        return log_ratio
    if estimator == "k2":
        return log_ratio.square() / 2
    return torch.expm1(-log_ratio) + log_ratio


def advantages_and_returns(
    rewards_T: FloatArray, values_T: FloatArray, *, gamma: float, lam: float
) -> tuple[FloatArray, FloatArray]:
    """Generalised advantages and the returns that the values should have had, for one finished answer.

    A_t = delta_t + gamma lam A_(t+1) with delta_t = r_t + gamma V_(t+1) - V_t and V behind the end 0; the return is
    A_t + V_t (Schulman et al. 2016, arXiv 1506.02438, equations 11 and 16).
    """
    advantages_T = np.zeros(len(rewards_T))
    later, following = 0.0, 0.0
    for t in reversed(range(len(rewards_T))):
        delta = rewards_T[t] + gamma * following - values_T[t]
        later = delta + gamma * lam * later
        advantages_T[t], following = later, values_T[t]
    return advantages_T, advantages_T + values_T


def whiten(values_N: FloatArray, *, shift: bool = True) -> FloatArray:
    """Values with variance 1, and mean 0 unless ``shift`` is off (as in arXiv 2403.17031)."""
    mean = values_N.mean() if len(values_N) else 0.0
    whitened = (values_N - mean) / np.sqrt(values_N.var() + 1e-8) if len(values_N) else values_N
    return np.asarray(whitened if shift else whitened + mean)


def group_advantages(rewards_PG: FloatArray, *, scale: bool = True) -> FloatArray:
    """How much better each of G answers is than its group's mean, in standard deviations if ``scale``; (P, G).

    GRPO (Shao et al. 2024, arXiv 2402.03300, section 4.1.2). Without the division easy and hard questions weigh alike
    (Dr. GRPO, Liu et al. 2025, arXiv 2503.20783). The deviation is the sample's (over G - 1), as in TRL.
    """
    centred = rewards_PG - rewards_PG.mean(axis=1, keepdims=True)
    if not scale:
        return np.asarray(centred)
    return np.asarray(centred / (rewards_PG.std(axis=1, ddof=1, keepdims=True) + 1e-4))


def leave_one_out(rewards_PG: FloatArray) -> FloatArray:
    """How much better each answer is than the mean of the others in its group (RLOO, arXiv 2402.14740); (P, G)."""
    size = rewards_PG.shape[1]
    return np.asarray((rewards_PG - rewards_PG.mean(axis=1, keepdims=True)) * size / (size - 1))


def explained_variance(values_N: FloatArray, returns_N: FloatArray) -> float:
    """Share of the returns' variance that the values foresaw: 1 at best, 0 for a constant, below 0 for worse."""
    variance = float(returns_N.var())
    return 1 - float((returns_N - values_N).var()) / variance if variance > 0 else 0.0


def clipped_policy_loss(
    log_ratio_N: torch.Tensor, advantages_N: torch.Tensor, low: float, high: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The pessimistic loss of each token, -min(r A, clip(r, 1 - low, 1 + high) A), and where the clip acted, (N,) each.

    Schulman et al. 2017, arXiv 1707.06347, equation 7; a wider upper bound keeps rare tokens alive (DAPO, arXiv
    2503.14476, section 3.1).
    """
    ratio_N = log_ratio_N.exp()
    plain_N = -advantages_N * ratio_N
    clipped_N = -advantages_N * ratio_N.clamp(1 - low, 1 + high)
    return torch.maximum(plain_N, clipped_N), (clipped_N > plain_N).detach()
