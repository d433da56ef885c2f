"""A frozen base in 8 or 4 bits through bitsandbytes (Dettmers et al. 2022, arXiv 2208.07339; 2023, arXiv 2305.14314).

Its layers are modules of their own, which PEFT knows. On processors both widths work in fp32 and in bf16, forwards and
backwards (tried with 0.50); without kernels for the processor the weights are widened for each product.
"""

from __future__ import annotations

import importlib.util
from typing import Any, cast

import torch
from torch import nn

from tunesmith.errors import MissingExtraError, UsageError
from tunesmith.models.model import Model


def narrow_layers(model: Model, bits: int) -> None:
    """Put bitsandbytes' layers in the place of the linear ones inside the transformer's layers.

    Raises:
        MissingExtraError: bitsandbytes is not installed.
        UsageError: The model computes in fp64, which bitsandbytes does not.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtraError("bitsandbytes", "bitsandbytes", "a base quantized by bitsandbytes")
    if model.dtype == torch.float64:
        raise UsageError(
            "bitsandbytes computes in fp32 and narrower, and the model in fp64",
            where="parameters.quantizer",
            fix="use `precision: fp32`, or `quantizer: torchao`",
        )
    if next(model.network.parameters()).is_meta:  # sizes are counted: there are no weights to narrow
        return
    for block in model.blocks():
        for parent in list(block.modules()):
            for name, layer in list(parent.named_children()):
                if type(layer) is nn.Linear:
                    setattr(parent, name, _narrow(layer, bits))
    setattr(model.transformer(), f"is_loaded_in_{bits}bit", True)  # by this PEFT chooses its classes


def _narrow(layer: nn.Linear, bits: int) -> nn.Module:
    import bitsandbytes as bnb

    sizes: Any = (layer.in_features, layer.out_features, layer.bias is not None)
    weight = layer.weight.detach().contiguous()
    if bits == 4:
        made: Any = bnb.nn.Linear4bit(*sizes, compute_dtype=weight.dtype, quant_type="nf4", compress_statistics=True)
        # In evaluation it would lay the weights out anew for AVX512-BF16, which fails for rows shorter than a block of
        # 64: one layout serves training and evaluation.
        made.support_avx512bf16_for_cpu = False
        made.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4", compress_statistics=True)
    else:
        # No columns in fp16 beside the rest (a threshold of 0): outliers are of models from 6.7 B on.
        made = bnb.nn.Linear8bitLt(*sizes, has_fp16_weights=False, threshold=0.0)
        made.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    if layer.bias is not None:
        made.bias = nn.Parameter(layer.bias.detach(), requires_grad=False)
    return cast(nn.Module, made.to(weight.device))  # it narrows on the way


def is_narrow_layer(module: nn.Module) -> bool:
    """Whether a module is one of bitsandbytes'."""
    return type(module).__module__.startswith("bitsandbytes.")


def wide_weight(layer: Any, dtype: torch.dtype) -> torch.Tensor:
    """What the narrow weights of a layer stand for, (out, in)."""
    from peft.utils.integrations import dequantize_bnb_weight

    return dequantize_bnb_weight(layer.weight, getattr(layer, "state", None)).to(dtype)


def widen_layers(network: nn.Module, dtype: torch.dtype) -> None:
    """Put ordinary linear layers back, in PEFT's layers too."""
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            if is_narrow_layer(layer):
                narrow: Any = layer
                wide = nn.Linear(narrow.in_features, narrow.out_features, narrow.bias is not None)
                wide.weight = nn.Parameter(wide_weight(narrow, dtype), requires_grad=False)
                if narrow.bias is not None:
                    wide.bias = nn.Parameter(narrow.bias.detach(), requires_grad=False)
                setattr(parent, name, wide)


def layer_bytes(layer: Any) -> int:
    """Bytes of a narrow layer: weights, scales, the tables of their values, and bias."""
    weight, state = layer.weight, getattr(layer.weight, "quant_state", None)
    nested = getattr(state, "state2", None)
    held = [weight, layer.bias, getattr(weight, "SCB", None), getattr(getattr(layer, "state", None), "SCB", None)]
    held += [getattr(state, name, None) for name in ("absmax", "code", "offset")]
    held += [getattr(nested, name, None) for name in ("absmax", "code")]
    return sum({tensor.data_ptr(): int(tensor.nbytes) for tensor in held if tensor is not None}.values())
