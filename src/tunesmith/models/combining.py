"""Several adapters of one base put together into one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from tunesmith.errors import UsageError
from tunesmith.models.load import quiet
from tunesmith.models.model import Model
from tunesmith.parameters.fused_lora import fuse

COMBINATIONS = {"linear": "linear", "ties": "ties", "dare": "dare_linear"}
"""The recipe's names -> those of :data:`WAYS`."""
WAYS = {"linear": "cat", "ties": "ties_svd", "dare_linear": "dare_linear_svd", "dare_ties": "dare_ties_svd"}
"""Our names -> PEFT's for what works on the products B A, as the papers do: its "linear", "ties" and "dare_linear"
combine A and B apart, and the mean of two equal adapters would not be that adapter. TIES: Yadav et al. 2023, arXiv
2306.01708; DARE: Yu et al. 2023, arXiv 2311.03099."""
DENSITY = 0.5
"""Share of an adapter's values that TIES and DARE keep."""


def refuse_own_heads(model: Model) -> None:
    """Adapters that hold a head of their own cannot be put together.

    Raises:
        UsageError: This model's adapter does.
    """
    config = next(iter(cast(Any, model.wrapped).peft_config.values()))
    if config.modules_to_save or config.task_type in ("SEQ_CLS", "TOKEN_CLS"):
        raise UsageError(
            "adapters of this model hold the heads of their tasks, and such adapters cannot be merged",
            where="sequence.adapters",
            fix="use a sentence encoder or a model that writes, or `adapters: separate`",
        )


def combine(model: Model, folders: Sequence[Path], how: str, seed: int) -> None:
    """Put one adapter made of several in the place of the model's own; its head stays.

    Args:
        model: With an adapter.
        folders: Of the adapters, trained on the same base. The result has as much rank as they have together.
        how: One of :data:`COMBINATIONS`. The adapters count alike: their mean, but for TIES their sum, which takes
            the mean of those that agree by itself.
        seed: DARE drops values at random.
    """
    from peft import PeftModel

    refuse_own_heads(model)
    wrapped: Any = model.wrapped
    names = [f"part{number}" for number in range(len(folders))]
    with quiet():
        parts: Any = PeftModel.from_pretrained(
            wrapped.unload(), folders[0], adapter_name=names[0], autocast_adapter_dtype=False
        )
        for name, folder in zip(names[1:], folders[1:], strict=True):
            parts.load_adapter(folder, adapter_name=name, autocast_adapter_dtype=False)
        torch.manual_seed(seed)
        weight = 1.0 if how == "ties" else 1.0 / len(folders)
        add_weighted(parts, dict.fromkeys(names, weight), "default", COMBINATIONS[how])
        parts.set_adapter("default")
        for name in names:
            parts.delete_adapter(name)
    fuse(parts)
    model.wrap(parts)


def add_weighted(network: Any, weights: Mapping[str, float], name: str, how: str, density: float = DENSITY) -> None:
    """Add to PEFT's wrapper an adapter whose product B A is made of those of others: plain LoRA in their dtype.

    Args:
        network: The wrapper.
        weights: Adapter of the wrapper -> its weight.
        name: Of the new one, whose rank is that of the others together.
        how: One of :data:`WAYS`.
        density: For TIES and DARE: the share of each adapter's values that is kept.

    Raises:
        UsageError: The adapters are more than low-rank products.
        ValueError: PEFT cannot combine them.
    """
    configs = [network.peft_config[part] for part in weights]
    plain = (c.peft_type == "LORA" and not (c.use_dora or c.modules_to_save) and c.bias == "none" for c in configs)
    if not all(plain):
        raise UsageError(
            "only products of low-rank matrices can be combined, and these adapters are something else, or more",
            fix="tune with `kind: lora`, without `dora`, `bias` and `modules_to_save`",
        )
    rank = sum(max([config.r, *config.rank_pattern.values()]) for config in configs)
    thin = {} if how == "linear" else {"density": density, "svd_rank": rank, "svd_full_matrices": False}
    rslora = configs[0].use_rslora
    configs[0].use_rslora = False  # PEFT copies it and scales by alpha over the rank, which is 1 without it alone
    try:
        network.add_weighted_adapter(list(weights), list(weights.values()), name, WAYS[how], **thin)
    finally:
        configs[0].use_rslora = rslora
    _as_plain_lora(network, next(iter(weights)), name)


def _as_plain_lora(network: Any, part: str, name: str) -> None:
    """Give a new adapter the dtype of one of its parts, and each layer the rank that its configuration says.

    PEFT leaves fp32 behind, and of a small layer no more columns than its matrix has: neither computes beside a
    narrow base, nor loads again.
    """
    from peft.tuners.lora.layer import LoraLayer

    rank = network.peft_config[name].r
    dtype = next(p.dtype for n, p in network.named_parameters() if "lora_" in n and f".{part}" in n)
    for layer in network.modules():
        if not isinstance(layer, LoraLayer):
            continue
        for tables, axis in ((layer.lora_A, 0), (layer.lora_B, 1), (layer.lora_embedding_A, 0),
                             (layer.lora_embedding_B, 1)):  # fmt: skip
            if name in tables:
                held: Any = tables[name]
                matrix = held if isinstance(held, nn.Parameter) else held.weight
                missing = rank - matrix.shape[axis]
                padding = (0, 0, 0, missing) if axis == 0 else (0, missing)
                matrix.data = nn.functional.pad(matrix.data, padding).to(dtype).contiguous()
