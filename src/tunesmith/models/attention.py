"""Attention for training on a CPU: two batched products, which beat the fused kernel there.

Measured on two cores (see ``benchmarks/``): the backward pass of PyTorch's fused CPU attention is slow on the short
rows that fine-tuning sees. Query heads that share a key head are stacked into one product, so keys and values are
never copied.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tunesmith.errors import UsageError

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
    batch, heads, length, width = query.shape
    keys, total = key.shape[1], key.shape[2]
    group = heads // keys
    scaling = width**-0.5 if scaling is None else scaling
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    stacked = query.reshape(batch * keys, group * length, width)
    turned = key.reshape(batch * keys, total, width).transpose(1, 2)
    if attention_mask is not None or (causal and length > 1):
        bias = _bias(attention_mask, length, total, query)
        bias = bias.expand(batch, heads, length, total).reshape(batch * keys, group * length, total)
    else:
        bias = query.new_zeros(1, 1, 1)
    if softcap is None:
        scores = torch.baddbmm(bias, stacked, turned, alpha=scaling)  # one pass: scaled, masked and stored
    else:
        scores = torch.tanh(torch.bmm(stacked, turned) * (scaling / softcap)) * softcap + bias
    weights = torch.softmax(scores, dim=-1)
    if dropout and module.training:
        weights = nn.functional.dropout(weights, p=dropout)
    mixed = torch.bmm(weights, value.reshape(batch * keys, total, width))
    return mixed.view(batch, heads, length, width).transpose(1, 2).contiguous(), None


def _bias(attention_mask: torch.Tensor | None, length: int, total: int, like: torch.Tensor) -> torch.Tensor:
    """0 where attention is allowed and the lowest number elsewhere, broadcastable to (B, H, S, T)."""
    if attention_mask is None:
        attention_mask = torch.ones(length, total, dtype=torch.bool, device=like.device).tril(total - length)
    lowest = torch.finfo(like.dtype).min
    return torch.zeros_like(attention_mask, dtype=like.dtype).masked_fill_(~attention_mask, lowest)


def register() -> None:
    """Make the attention known to transformers under :data:`NAME`. May be called again."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(NAME, batched_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
