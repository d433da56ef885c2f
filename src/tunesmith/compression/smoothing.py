"""Moving outliers from activations into weights before both are rounded (SmoothQuant, arXiv 2211.10438).

A few of the numbers that a transformer's norms put out are far larger than the rest, and set the step for all of a
token. Dividing such a number by a factor in the norm, and multiplying by it the column of the weights that reads it,
changes no product and lets each take a part of the range: equation 4 of the paper.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from tunesmith.models.model import Model

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""Model types whose norms multiply by their weight, last, and feed nothing but these linear layers."""
NORMS = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}
STRENGTH = 0.85
"""Share of the range that goes into the weights: alpha of the paper. Its authors take 0.8 to 0.9 for these families."""


@dataclass(frozen=True)
class Smoothed:
    """A norm and what reads it.

    Attributes:
        norm: Dotted name in the network.
        readers: Likewise, of the linear layers.
        factor_K: What the norm's output is divided by and the columns of the readers multiplied with.
    """

    norm: str
    readers: tuple[str, ...]
    factor_K: torch.Tensor

    def smoothed_norm(self, network: nn.Module) -> nn.Module:
        """A norm of its own that puts out the smaller numbers; it shares no tensor with the one in the network."""
        new: Any = copy.deepcopy(network.get_submodule(self.norm))
        new.weight = nn.Parameter(new.weight.detach() / self.factor_K.to(new.weight), requires_grad=False)
        return cast(nn.Module, new)


def smoothed(model: Model, largest: Mapping[str, torch.Tensor]) -> Iterator[Smoothed]:
    """What can be smoothed in a model, with the factors.

    Args:
        model: Without adapters.
        largest: Name of a linear layer -> the largest magnitude of each number that it read (K,).
    """
    network = model.network
    config: Any = getattr(model.transformer(), "config", None)
    if getattr(config, "model_type", None) not in FAMILIES:
        return
    names = {module: name for name, module in network.named_modules()}
    for block in model.blocks():
        for norm, readers in NORMS.items():
            found = tuple(f"{names[block]}.{reader}" for reader in readers)
            linear: list[Any] = [network.get_submodule(name) for name in found]
            if not all(type(module) is nn.Linear for module in linear) or found[0] not in largest:
                continue
            weights_K = torch.stack([module.weight.detach().float().abs().amax(0) for module in linear]).amax(0)
            read_K = largest[found[0]].to(weights_K).clamp(min=1e-5)
            factor_K = read_K**STRENGTH / weights_K.clamp(min=1e-5) ** (1 - STRENGTH)
            yield Smoothed(f"{names[block]}.{norm}", found, factor_K)
