"""How far a student's distribution is from its teacher's, for whole distributions and for what was kept of them.

- forward KL: sum p (log p - log q), p the teacher (Hinton et al. 2015, arXiv 1503.02531, up to the teacher's entropy);
- reverse KL: sum q (log q - log p) (for language models: Gu et al. 2023, "MiniLLM", arXiv 2306.08543);
- generalised Jensen-Shannon: beta KL(p || m) + (1 - beta) KL(q || m) with m = beta p + (1 - beta) q
  (Agarwal et al. 2023, arXiv 2306.13649).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch

from tunesmith.objectives.cross_entropy import chunks

Kind = Literal["forward-kl", "reverse-kl", "jensen-shannon"]


def divergence(log_q: torch.Tensor, log_p: torch.Tensor, kind: Kind, beta: float = 0.5) -> torch.Tensor:
    """The divergence over the last axis, in nats.

    Args:
        log_q: Log probabilities of the student; they carry the gradient.
        log_p: Of the teacher, of the same shape; all finite, as ``log_softmax`` gives them.
        kind: Which one.
        beta: Of ``jensen-shannon``.
    """
    if kind == "forward-kl":
        return _kl(log_p, log_q)
    if kind == "reverse-kl":
        return _kl(log_q, log_p)
    log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log(1 - beta))
    return beta * _kl(log_p, log_m) + (1 - beta) * _kl(log_q, log_m)


def _kl(log_a: torch.Tensor, log_b: torch.Tensor) -> torch.Tensor:
    return (log_a.exp() * (log_a - log_b)).sum(-1)


class Target(Protocol):
    """What a teacher thinks of N places."""

    def distance(self, scores_nV: torch.Tensor, part: slice) -> torch.Tensor:
        """The divergence of the student's scores from it at some of the places, (n,) in nats; differentiable."""
        ...


@dataclass(frozen=True)
class Whole:
    """The whole distribution.

    Attributes:
        scores: The teacher's scores (n, V) at some of the places.
        kind: Of divergence.
        beta: Of ``jensen-shannon``.
        temperature: Both models' scores are divided by it.
    """

    scores: Callable[[slice], torch.Tensor]
    kind: Kind
    beta: float
    temperature: float

    def distance(self, scores_nV: torch.Tensor, part: slice) -> torch.Tensor:
        """Over all words."""
        log_q = torch.log_softmax(scores_nV / self.temperature, -1)
        log_p = torch.log_softmax(self.scores(part).to(scores_nV.dtype)[:, : scores_nV.shape[1]] / self.temperature, -1)
        return divergence(log_q, log_p, self.kind, self.beta)


@dataclass(frozen=True)
class TopK:
    """The likeliest words, and the mass of all others as if they were one more word.

    What it says is a lower bound: words within the tail are not told apart.

    Attributes:
        ids_NK: Words.
        log_p_NK: Their log probabilities at the temperature.
        kind: Of divergence.
        beta: Of ``jensen-shannon``.
        temperature: The student's scores are divided by it.
    """

    ids_NK: torch.Tensor
    log_p_NK: torch.Tensor
    kind: Kind
    beta: float
    temperature: float

    def distance(self, scores_nV: torch.Tensor, part: slice) -> torch.Tensor:
        """Over K + 1 words."""
        log_q_nV = torch.log_softmax(scores_nV / self.temperature, -1)
        log_p = _with_tail(self.log_p_NK[part].to(scores_nV.dtype))
        return divergence(_with_tail(log_q_nV.gather(1, self.ids_NK[part])), log_p, self.kind, self.beta)


