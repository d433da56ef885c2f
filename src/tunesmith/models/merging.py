"""Adding adapters into the weights they stand beside."""

from __future__ import annotations

from typing import Any

from tunesmith.errors import UsageError
from tunesmith.models.load import quiet
from tunesmith.models.model import Model
from tunesmith.models.quantized import dequantize_base


def merge(model: Model) -> None:
    """Turn a model with adapters into a plain one that gives the same answers.

    A quantized base is widened first and stays wide: narrowed again it would round the adapter away.

    Raises:
        UsageError: Its parameters are not of a kind that can be added into the weights.
    """
    if model.virtual_tokens:
        raise UsageError(
            "virtual tokens stand before the text and cannot be added into the weights",
            fix="keep the adapter as it is, or tune with `parameters: {kind: lora}`",
        )
    wrapped: Any = model.wrapped
    with quiet():
        if model.quantization == "none":
            model.wrap(wrapped.merge_and_unload())
            return
        dequantize_base(model)
        _merge_layers(wrapped)
        model.wrap(wrapped.unload())


def _merge_layers(network: Any) -> None:
    """Merge layer by layer: PEFT's class for torchao's weights would narrow them again."""
    from peft.tuners.lora.layer import Linear
    from peft.tuners.tuners_utils import BaseTunerLayer

    for layer in list(network.modules()):
        if isinstance(layer, Linear):
            Linear.merge(layer)
        elif isinstance(layer, BaseTunerLayer):
            layer.merge()
