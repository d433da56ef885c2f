"""A frozen base in 8 or 4 bits (QLoRA; Dettmers et al. 2023, arXiv 2305.14314), by torchao's tensors or bitsandbytes.

The linear layers inside the transformer's layers are quantized, and without bitsandbytes the table of word vectors (a
fifth of a small model) in 8 bits; norms and heads keep their precision. Weights alone are narrow: they are widened for
each product, so the same code runs on processors and on GPUs.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from tunesmith.errors import MissingExtraError, UsageError
from tunesmith.models import bits_and_bytes
from tunesmith.models.model import Model
from tunesmith.models.narrow_tensor import is_narrow, widened
from tunesmith.parameters.settings import Quantization, Quantizer

_HELD = re.compile(r"(^|\.)(base_layer|original_module|modules_to_save)(\.|$)")


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
    from tunesmith.models.grouped_int4 import GROUP, to_int4
    from tunesmith.models.lookup import to_int8

    layers = [layer for block in model.blocks() for layer in _linear_layers(block)]
    suitable = [layer for layer in layers if quantization == "int8" or layer.weight.numel() % GROUP == 0]
    if not suitable or (quantization == "int8" and model.dtype == torch.float64):
        raise UsageError(
            f"no linear layer of {model.name} can be kept in {quantization} while it computes in {model.dtype}",
            where="parameters.quantization",
            fix="use `quantization: none`, or another `precision`",
        )
    narrow = to_int8 if quantization == "int8" else to_int4
    for layer in suitable:
        layer.weight = nn.Parameter(narrow(layer.weight.detach()), requires_grad=False)
    model.quantization = quantization


def narrow_tables(model: Model) -> None:
    """Keep a quantized base's word vectors, and the vocabulary's head that is one with them, in 8 bits.

    Made after adapters are added: what an adapter changes or trains keeps its precision.
    """
    if model.quantization == "none" or model.quantizer == "bitsandbytes" or model.dtype == torch.float64:
        return
    from tunesmith.models.lookup import to_table

    for table in plain_tables(model):
        _replace(model.network, table, to_table(table.detach()))


def plain_tables(model: Model) -> list[nn.Parameter]:
    """Frozen tables of word vectors, (V, d), that no adapter holds; a head that is one with them counts as them."""
    transformer: Any = model.transformer()
    layers = [transformer.get_input_embeddings(), transformer.get_output_embeddings()]
    tables = {id(layer.weight): layer.weight for layer in layers if _is_plain_table(layer)}
    for name, module in model.network.named_modules():
        if not _is_plain_table(module) or _HELD.search(name):
            tables.pop(id(module._parameters.get("weight")), None)
    return list(tables.values())


def dequantize_base(model: Model) -> None:
    """Widen the base's weights in place again, to what the narrow ones stand for."""
    if model.quantizer == "bitsandbytes":
        bits_and_bytes.widen_layers(model.network, model.dtype)
    for weight in [weight for weight in model.network.parameters() if is_narrow(weight)]:
        _replace(model.network, weight, widened(weight))
    model.quantization = "none"


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


def _is_plain_table(layer: Any) -> bool:
    return (type(layer) is nn.Linear or isinstance(layer, nn.Embedding)) and not layer.weight.requires_grad


def _replace(network: nn.Module, old: torch.Tensor, new: torch.Tensor) -> None:
    """Put a frozen weight in the place of another wherever it is used."""
    parameter = nn.Parameter(new, requires_grad=False)
    for module in network.modules():
        if module._parameters.get("weight") is old:  # PEFT's layers show their base's weight as an attribute too
            module.weight = parameter


def _linear_layers(block: nn.Module) -> Iterator[Any]:
    return (module for module in block.modules() if type(module) is nn.Linear)
