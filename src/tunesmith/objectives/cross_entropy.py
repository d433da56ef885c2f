"""Cross-entropy over a large vocabulary without keeping its scores.

The scores of a vocabulary of 49,152 words are the largest tensor of a small model's training. Here they exist for one
chunk of positions at a time: the gradient of the loss with respect to them, softmax minus one-hot, is known in the
forward pass, so it is multiplied back at once and the chunk is forgotten (the idea of Liger Kernel, arXiv 2410.10989,
and cut cross-entropy, arXiv 2411.09009).
"""

from __future__ import annotations

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
        chunk = max(1, CHUNK_SCORES // weight_Vd.shape[0])
        losses_N = torch.empty(len(targets_N), dtype=wide, device=hidden_Nd.device)
        correct_N = torch.empty(len(targets_N), dtype=torch.bool, device=hidden_Nd.device)
        grad_Nd = torch.empty_like(hidden_Nd) if ctx.needs_input_grad[0] else None
        # Chunks are added up in the wide type: a sum of many bf16 terms loses the small ones.
        grad_Vd = torch.zeros_like(weight_Vd, dtype=wide) if ctx.needs_input_grad[1] else None
        for start in range(0, len(targets_N), chunk):
            part = slice(start, start + chunk)
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