@dataclass(frozen=True)
class Drawn:
    """Words drawn from the teacher (random sampling KD, Anshumann et al. 2025, arXiv 2503.16870).

    The mean of the student's nats at words drawn from p is an unbiased estimate of the cross-entropy, and so is its
    gradient. With the teacher's entropy, which was kept, it is one of the forward KL.

    Attributes:
        ids_NK: Words, each as often as it was drawn.
        entropy_N: The teacher's entropy in nats.
        temperature: The student's scores are divided by it; the words were drawn at it.
    """

    ids_NK: torch.Tensor
    entropy_N: torch.Tensor
    temperature: float

    def distance(self, scores_nV: torch.Tensor, part: slice) -> torch.Tensor:
        """The estimate of the forward KL; single ones may be negative."""
        log_q_nV = torch.log_softmax(scores_nV / self.temperature, -1)
        nats_n = -log_q_nV.gather(1, self.ids_NK[part]).mean(-1)
        return nats_n - self.entropy_N[part].to(nats_n.dtype)


def _with_tail(log_p_nK: torch.Tensor) -> torch.Tensor:
    """Log probabilities with that of all other words as a last column."""
    tiny = torch.finfo(log_p_nK.dtype).tiny
    tail_n1 = (1 - log_p_nK.exp().sum(-1, keepdim=True)).clamp(min=tiny)  # rounding may have made it negative
    return torch.cat([log_p_nK, tail_n1.log()], dim=-1)


LossOf = Callable[[torch.Tensor, slice], tuple[torch.Tensor, torch.Tensor]]
"""From the scores (n, V) of some places to their summed loss, and further sums (M,) that are only logged."""


def summed(hidden_Nd: torch.Tensor, weight_Vd: torch.Tensor, loss_of: LossOf) -> tuple[torch.Tensor, torch.Tensor]:
    """The summed loss of ``hidden @ weight.T``, whose scores exist for a chunk of places at a time.

    As in :mod:`tunesmith.objectives.cross_entropy`, but for any loss: its gradient with respect to the scores of a
    chunk is asked of autograd as soon as they are known, and multiplied back.
    """
    if not torch.is_grad_enabled():
        hidden_Nd, weight_Vd = hidden_Nd.detach(), weight_Vd.detach()
    total, sums = _ByChunks.apply(hidden_Nd, weight_Vd, loss_of)
    return total, sums


class _ByChunks(torch.autograd.Function):
    """The total is a plain sum, so both gradients are complete when the forward pass ends."""

    @staticmethod
    def forward(
        ctx: Any, hidden_Nd: torch.Tensor, weight_Vd: torch.Tensor, loss_of: LossOf
    ) -> tuple[torch.Tensor, torch.Tensor]:
        wide = torch.promote_types(hidden_Nd.dtype, torch.float32)
        grad_Nd = torch.empty_like(hidden_Nd) if ctx.needs_input_grad[0] else None
        grad_Vd = torch.zeros_like(weight_Vd, dtype=wide) if ctx.needs_input_grad[1] else None
        wanted = grad_Nd is not None or grad_Vd is not None
        total, sums = hidden_Nd.new_zeros((), dtype=wide), torch.zeros((), device=hidden_Nd.device)
        for part in chunks(len(hidden_Nd), weight_Vd.shape[0]):
            scores_nV = (hidden_Nd[part] @ weight_Vd.T).to(wide)
            with torch.set_grad_enabled(wanted):
                loss, more = loss_of(scores_nV.requires_grad_(wanted), part)
            total, sums = total + loss.detach(), sums + more.detach()
            if not wanted:
                continue
            gradient_nV = torch.autograd.grad(loss, scores_nV)[0].to(weight_Vd.dtype)
            if grad_Nd is not None:
                torch.mm(gradient_nV, weight_Vd, out=grad_Nd[part])
            if grad_Vd is not None:
                grad_Vd += gradient_nV.T @ hidden_Nd[part]
        ctx.mark_non_differentiable(sums)
        ctx.gradients = (grad_Nd, None if grad_Vd is None else grad_Vd.to(weight_Vd.dtype))
        return total, sums

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        upstream = grads[0]
        grad_Nd, grad_Vd = ctx.gradients
        return (
            None if grad_Nd is None else grad_Nd * upstream.to(grad_Nd.dtype),
            None if grad_Vd is None else grad_Vd * upstream.to(grad_Vd.dtype),
            None,
        )
