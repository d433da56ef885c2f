"""Attention for training on a CPU: two batched products, which beat the fused kernel there.

Measured on two cores (see ``benchmarks/``): the backward pass of PyTorch's fused CPU attention is slow on the short
rows that fine-tuning sees. Query heads that share a key head are stacked into one product, so keys and values are
never copied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from tunesmith.errors import UsageError
from tunesmith.models import packing
from tunesmith.models.dropout import dropout as drop

NAME = "tunesmith"


def batched_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Softmax(Q K^T * scaling + mask) V (Vaswani et al. 2017), in transformers' attention interface.

    Args:
        module: The attention layer; its ``is_causal`` decides where no mask is given.
        query: (B, H, S, h).
        key: (B, K, T, h); H is a multiple of K.
        value: (B, K, T, h).
        attention_mask: (B or 1, 1, S, T) bool, true where attention is allowed; ``None`` if all (or all earlier) is.
        scaling: Factor of the scores; default 1 / sqrt(h).
        dropout: Probability of dropping an attention weight while training.
        is_causal: Overrides the module's.
        softcap: Scores are bent to lie within plus or minus this (Gemma 2, arXiv 2408.00118).
        s_aux: Attention sinks, which are not known here.

    Returns:
        (B, S, H, h), and no weights.

    Raises:
        UsageError: The model uses attention sinks.
    """
    if s_aux is not None:
        raise UsageError("the model uses attention sinks, which this version cannot train", fix="choose another model")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    dropout = dropout if module.training else 0.0
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    rectangles = packing.active()
    if rectangles is None:
        bias = _bias(attention_mask, causal, query.shape[2], key.shape[2], query)
        return _attend(query, key, value, bias, scaling, dropout, softcap), None
    mixed = []
    for part, q, k, v in zip(rectangles, *(_rows(each, rectangles) for each in (query, key, value)), strict=True):
        mask = None if causal or part.mask is None else part.mask[:, None, None]  # padding is behind what is causal
        bias = _bias(mask, causal, part.width, part.width, query)
        mixed.append(_attend(q, k, v, bias, scaling, dropout, softcap).flatten(0, 1))
    return torch.cat(mixed)[None], None


def _rows(states_1HTh: torch.Tensor, rectangles: Sequence[packing.Rectangle]) -> list[torch.Tensor]:
    """The texts of each rectangle as rows, (B, H, S, h): split, whose gradient is put together once, not sliced."""
    parts = states_1HTh[0].split([part.rows * part.width for part in rectangles], dim=1)
    return [p.unflatten(1, (r.rows, r.width)).transpose(0, 1) for p, r in zip(parts, rectangles, strict=True)]


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bias: torch.Tensor | None,
    scaling: float,
    dropout: float,
    softcap: float | None,
) -> torch.Tensor:
    """Attention of (B, H, S, h) to (B, K, T, h) with a bias (B or 1, 1, S or 1, T) on the scores -> (B, S, H, h)."""
    batch, heads, length, width = query.shape
    keys, total = key.shape[1], key.shape[2]
    group = heads // keys
    stacked = query.reshape(batch * keys, group * length, width)
    turned = key.reshape(batch * keys, total, width).transpose(1, 2)
    spread = query.new_zeros(1, 1, 1) if bias is None else _spread(bias, batch, keys, group, length)
    if softcap is None:
        scores = torch.baddbmm(spread, stacked, turned, alpha=scaling)  # one pass: scaled, masked and stored
    else:
        scores = torch.tanh(torch.bmm(stacked, turned) * (scaling / softcap)) * softcap + spread
    weights = torch.softmax(scores, dim=-1)
    if dropout:
        weights = drop(weights, dropout)
    mixed = torch.bmm(weights, value.reshape(batch * keys, total, width))
    return mixed.view(batch, heads, length, width).transpose(1, 2).contiguous()


def _spread(bias: torch.Tensor, batch: int, keys: int, group: int, length: int) -> torch.Tensor:
    """The bias for stacked heads, (B K or 1, G S, T); nothing is copied that all heads and rows share."""
    total = bias.shape[-1]
    if bias.shape[:2] == (1, 1):
        return bias.expand(1, group, length, total).reshape(1, group * length, total)
    return bias.expand(batch, keys * group, length, total).reshape(batch * keys, group * length, total)


def _bias(mask: torch.Tensor | None, causal: bool, length: int, total: int, like: torch.Tensor) -> torch.Tensor | None:
    """0 where attention is allowed and the lowest number elsewhere, broadcastable to (B, H, S, T); ``None`` for all 0.

    Where there is no mask, a causal layer's queries are the last of the keys.
    """
    if mask is None:
        if not causal or length == 1:
            return None
        mask = torch.ones(1, 1, length, total, dtype=torch.bool, device=like.device).tril(total - length)
    lowest = torch.finfo(like.dtype).min
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill_(~mask, lowest)


def _mask(*args: Any, **keys: Any) -> torch.Tensor | None:
    """Transformers' mask, or none where rectangles stand for it."""
    from transformers.masking_utils import sdpa_mask

    return None if packing.active() is not None else sdpa_mask(*args, **keys)


def register(function: Callable[..., tuple[torch.Tensor, None]] = batched_attention) -> None:
    """Make the attention known to transformers under :data:`NAME`. May be called again.

    Args:
        function: In its place; a compiled layer calls one that is not compiled, for its shapes differ in every batch.
    """
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(NAME, function)
    AttentionMaskInterface.register(NAME, _mask)
