"""First weights of LoRA that need more than the base: the training data (EVA), or what quantizing lost (LoftQ)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from tunesmith.data.batches import Batch, TokenFile, collate
from tunesmith.errors import RecipeError
from tunesmith.models.load import quiet
from tunesmith.models.model import Model
from tunesmith.models.quantized import wide_weight

TOKENS_A_BATCH = 2048
"""Of EVA's batches, about: many more than any rank."""


class _Batches:
    """The training data in an order of its own, as often as they are asked for."""

    def __init__(self, model: Model, data: TokenFile, seed: int) -> None:
        self._model, self._data = model, data
        order = np.random.default_rng([seed, len(data)]).permutation(len(data))
        number = np.cumsum(data.lengths[order]) // TOKENS_A_BATCH
        self._parts = np.split(order, np.flatnonzero(np.diff(number)) + 1)

    def __len__(self) -> int:
        return len(self._parts)

    def __iter__(self) -> Iterator[Batch]:
        for part in self._parts:
            yield collate(self._data, part.tolist(), self._model.pad_id, 16).to(self._model.device)


def from_activations(model: Model, data: TokenFile, seed: int) -> None:
    """EVA: each A begins with the main directions of what goes into its layer (Paischer et al. 2024, arXiv 2410.07170).

    Through PEFT. All layers keep the rank of the recipe (PEFT's rho = 1), so what is saved is plain LoRA on the base as
    it was; B begins at zero.

    Raises:
        RecipeError: The data are too few for the rank.
    """
    from peft import initialize_lora_eva_weights

    wrapped: Any = model.wrapped
    config = wrapped.peft_config["default"]
    rank = max([config.r, *config.rank_pattern.values()])
    if int(data.lengths.sum()) < 2 * rank:
        raise RecipeError(
            f"{int(data.lengths.sum())} tokens of training data have no {rank} main directions",
            where="parameters.init",
            fix="use `init: default`, or a lower `rank`",
        )

    def real_tokens(layer_input: Any, mask_BS: torch.Tensor, name: str) -> torch.Tensor:
        states = layer_input if isinstance(layer_input, torch.Tensor) else layer_input[0]
        states = states.detach().float()
        return states[mask_BS] if states.shape[:2] == mask_BS.shape else states.flatten(0, -2)

    with quiet(), torch.no_grad():
        initialize_lora_eva_weights(
            wrapped,
            dataloader=_Batches(model, data, seed),
            forward_fn=lambda _, batch: model.read(batch),
            prepare_model_inputs_fn=lambda batch, _: batch.attention_mask,
            prepare_layer_inputs_fn=real_tokens,
            show_progress_bar=False,
        )
    config.init_lora_weights = True  # whoever loads it needs no data


def from_lost(wrapped: nn.Module, wide: Mapping[str, torch.Tensor]) -> None:
    """LoftQ: the adapter begins as the best approximation of what quantizing took from its layer.

    One step of algorithm 1 of Li et al. 2023, arXiv 2310.08659: of W - Q the r largest singular values, shared by B and
    A. (More steps would change Q, and the base would have to be saved with the adapter.)

    Args:
        wrapped: PEFT's wrapper around the quantized base.
        wide: Weights before they were quantized, by the names that their layers had without the wrapper.
    """
    from peft.tuners.lora.layer import LoraLayer

    for name, module in wrapped.named_modules():
        known = wide.get(name.removeprefix("base_model.model."))
        if not isinstance(module, LoraLayer) or known is None:
            continue
        layer: Any = module
        down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        lost = known.float() - wide_weight(layer.get_base_layer()).float()
        left, values, right = torch.linalg.svd(lost, full_matrices=False)
        rank = min(down.shape[0], len(values))
        roots = (values[:rank] / layer.scaling["default"]).sqrt()
        with torch.no_grad():
            up.zero_()
            up[:, :rank] = left[:, :rank] * roots
            down[:rank] = roots[:, None] * right[:rank]
