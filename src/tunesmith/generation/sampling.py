"""Choosing the next token of each row of a batch: temperature, nucleus, penalties, log probabilities.

Every row draws from a generator of its own, one number a token, so what a seed gives does not depend on the other rows
(up to the rounding of the forward pass, which may differ with the shape of the batch).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

NUCLEUS_TRY = 512
"""How many of the likeliest tokens are sorted first when a nucleus is wanted; the whole vocabulary only if need be."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the tokens of one answer are chosen.

    Attributes:
        max_new_tokens: Longest answer in tokens.
        temperature: Scores are divided by it; 0 takes the likeliest token (greedy).
        top_p: Only the likeliest tokens that together have this probability (Holtzman et al. 2020, arXiv 1904.09751).
        top_k: Only this many of the likeliest tokens; 0 is all.
        seed: With the same seed and model the same answer comes.
        frequency_penalty: Taken from a token's score for each time that it occurs in the answer so far.
        presence_penalty: Taken once from the score of a token that occurs in the answer so far.
        no_repeat_ngram_size: No run of this many tokens may occur twice in an answer; 0 allows all.
        logit_bias: Token -> what is added to its score.
        top_logprobs: Also say the log probability of each chosen token, and this many alternatives; ``None``: neither.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | str = 0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    no_repeat_ngram_size: int = 0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    top_logprobs: int | None = None

    def generator(self) -> random.Random:
        """The source of this answer's random numbers, the same on every machine."""
        return random.Random(str(self.seed))


class Constraint(Protocol):
    """What an answer may consist of, token by token."""

    @property
    def finished(self) -> bool:
        """Whether nothing more may come."""

    def allowed(self) -> torch.Tensor:
        """Which tokens may come next, (V',) bool; tokens beyond V' may not."""

    def accept(self, token: int) -> None:
        """Go on by a token that was allowed."""


@dataclass
class Draw:
    """A row as the choice of its next token sees it.

    Attributes:
        sampling: Its settings.
        random: Its own source of numbers.
        written: Tokens of the answer so far.
        constraint: What may come next.
    """

    sampling: Sampling
    random: random.Random
    written: Sequence[int]
    constraint: Constraint | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """A chosen token.

    Attributes:
        token: Its id.
        logprob: Natural log of its probability under the model, before temperature, penalties and constraints.
        top: The likeliest tokens with theirs, best first.
    """

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


def choose(scores_BV: torch.Tensor, draws: Sequence[Draw]) -> list[Choice]:
    """The next token of each row.

    Args:
        scores_BV: Scores of the vocabulary; changed in place.
        draws: One a row.
    """
    measured = [n for n, draw in enumerate(draws) if draw.sampling.top_logprobs is not None]
    log_p = torch.log_softmax(scores_BV[measured].float(), dim=-1) if measured else None
    for n, draw in enumerate(draws):
        _adjust(scores_BV[n], draw)
    tokens = scores_BV.argmax(dim=-1).tolist()
    sampled = [n for n, draw in enumerate(draws) if draw.sampling.temperature > 0]
    if sampled:
        for n, token in zip(sampled, _sample(scores_BV[sampled], [draws[n] for n in sampled]), strict=True):
            tokens[n] = token
    choices = [Choice(token) for token in tokens]
    if log_p is not None:
        for line, n in zip(log_p, measured, strict=True):
            choices[n] = _with_logprobs(tokens[n], line, draws[n].sampling.top_logprobs or 0)
    return choices


def _adjust(scores_V: torch.Tensor, draw: Draw) -> None:
    """Penalties, biases and the constraint, in place; most rows have none."""
    sampling = draw.sampling
    if draw.written and (sampling.frequency_penalty or sampling.presence_penalty):
        seen, counts = torch.tensor(list(draw.written), device=scores_V.device).unique(return_counts=True)
        scores_V[seen] -= counts * sampling.frequency_penalty + sampling.presence_penalty
    if sampling.no_repeat_ngram_size:
        scores_V[repeating(draw.written, sampling.no_repeat_ngram_size)] = -torch.inf
    for token, bias in sampling.logit_bias.items():
        scores_V[token] += bias
    if draw.constraint is not None:
        allowed = draw.constraint.allowed().to(scores_V.device)[: len(scores_V)]
        scores_V[: len(allowed)].masked_fill_(~allowed, -torch.inf)
        scores_V[len(allowed) :] = -torch.inf


