"""The one order of transforms: load, head, parameters, compile. Nothing else puts a model together for training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tunesmith import parameters
from tunesmith.allocator import keep_freed_memory
from tunesmith.models import attention, packing
from tunesmith.models.heads import SentenceClassifier
from tunesmith.models.load import load_model
from tunesmith.models.model import Form, Model, decoder_of
from tunesmith.recipe import Data, Parameters, Training


def build_for_training(
    folder: Path,
    *,
    name: str,
    form: Form,
    labels: Sequence[str] | None,
    choice: Parameters,
    training: Training,
    data: Data,
    dtype: torch.dtype,
    device: torch.device,
) -> Model:
    """A model with a head if the task wants one, and exactly the chosen parameters requiring gradients.

    (Compiling comes last, when the number of updates is known: :mod:`tunesmith.models.compiling`.)
    """
    if device.type == "cpu":
        keep_freed_memory()
    model = load_model(
        folder,
        name=name,
        form=form,
        labels=labels,
        dtype=dtype,
        device=device,
        dropout=training.dropout,
        max_length=data.max_length,
        seed=training.seed,
    )
    torch.manual_seed(training.seed)
    parameters.apply(model, choice)
    if not _has_virtual_tokens(model):
        model.packable_length = packing.longest_row(decoder_of(model.transformer()), attention.NAME)
    return model


def _has_virtual_tokens(model: Model) -> bool:
    """Whether an adapter puts vectors of its own before each text, which only its wrapper does."""
    network: Any = model.network
    wrapped = network.encoder if isinstance(network, SentenceClassifier) else network
    return any(config.is_prompt_learning for config in getattr(wrapped, "peft_config", {}).values())
