"""Cross-entropy over a large vocabulary without keeping its scores.

The scores of a vocabulary of 49,152 words are the largest tensor of a small model's training. Here they exist for one
chunk of positions at a time: the gradient of the loss with respect to them, softmax minus one-hot, is known in the
forward pass, so it is multiplied back at once and the chunk is forgotten (the idea of Liger Kernel, arXiv 2410.10989,
and cut cross-entropy, arXiv 2411.09009).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

CHUNK_SCORES = 16 * 2**20
"""Scores (positions x vocabulary) that exist at one time."""


@dataclass(frozen=True)
class TokenLosses:
    """Losses of N tokens.

    Attributes:
        total: Scalar, the weighted sum of the losses; differentiable.
        losses_N: Each token's loss in nats, fp32 or wider; not differentiable.
        correct_N: Whether the token had the highest score, bool.
    """

    total: torch.Tensor
    losses_N: torch.Tensor
    correct_N: torch.Tensor


def linear_cross_entropy(
    hidden_Nd: torch.Tensor,
    weight_Vd: torch.Tensor,
    targets_N: torch.Tensor,
    weights_N: torch.Tensor,
    label_smoothing: float = 0.0,
) -> TokenLosses:
    """Cross-entropy of ``hidden @ weight.T``, chunk by chunk.

    Args:
        hidden_Nd: Hidden states at N positions.
        weight_Vd: The vocabulary head; its gradient is computed only if it trains.
        targets_N: int64 token ids.
        weights_N: Weight of each position in the total.
        label_smoothing: Mass moved from the target to all words.
    """
    if not torch.is_grad_enabled():  # the function below would see weights that train, and compute their gradient
        hidden_Nd, weight_Vd = hidden_Nd.detach(), weight_Vd.detach()
    return TokenLosses(*_LinearCrossEntropy.apply(hidden_Nd, weight_Vd, targets_N, weights_N, label_smoothing))


@dataclass(frozen=True)
class TokenNats:
    """What a model thinks of N tokens, each differentiable.

    Attributes:
        nats_N: -log p of each token, fp32 or wider.
        entropy_N: Entropy of the distribution that the token was chosen from, in nats.
    """

    nats_N: torch.Tensor
    entropy_N: torch.Tensor


def linear_token_nats(
    hidden_Nd: torch.Tensor, weight_Vd: torch.Tensor, targets_N: torch.Tensor, temperature: float = 1.0
) -> TokenNats:
    """Negative log likelihoods of single tokens from ``hidden @ weight.T / temperature``, chunk by chunk.

    For losses that are not known sums of token losses (preferences, policy ratios): the scores are computed once more
    in the backward pass, when it is known what each token counts.

    Args:
        hidden_Nd: Hidden states at N positions.
        weight_Vd: The vocabulary head; its gradient is computed only if it trains.
        targets_N: int64 token ids.
        temperature: The scores are divided by it: that of sampling, so that ratios are those of the sampled policy.
    """
    if not torch.is_grad_enabled():
        hidden_Nd, weight_Vd = hidden_Nd.detach(), weight_Vd.detach()
    return TokenNats(*_LinearTokenNats.apply(hidden_Nd, weight_Vd, targets_N, temperature))


def scored_token_nats(logits_NV: torch.Tensor, targets_N: torch.Tensor, temperature: float = 1.0) -> TokenNats:
    """The same from scores that exist already."""
    log_p_NV = torch.log_softmax(logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32)) / temperature, -1)
    entropy_N = -(log_p_NV.exp() * log_p_NV).sum(-1)
    return TokenNats(-log_p_NV.gather(1, targets_N.unsqueeze(1)).squeeze(1), entropy_N)


def token_cross_entropy(
    logits_NV: torch.Tensor, targets_N: torch.Tensor, weights_N: torch.Tensor, label_smoothing: float = 0.0
) -> TokenLosses:
    """The same from scores that exist already, for models that do more than a product (softcapping, scaling)."""
    wide = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
    losses_N = functional.cross_entropy(wide, targets_N, reduction="none", label_smoothing=label_smoothing)
    total = torch.dot(losses_N, weights_N.to(losses_N.dtype))
    return TokenLosses(total, losses_N.detach(), wide.detach().argmax(-1) == targets_N)


class _LinearCrossEntropy(torch.autograd.Function):
    """The total is a sum with known weights, so both gradients are complete when the forward pass ends."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_Nd: torch.Tensor,
        weight_Vd: torch.Tensor,
        targets_N: torch.Tensor,
        weights_N: torch.Tensor,
        label_smoothing: float,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        wide = torch.promote_types(hidden_Nd.dtype, torch.float32)
        losses_N = torch.empty(len(targets_N), dtype=wide, device=hidden_Nd.device)
        correct_N = torch.empty(len(targets_N), dtype=torch.bool, device=hidden_Nd.device)
        grad_Nd = torch.empty_like(hidden_Nd) if ctx.needs_input_grad[0] else None
        # Chunks are added up in the wide type: a sum of many bf16 terms loses the small ones.
        grad_Vd = torch.zeros_like(weight_Vd, dtype=wide) if ctx.needs_input_grad[1] else None
        for part in chunks(len(targets_N), weight_Vd.shape[0]):
            scores = (hidden_Nd[part] @ weight_Vd.T).to(wide)
            losses_N[part], correct_N[part] = _loss(scores, targets_N[part], label_smoothing)
            if grad_Nd is None and grad_Vd is None:
                continue
            gradient = _gradient(scores, targets_N[part], label_smoothing)
            gradient = gradient.mul_(weights_N[part].unsqueeze(1)).to(weight_Vd.dtype)
            if grad_Nd is not None:
                torch.mm(gradient, weight_Vd, out=grad_Nd[part])
            if grad_Vd is not None:
                grad_Vd += gradient.T @ hidden_Nd[part]
        ctx.mark_non_differentiable(losses_N, correct_N)
        ctx.gradients = (grad_Nd, None if grad_Vd is None else grad_Vd.to(weight_Vd.dtype))
        return torch.dot(losses_N, weights_N.to(wide)), losses_N, correct_N

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None, None]:
        upstream = grads[0]
        grad_Nd, grad_Vd = ctx.gradients
        return (
            None if grad_Nd is None else grad_Nd * upstream.to(grad_Nd.dtype),
            None if grad_Vd is None else grad_Vd * upstream.to(grad_Vd.dtype),
            None,
            None,
            None,
        )