def repeating(written: Sequence[int], size: int) -> list[int]:
    """Tokens that would make the answer's last ``size`` tokens a run that it holds already (arXiv 1705.04304)."""
    start = tuple(written[len(written) - size + 1 :]) if size > 1 else ()
    places = range(len(written) - size + 1)
    return [written[n + size - 1] for n in places if tuple(written[n : n + size - 1]) == start]


def _sample(scores_NV: torch.Tensor, draws: Sequence[Draw]) -> list[int]:
    """Invert the cumulative distribution at one random number a row."""
    device = scores_NV.device
    temperatures = torch.tensor([draw.sampling.temperature for draw in draws], device=device)
    # The best score becomes 0 before the division, so that a tiny temperature cannot overflow.
    shifted = scores_NV.float() - scores_NV.float().amax(dim=-1, keepdim=True)
    p_NV = torch.softmax(shifted / temperatures[:, None], dim=-1)
    points = torch.tensor([draw.random.random() for draw in draws], device=device, dtype=torch.float64)
    cut = [n for n, draw in enumerate(draws) if draw.sampling.top_p < 1 or draw.sampling.top_k]
    whole = [n for n, draw in enumerate(draws) if draw.sampling.top_p >= 1 and not draw.sampling.top_k]
    tokens = [0] * len(draws)
    if whole:
        for n, place in zip(whole, _places(p_NV[whole], points[whole]), strict=True):
            tokens[n] = place
    if cut:
        for n, token in zip(cut, _from_nucleus(p_NV[cut], points[cut], [draws[n] for n in cut]), strict=True):
            tokens[n] = token
    return tokens


def _from_nucleus(p_NV: torch.Tensor, points_N: torch.Tensor, draws: Sequence[Draw]) -> list[int]:
    vocabulary = p_NV.shape[1]
    top_p = torch.tensor([draw.sampling.top_p for draw in draws], device=p_NV.device)[:, None]
    top_k = torch.tensor([draw.sampling.top_k or vocabulary for draw in draws], device=p_NV.device)[:, None]
    kept_NK, ids_NK = p_NV.topk(min(NUCLEUS_TRY, vocabulary), dim=-1)
    enough = (kept_NK.sum(-1, keepdim=True) >= top_p) | (top_k <= kept_NK.shape[1])
    if not bool(enough.all()):
        kept_NK, ids_NK = p_NV.sort(dim=-1, descending=True)
    before = kept_NK.cumsum(-1) - kept_NK  # a token belongs to the nucleus if those before it do not fill it
    ranks = torch.arange(kept_NK.shape[1], device=p_NV.device)
    inside = ((before < top_p) & (ranks < top_k)) | (ranks == 0)
    places = _places(torch.where(inside, kept_NK, 0.0), points_N)
    return [int(ids_NK[n, place]) for n, place in enumerate(places)]


def _places(weights_NK: torch.Tensor, points_N: torch.Tensor) -> list[int]:
    """Where in each row the cumulative weight passes the point's share of the row's total; never at a weight of 0."""
    totals = weights_NK.cumsum(-1, dtype=torch.float64)
    wanted = (points_N * totals[:, -1])[:, None]
    places = torch.searchsorted(totals, wanted, right=True)[:, 0]
    last = weights_NK.shape[1] - 1 - (weights_NK.flip(-1) > 0).int().argmax(-1)
    return torch.minimum(places, last).tolist()


def _with_logprobs(token: int, log_p_V: torch.Tensor, count: int) -> Choice:
    values, ids = log_p_V.topk(min(count, len(log_p_V))) if count else (log_p_V[:0], log_p_V[:0])
    top = tuple((int(i), float(v)) for v, i in zip(values.tolist(), ids.tolist(), strict=True))
    return Choice(token, float(log_p_V[token]), top)
