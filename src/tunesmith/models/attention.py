"""Attention for training on a CPU: two batched products, which beat the fused kernel there.

Measured on two cores (see ``benchmarks/``): the backward pass of PyTorch's fused CPU attention is slow on the short
rows that fine-tuning sees. Query heads that share a key head are stacked into one product, so keys and values are
never copied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from tunesmith.errors import UsageError
from tunesmith.models import packing
from tunesmith.models.dropout import dropout as drop
from tunesmith.models.dropout import factors

NAME = "tunesmith"

FEW_SCORES = 100_000
"""So few scores of a rectangle are computed in fp32 while a model trains. A product of them in bf16 takes longer to
prepare than one in fp32 takes, a softmax 2 to 5 times as long: 9 % of an update of MiniLM-L6 on eight short texts."""


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
    how = _Packed(rectangles, causal, scaling, dropout, softcap)
    return _PackedAttention.apply(query[0], key[0], value[0], how)[None], None


@dataclass(frozen=True)
class _Packed:
    """What attention to packed texts is told besides the states."""

    rectangles: Sequence[packing.Rectangle]
    causal: bool
    scaling: float
    dropout: float
    softcap: float | None


class _PackedAttention(torch.autograd.Function):
    """:func:`_attend` for all rectangles of a long row, with its gradient written out.

    Recorded operation by operation, a rectangle takes some thirty small copies and as many nodes of the graph; here it
    takes eight copies. States are (H or K, T, h), the result is (T, H, h).
    """

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, how: _Packed) -> torch.Tensor:
        """Of each rectangle keep what the gradient needs, if any is wanted.

        Raises:
            ValueError: The rectangles do not cover the row.
        """
        tokens = sum(part.rows * part.width for part in how.rectangles)
        if not tokens == query.shape[1] == key.shape[1] == value.shape[1]:
            raise ValueError(f"rectangles of {tokens} tokens for {query.shape[1]} queries and {key.shape[1]} keys")
        keys = key.shape[0]
        mixed = value.new_empty(tokens, query.shape[0], value.shape[2])
        kept: list[torch.Tensor] = []
        for part in how.rectangles:
            dtype = _training_dtype(query, part) if any(ctx.needs_input_grad) else query.dtype
            q, k, v = (_stacked(states, part, keys, dtype) for states in (query, key, value))
            bias = _stacked_bias(_part_bias(part, how.causal, q), keys, len(query) // keys)
            scores, bent = _scores(q, k.transpose(1, 2), how.scaling, how.softcap, bias)
            weights = torch.softmax(scores, dim=-1)
            dropped = factors(weights, how.dropout) if how.dropout else None
            left = weights if dropped is None else weights * dropped
            _put(mixed.transpose(0, 1), part, torch.bmm(left, v), keys)
            if any(ctx.needs_input_grad):
                kept += [q, k, v, weights, *([] if bent is None else [bent])]
                kept += [] if dropped is None else [dropped, left]
        ctx.save_for_backward(*kept)
        ctx.how = how
        ctx.shapes = query.shape, key.shape, value.shape
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of queries, keys and values, laid out token by token."""
        how: _Packed = ctx.how
        keys = ctx.shapes[1][0]
        for_query, for_key, for_value, _ = ctx.needs_input_grad
        found = [_by_token(grad, shape) for shape in ctx.shapes]
        saved = iter(ctx.saved_tensors)  # asked for once: recomputed activations are given only once
        for part in how.rectangles:
            q, k, v, weights = (next(saved) for _ in range(4))
            bent = None if how.softcap is None else next(saved)
            dropped, left = (next(saved), next(saved)) if how.dropout else (None, weights)
            grad_mixed = _stacked(grad.transpose(0, 1), part, keys, q.dtype)
            if for_value:
                _put(found[2], part, torch.bmm(left.transpose(1, 2), grad_mixed), keys)
            if not (for_query or for_key):
                continue
            grad_weights = torch.bmm(grad_mixed, v.transpose(1, 2))
            if dropped is not None:
                grad_weights.mul_(dropped)
            grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
            if bent is not None:
                grad_scores = grad_scores * (1 - bent.square())
            if for_query:
                _put(found[0], part, _scaled(grad_scores, k, how.scaling), keys)
            if for_key:
                _put(found[1], part, _scaled(grad_scores.transpose(1, 2), q, how.scaling), keys)
        return *(states if want else None for states, want in zip(found, ctx.needs_input_grad, strict=False)), None


