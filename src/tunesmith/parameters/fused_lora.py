"""A LoRA layer as one operation: the same numbers as PEFT's, with fewer passes over memory.

PEFT computes ``base(x) + B(A(x)) * scale`` as five operations, two of them over the whole output, and autograd does
the same backwards. Here the adapter's product is added inside the matrix product (``addmm``), forwards and backwards.
The modules stay PEFT's, and so does their format; what this operation does not cover goes through PEFT's own code.

In service each row of a batch may use an adapter of its own (:func:`adapters_of_rows`): the base's product is shared.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn

_ROWS: ContextVar[Mapping[str, slice | torch.Tensor] | None] = ContextVar("adapters of the rows", default=None)


@contextlib.contextmanager
def adapters_of_rows(rows: Mapping[str, slice | torch.Tensor]) -> Iterator[None]:
    """Within, fused layers use for each row of the batch the adapter that is given here, and none for the others.

    Args:
        rows: Adapter -> which rows, as a slice or indices. For inference: dropout is not applied.
    """
    before = _ROWS.set(rows)
    try:
        yield
    finally:
        _ROWS.reset(before)


def fuse(network: nn.Module) -> int:
    """Let every plain LoRA layer of a network compute in one operation.

    Returns:
        How many layers were changed.
    """
    from peft.tuners.lora.layer import Linear

    layers = [module for module in network.modules() if isinstance(module, Linear)]
    for layer in layers:
        setattr(layer, "forward", types.MethodType(_forward, layer))  # noqa: B010  # an assignment fails the type check
    return len(layers)


def _forward(layer: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """The layer's output; adapters that are off, merged, several, or more than plain LoRA are PEFT's business."""
    rows = _ROWS.get()
    if rows is not None:
        return _by_rows(layer, x, rows)
    active = layer.active_adapters
    if args or kwargs or layer.disable_adapters or layer.merged or len(active) != 1 or active[0] in layer.lora_variant:
        return type(layer).forward(layer, x, *args, **kwargs)
    name = active[0]
    base, dropout = layer.get_base_layer(), layer.lora_dropout[name]
    plain = type(base) is nn.Linear and type(base.weight) is nn.Parameter  # else quantized
    trains = any(parameter.requires_grad for parameter in base.parameters())
    if not plain or trains or not isinstance(dropout, nn.Identity) or layer.lora_bias[name]:
        return type(layer).forward(layer, x)
    down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
    return _LoRALinear.apply(x, base.weight, base.bias, down, up, layer.scaling[name])


def _by_rows(layer: Any, x: torch.Tensor, rows: Mapping[str, slice | torch.Tensor]) -> torch.Tensor:
    y = layer.get_base_layer()(x)
    for name, which in rows.items():
        if name in layer.lora_A:
            y[which] += layer.lora_B[name](layer.lora_A[name](x[which])) * layer.scaling[name]
    return y


class _LoRALinear(torch.autograd.Function):
    """Computes y = x W' + b + s (x A') B' with a frozen base (a prime transposes)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        down: torch.Tensor,
        up: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        x_Td = x.reshape(-1, x.shape[-1])
        inner_Tr = x_Td @ down.T
        y = nn.functional.linear(x_Td, weight, bias).addmm_(inner_Tr, up.T, alpha=scale)
        ctx.save_for_backward(x_Td, inner_Tr, weight, down, up)
        ctx.scale, ctx.shape = scale, x.shape
        return y.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_Td, inner_Tr, weight, down, up = ctx.saved_tensors
        grad_To = grads[0].reshape(-1, weight.shape[0])
        grad_inner_Tr = (grad_To @ up).mul_(ctx.scale)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad_To @ weight).addmm_(grad_inner_Tr, down).view(ctx.shape)
        grad_up = (grad_To.T @ inner_Tr).mul_(ctx.scale)
        return grad_x, None, None, grad_inner_Tr.T @ x_Td, grad_up, None
