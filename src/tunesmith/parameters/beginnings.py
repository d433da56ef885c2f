"""First weights of LoRA that need more than the base: the training data (EVA), or what quantizing lost (LoftQ)."""

from __future__ import annotations

import contextlib
import io
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from tunesmith.data.batches import Batch, TokenFile, collate
from tunesmith.data.source_target import TARGET_IDS
from tunesmith.errors import RecipeError
from tunesmith.models.load import quiet
from tunesmith.models.model import Model
from tunesmith.models.quantized import wide_weight

TOKENS_A_BATCH = 2048
"""Of EVA's batches, about: many more than any rank."""
MOST_EPOCHS = 100
"""Passes over the training data within which EVA's directions settle, or never."""


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
            batch = collate(self._data, part.tolist(), self._model.pad_id, 16).to(self._model.device)
            targets = batch.extra.get(TARGET_IDS)
            if targets is not None and targets.shape == batch.input_ids.shape:  # told apart by their widths
                batch.extra[TARGET_IDS] = nn.functional.pad(targets, (0, 1), value=-1)
            yield batch


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
    tokens = int(data.lengths.sum())
    if model.form == "seq2seq":
        tokens = min(tokens, len(data.extra[TARGET_IDS].values))
    if tokens < 2 * rank:
        raise RecipeError(
            f"{tokens} tokens of training data have no {rank} main directions",
            where="parameters.init",
            fix="use `init: default`, or a lower `rank`",
        )
    batches, rest, passes = _Batches(model, data, seed), _Rest(rank), itertools.count()

    def read(_: nn.Module, batch: Batch) -> None:
        if next(passes) > MOST_EPOCHS * len(batches):  # PEFT would go on for ever
            raise RecipeError(
                "the main directions of the training data do not settle",
                where="parameters.init",
                fix="use `init: default`, or a lower `rank`",
            )
        if model.form == "seq2seq":
            model.target_logits(batch, batch.extra[TARGET_IDS])
        elif model.form == "mask":  # through the layers of its head, which have adapters too
            model.network(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
        else:
            model.read(batch)

    with quiet(), torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):  # PEFT prints what it skips
        initialize_lora_eva_weights(
            wrapped,
            dataloader=batches,
            forward_fn=read,
            prepare_model_inputs_fn=lambda batch, _: _masks(batch),
            prepare_layer_inputs_fn=lambda given, masks, name: rest.with_rest(name, _real_tokens(given, masks)),
            show_progress_bar=False,
        )
    config.init_lora_weights = True  # whoever loads it needs no data


class _Rest:
    """Keeps what goes into a layer until it is as many rows as PEFT looks at: a pooling layer sees one a text."""

    def __init__(self, least: int) -> None:
        self._least, self._kept = least, dict[str, torch.Tensor]()

    def with_rest(self, name: str, states_Nd: torch.Tensor) -> torch.Tensor:
        """The states with those that were too few before."""
        if name in self._kept:
            states_Nd = torch.cat([self._kept.pop(name), states_Nd])
        if len(states_Nd) < self._least:
            self._kept[name] = states_Nd
        return states_Nd


def _masks(batch: Batch) -> list[torch.Tensor]:
    """Where the tokens are real: those read, and those that a decoder of its own is given."""
    targets = batch.extra.get(TARGET_IDS)
    return [batch.attention_mask] if targets is None else [batch.attention_mask, targets >= 0]


def _real_tokens(layer_input: Any, masks: Sequence[torch.Tensor]) -> torch.Tensor:
    """What a layer is given, without padding."""
    states = layer_input if isinstance(layer_input, torch.Tensor) else layer_input[0]
    states = states.detach().float()
    for mask in masks:
        if states.shape[:2] == mask.shape:
            return states[mask]
    return states.flatten(0, -2).contiguous()


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
