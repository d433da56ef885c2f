"""A frozen base in 8 or 4 bits (QLoRA; Dettmers et al. 2023, arXiv 2305.14314), through torchao or bitsandbytes.

Only the linear layers inside the transformer's layers are quantized: they are nearly all of a large model, and what is
left (embeddings, norms, heads) is sensitive. Weights alone are narrow: they are widened for each product, so the same
code runs on processors and on GPUs.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from tunesmith.errors import MissingExtraError, UsageError
from tunesmith.models import bits_and_bytes
from tunesmith.models.model import Model
from tunesmith.parameters.settings import Quantization, Quantizer

BLOCK = 64
"""Weights that share a scale in int4 (NF4), as in QLoRA; scales are 8 bits, and up to 256 of them share another."""


def quantize_base(model: Model, quantization: Quantization, quantizer: Quantizer = "torchao") -> None:
    """Narrow the base's linear layers in place. Its heads and whatever is added later keep their precision.

    Raises:
        MissingExtraError: torchao, or bitsandbytes, is not installed.
        UsageError: No linear layer of the model can be narrowed.
    """
    if quantization == "none":
        return
    if quantizer == "bitsandbytes":
        bits_and_bytes.narrow_layers(model, 4 if quantization == "int4" else 8)
        model.quantization, model.quantizer = quantization, quantizer
        return
    if importlib.util.find_spec("torchao") is None:
        raise MissingExtraError("torchao", "quantization", f"a base in {quantization}")
    layers = [layer for block in model.blocks() for layer in _linear_layers(block)]
    suitable = [layer for layer in layers if quantization == "int8" or layer.weight.numel() % BLOCK == 0]
    if not suitable or (quantization == "int8" and model.dtype == torch.float64):
        raise UsageError(
            f"no linear layer of {model.name} can be kept in {quantization} while it computes in {model.dtype}",
            where="parameters.quantization",
            fix="use `quantization: none`, or another `precision`",
        )
    narrow = _to_int8 if quantization == "int8" else _to_nf4
    for layer in suitable:
        layer.weight = nn.Parameter(narrow(layer.weight.detach()), requires_grad=False)
    model.quantization = quantization


def dequantize_base(model: Model) -> None:
    """Widen the base's linear layers in place again, to what the narrow weights stand for."""
    if model.quantizer == "bitsandbytes":
        bits_and_bytes.widen_layers(model.network, model.dtype)
    for module in model.network.modules():
        weight = module._parameters.get("weight")  # PEFT's layers show their base's weight as an attribute too
        if is_narrow(weight):
            module.weight = nn.Parameter(widened(weight), requires_grad=False)
    model.quantization = "none"


def is_narrow(weight: Any) -> bool:
    """Whether a weight is kept in fewer bits than it computes with."""
    return isinstance(weight, torch.Tensor) and hasattr(weight, "__tensor_flatten__")


def widened(weight: Any) -> torch.Tensor:
    """An ordinary tensor with the values of a narrow weight, in the dtype that it computes with."""
    whole = weight.get_original_weight() if hasattr(weight, "get_original_weight") else weight.dequantize()
    return whole.to(weight.dtype)


def weight_bytes(network: nn.Module) -> int:
    """Bytes that the weights of a network take, scales included; shared ones are counted once."""
    layers = [module for module in network.modules() if bits_and_bytes.is_narrow_layer(module)]
    apart = {id(parameter) for layer in layers for parameter in layer.parameters()}
    others = sum(_bytes(parameter) for parameter in network.parameters() if id(parameter) not in apart)
    return others + sum(map(bits_and_bytes.layer_bytes, layers))


def wide_weight(layer: Any) -> torch.Tensor:
    """What the weights of a linear layer stand for, narrow or not."""
    if bits_and_bytes.is_narrow_layer(layer):
        return bits_and_bytes.wide_weight(layer, torch.float32)
    weight = layer.weight
    return widened(weight) if is_narrow(weight) else weight


def _bytes(tensor: Any) -> int:
    if not is_narrow(tensor):
        return int(tensor.nbytes)
    return sum(_bytes(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])


def _linear_layers(block: nn.Module) -> Iterator[Any]:
    return (module for module in block.modules() if type(module) is nn.Linear)


def _to_int8(weight: torch.Tensor) -> torch.Tensor:
    """A scale for each row, symmetric around zero."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    holder = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    holder.weight = nn.Parameter(weight, requires_grad=False)
    quantize_(holder, Int8WeightOnlyConfig())
    return holder.weight.data


def _to_nf4(weight: torch.Tensor) -> torch.Tensor:
    """The 4-bit values that are best for normally distributed weights, with scales that are quantized themselves."""
    from torchao.quantization import to_nf4

    blocks = weight.numel() // BLOCK
    group = next(size for size in range(min(256, blocks), 0, -1) if blocks % size == 0)
    return to_nf4(weight.contiguous(), BLOCK, group)