def _by_token(like: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Room for states (H, T, h) in the order (T, H, h)."""
    heads, total, width = shape
    return like.new_empty(total, heads, width).transpose(0, 1)


def _as_rows(states: torch.Tensor, part: packing.Rectangle, keys: int) -> torch.Tensor:
    """The texts of a rectangle out of (H, T, h): a view (K, B, G, S, h), where G heads share a key head."""
    own = states[:, part.start : part.start + part.rows * part.width]
    return own.unflatten(1, (part.rows, part.width)).unflatten(0, (keys, -1)).transpose(1, 2)


def _stacked(states: torch.Tensor, part: packing.Rectangle, keys: int, dtype: torch.dtype) -> torch.Tensor:
    """The same as (K B, G S, h), in a type of its own."""
    rows = _as_rows(states, part, keys).to(dtype, memory_format=torch.contiguous_format)
    return rows.reshape(keys * part.rows, -1, states.shape[-1])


def _training_dtype(query: torch.Tensor, part: packing.Rectangle) -> torch.dtype:
    """In which a rectangle's attention learns: that of the states (H, T, h), or fp32 where it is faster."""
    few = query.shape[0] * part.rows * part.width**2 <= FEW_SCORES
    return torch.promote_types(query.dtype, torch.float32) if few else query.dtype


def _put(states: torch.Tensor, part: packing.Rectangle, stacked: torch.Tensor, keys: int) -> None:
    """Write what :func:`_stacked` has read back to its place."""
    rows = _as_rows(states, part, keys)
    rows.copy_(stacked.view(rows.shape))


def _scaled(first: torch.Tensor, second: torch.Tensor, factor: float, bias: torch.Tensor | None = None) -> torch.Tensor:
    """A batched product times a number, plus a bias: one pass."""
    if bias is None:
        return torch.baddbmm(first.new_empty(1, 1, 1), first, second, beta=0, alpha=factor)
    return torch.baddbmm(bias, first, second, alpha=factor)


def _stacked_bias(bias: torch.Tensor | None, keys: int, group: int) -> torch.Tensor | None:
    """The bias of a rectangle, (B, 1, 1, T) or (1, 1, S, T), on stacked scores: (K B, 1, T) or (1, G S, T)."""
    if bias is None:
        return None
    batch, _, length, total = bias.shape
    if batch > 1 or length == 1:
        return bias[:, 0].expand(keys, batch, length, total).reshape(keys * batch, length, total)
    return bias[0].expand(group, length, total).reshape(1, group * length, total)


def _part_bias(part: packing.Rectangle, causal: bool, like: torch.Tensor) -> torch.Tensor | None:
    """The bias of a rectangle; padding is behind what is causal."""
    mask = None if causal or part.mask is None else part.mask[:, None, None]
    return _bias(mask, causal, part.width, part.width, like)


def _scores(
    query: torch.Tensor, turned: torch.Tensor, scaling: float, softcap: float | None, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Scores of stacked queries and turned keys with their bias, and what bends them (a tanh) if anything does."""
    if softcap is None:
        return _scaled(query, turned, scaling, bias), None
    bent = torch.tanh(torch.bmm(query, turned) * (scaling / softcap))
    return (bent * softcap if bias is None else bent * softcap + bias), bent


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
    spread = None if bias is None else _spread(bias, batch, keys, group, length)
    scores, _ = _scores(stacked, turned, scaling, softcap, spread)
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