class _LinearTokenNats(torch.autograd.Function):
    """Keeps hidden states only; scores exist for a chunk of positions at a time, forwards and backwards."""

    @staticmethod
    def forward(
        ctx: Any, hidden_Nd: torch.Tensor, weight_Vd: torch.Tensor, targets_N: torch.Tensor, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        wide = torch.promote_types(hidden_Nd.dtype, torch.float32)
        nats_N = torch.empty(len(targets_N), dtype=wide, device=hidden_Nd.device)
        entropy_N = torch.empty_like(nats_N)
        for part in chunks(len(targets_N), weight_Vd.shape[0]):
            log_p_NV = torch.log_softmax((hidden_Nd[part] @ weight_Vd.T).to(wide) / temperature, dim=-1)
            nats_N[part] = -log_p_NV.gather(1, targets_N[part].unsqueeze(1)).squeeze(1)
            entropy_N[part] = -(log_p_NV.exp() * log_p_NV).sum(-1)
        ctx.save_for_backward(hidden_Nd, weight_Vd, targets_N)
        ctx.temperature = temperature
        return nats_N, entropy_N

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None]:
        hidden_Nd, weight_Vd, targets_N = ctx.saved_tensors
        of_nats_N, of_entropy_N = grads
        wide = of_nats_N.dtype
        grad_Nd = torch.empty_like(hidden_Nd) if ctx.needs_input_grad[0] else None
        grad_Vd = torch.zeros_like(weight_Vd, dtype=wide) if ctx.needs_input_grad[1] else None
        for part in chunks(len(targets_N), weight_Vd.shape[0]):
            log_p_NV = torch.log_softmax((hidden_Nd[part] @ weight_Vd.T).to(wide) / ctx.temperature, dim=-1)
            p_NV = log_p_NV.exp()
            scores_NV = p_NV * of_nats_N[part].unsqueeze(1)  # d nats / d scores = p - onehot
            scores_NV.scatter_add_(1, targets_N[part].unsqueeze(1), -of_nats_N[part].unsqueeze(1))
            if bool(of_entropy_N[part].any()):  # d entropy / d scores = -p (log p + entropy)
                entropy_N1 = -(p_NV * log_p_NV).sum(-1, keepdim=True)
                scores_NV -= of_entropy_N[part].unsqueeze(1) * p_NV * (log_p_NV + entropy_N1)
            narrow_NV = (scores_NV / ctx.temperature).to(weight_Vd.dtype)
            if grad_Nd is not None:
                torch.mm(narrow_NV, weight_Vd, out=grad_Nd[part])
            if grad_Vd is not None:
                grad_Vd += narrow_NV.T @ hidden_Nd[part]
        return grad_Nd, None if grad_Vd is None else grad_Vd.to(weight_Vd.dtype), None, None


def chunks(positions: int, vocabulary: int) -> Iterator[slice]:
    """Parts of so many positions whose scores may exist at one time."""
    size = max(1, CHUNK_SCORES // vocabulary)
    return (slice(start, start + size) for start in range(0, positions, size))


def _loss(
    scores_NV: torch.Tensor, targets_N: torch.Tensor, label_smoothing: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses (N,) and whether the target is the likeliest (N,)."""
    log_norm_N = torch.logsumexp(scores_NV, dim=-1)
    target_N = scores_NV.gather(1, targets_N.unsqueeze(1)).squeeze(1)
    loss_N = log_norm_N - target_N
    if label_smoothing:
        loss_N = (1 - label_smoothing) * loss_N + label_smoothing * (log_norm_N - scores_NV.mean(-1))
    return loss_N, target_N >= scores_NV.amax(-1)


def _gradient(scores_NV: torch.Tensor, targets_N: torch.Tensor, label_smoothing: float) -> torch.Tensor:
    """Derivative of the loss by the scores: softmax minus the smoothed one-hot, (N, V)."""
    gradient_NV = torch.softmax(scores_NV, dim=-1)
    if label_smoothing:
        gradient_NV -= label_smoothing / scores_NV.shape[1]
    rows = torch.arange(len(targets_N), device=targets_N.device)
    gradient_NV[rows, targets_N] -= 1 - label_smoothing
    return gradient_NV
