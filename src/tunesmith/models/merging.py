"""Adding adapters into the weights they stand beside."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from torch import nn

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
    """Merge layer by layer: PEFT's classes for narrow weights would narrow them again."""
    from peft.tuners.lora.layer import Linear, LoraLayer
    from peft.tuners.tuners_utils import BaseTunerLayer

    for layer in list(network.modules()):
        if isinstance(layer, LoraLayer) and type(layer.get_base_layer()) is nn.Linear:
            Linear.merge(cast(Any, layer))
        elif isinstance(layer, BaseTunerLayer):
            layer.merge()


def merge_artefact(folder: Path, target: Path) -> None:
    """Write the tuned model of ``folder``, an adapter on its base, as a whole model to ``target``.

    Raises:
        UsageError: It is whole already, cannot be merged, or something is in the way.
        NotFoundError: There is no tuned model in ``folder``.
    """
    from tunesmith.disk import write_folder
    from tunesmith.models.saving import load_artefact, read_notes, save_artefact

    if not read_notes(folder).adapter:
        raise UsageError("the model is whole already", where=str(folder), fix=f"copy the folder {folder}")
    if target.exists():
        raise UsageError("the folder exists already", where=str(target), fix="name another with --to, or remove it")
    model, notes = load_artefact(folder)
    merge(model)

    def write(staging: Path) -> None:
        save_artefact(model, staging, task=notes.task, system_prompt=notes.system_prompt)

    target.parent.mkdir(parents=True, exist_ok=True)
    write_folder(target, write)
