"""Training that feels the rounding which the model will be deployed with (QAT; Jacob et al. 2018, arXiv 1712.05877).

The linear layers inside the transformer's layers compute with their weights (and with kind ``int8`` their inputs) as
``tunesmith quantize`` will round them, by the same functions. The weights themselves stay wide, so that small steps add
up; their gradients pass the rounding as if it were not there (straight-through, arXiv 1308.3432). With LoRA what is
rounded is the base with the adapter added, since that is what is quantized later. Embeddings and heads are left out:
8 bits cost them next to nothing.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from tunesmith.compression import kernels, narrowing
from tunesmith.compression.settings import GROUP, AwareKind
from tunesmith.errors import UsageError
from tunesmith.models.model import Model
from tunesmith.parameters import fused_lora


def simulate(model: Model, kind: AwareKind) -> None:
    """Let the linear layers of a model round as a kind does, until :func:`stop`. Names and weights stay as they are.

    Raises:
        UsageError: The model has no linear layers, or their widths do not fit the format.
    """
    layers = list(_layers(model))
    if not layers:
        raise UsageError(
            f"no linear layer of {model.name} can be quantized: its layers are of other kinds",
            where="training.quantization_aware",
            fix="leave it out",
        )
    for layer in layers:
        if kind == "int4-weights" and layer.in_features % GROUP:
            raise UsageError(
                f"a layer of {model.name} reads {layer.in_features} numbers, which groups of {GROUP} do not divide",
                where="training.quantization_aware",
                fix="use `int8-weights` or `int8`",
            )
        layer.quantization_aware = kind
        layer.forward = types.MethodType(_forward, layer)


def stop(model: Model) -> None:
    """Compute with the weights as they are again."""
    for layer in _layers(model):
        layer.__dict__.pop("quantization_aware", None)
        layer.__dict__.pop("forward", None)
    if model.has_adapters:
        fused_lora.fuse(model.network)


def _layers(model: Model) -> Iterator[Any]:
    """Linear layers, with PEFT's around them where there are adapters."""
    for block in model.blocks():
        inside: set[int] = set()
        for module in block.modules():
            adapted = hasattr(module, "get_base_layer")
            if id(module) not in inside and (adapted or type(module) is nn.Linear):
                yield module
            if adapted:
                inside |= {id(part) for part in module.modules()}


def _forward(layer: Any, x: torch.Tensor) -> torch.Tensor:
    kind: AwareKind = layer.quantization_aware
    weight, bias = layer.weight, layer.bias
    if hasattr(layer, "get_base_layer"):
        if layer.disable_adapters:  # the reference that an objective compares with is the base as it came
            plain: torch.Tensor = layer.get_base_layer()(x)
            return plain
        [name] = layer.active_adapters
        down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
        weight = torch.addmm(weight, up, down, alpha=layer.scaling[name])
    if kind == "int8":
        x = _straight_through(x, kernels.rounded_rows)
    return nn.functional.linear(x, _straight_through(weight, _ROUNDED[kind]), bias)


def _rounded_int8(weight_NK: torch.Tensor) -> torch.Tensor:
    return narrowing.widened(*narrowing.to_int8(weight_NK))


def _rounded_int4(weight_NK: torch.Tensor) -> torch.Tensor:
    return narrowing.widened(*narrowing.to_int4(weight_NK, GROUP))


_ROUNDED: dict[AwareKind, Callable[[torch.Tensor], torch.Tensor]] = {
    "int8": _rounded_int8,
    "int8-weights": _rounded_int8,
    "int4-weights": _rounded_int4,
}


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, rounded: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        return rounded(values.float()).to(values.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grads[0], None


def _straight_through(values: torch.Tensor, rounded: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    found: torch.Tensor = _StraightThrough.apply(values, rounded)
    return found
