"""The one order of transforms: load, head, quantize the base, parameters, fake quantization, frozen layers, compile.

Nothing else puts a model together for training.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from tunesmith import parameters
from tunesmith.allocator import keep_freed_memory
from tunesmith.compression import fake_quantization
from tunesmith.errors import RecipeError
from tunesmith.models import attention, frozen, packing
from tunesmith.models.dropout import cheapen
from tunesmith.models.heads import Pooling
from tunesmith.models.load import load_model
from tunesmith.models.model import Form, Model, decoder_of
from tunesmith.models.quantized import narrow_tables, quantize_base
from tunesmith.models.vision import is_vision, load_vision
from tunesmith.parameters.settings import Added
from tunesmith.recipe import Data, LoRA, Parameters, Training


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

    (Compiling comes last, when the number of updates is known: :mod:`tunesmith.training.compiling`.)
    """
    if device.type == "cpu":
        keep_freed_memory()
    if is_vision(folder):
        return _vision_model(folder, name, labels or [], choice, training, dtype, device)
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
    if isinstance(choice, LoRA) and choice.init == "loftq":
        layers = model.wrapped.named_modules()
        model.wide = {name: layer.weight.detach() for name, layer in layers if isinstance(layer, nn.Linear)}
    if isinstance(choice, Added):
        quantize_base(model, choice.quantization, choice.quantizer)
    torch.manual_seed(training.seed)
    parameters.apply(model, choice)
    narrow_tables(model)
    model.wide = {}
    if training.quantization_aware is not None:
        fake_quantization.simulate(model, training.quantization_aware)
    if not model.virtual_tokens:
        model.packable_length = packing.longest_row(decoder_of(model.transformer()), attention.NAME)
    cheapen(model.network)
    model.prefix = frozen.find(model)
    return model


def _vision_model(
    folder: Path,
    name: str,
    labels: Sequence[str],
    choice: Parameters,
    training: Training,
    dtype: torch.dtype,
    device: torch.device,
) -> Model:
    """The same for pictures; the head stays in fp32 at least."""
    torch.manual_seed(training.seed)
    network = load_vision(folder, name=name, labels=labels, device=device, dropout=training.dropout)
    network.encoder.to(dtype)
    network.classifier.to(torch.promote_types(dtype, torch.float32))
    model = Model(network, None, "classify", name, folder, 0, list(labels), head_names=("classifier",))
    parameters.apply(model, choice)
    cheapen(model.network)
    model.prefix = frozen.find(model)
    return model
