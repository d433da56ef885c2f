"""The one order of transforms: load, head, quantize the base, parameters, fake quantization, frozen layers, compile.

Nothing else puts a model together for training.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from tunesmith import parameters
from tunesmith.allocator import keep_freed_memory
from tunesmith.compression import fake_quantization
from tunesmith.errors import RecipeError
from tunesmith.models import attention, frozen, packing
from tunesmith.models.heads import Pooling
from tunesmith.models.load import load_model
from tunesmith.models.model import Form, Model, decoder_of
from tunesmith.models.quantized import quantize_base
from tunesmith.parameters.settings import Added
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
    pooling: Pooling | None = None,
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
        pooling=pooling,
    )
    if form == "mask" and model.head_names and choice.kind not in ("full", "layers"):
        raise RecipeError(
            f"{name} comes without a vocabulary head; a new one would train beside the adapter but has no place in it",
            where="parameters.kind",
            fix="use `parameters: {kind: full}`, or a model with a masked-LM head",
        )
    quantize_base(model, choice.quantization if isinstance(choice, Added) else "none")
    torch.manual_seed(training.seed)
    parameters.apply(model, choice)
    if training.quantization_aware is not None:
        fake_quantization.simulate(model, training.quantization_aware)
    if not model.virtual_tokens:
        model.packable_length = packing.longest_row(decoder_of(model.transformer()), attention.NAME)
    model.prefix = frozen.find(model)
    return model
