"""Several adapters of one base put together into one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch

from tunesmith.errors import UsageError
from tunesmith.models.load import quiet
from tunesmith.models.model import Model
from tunesmith.parameters.fused_lora import fuse

COMBINATIONS = {"linear": "cat", "ties": "ties_svd", "dare": "dare_linear_svd"}
"""The recipe's names -> PEFT's for what works on the products B A, as the papers do: its "linear", "ties" and
"dare_linear" combine A and B apart, and the mean of two equal adapters would not be that adapter. TIES: Yadav et al.
2023, arXiv 2306.01708; DARE: Yu et al. 2023, arXiv 2311.03099."""
_DENSITY = 0.5  # of an adapter's values that TIES and DARE keep


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
        rank = max(config.r for config in parts.peft_config.values()) * len(folders)  # none of the parts is lost in it
        thin = {"density": _DENSITY, "svd_rank": rank, "svd_full_matrices": False}
        weight = 1.0 if how == "ties" else 1.0 / len(folders)
        parts.add_weighted_adapter(
            names,
            [weight] * len(names),
            "default",
            combination_type=COMBINATIONS[how],
            **({} if how == "linear" else thin),
        )
        parts.set_adapter("default")
        for name in names:
            parts.delete_adapter(name)
    fuse(parts)
    model.wrap(parts)
