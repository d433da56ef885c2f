"""Chosen parts of a model train; the rest is frozen, and below the lowest of them no gradient is computed."""

from __future__ import annotations

import difflib
import fnmatch
import re

from torch import nn

from tunesmith.errors import RecipeError
from tunesmith.models.model import Model
from tunesmith.models.new_tokens import train_rows
from tunesmith.parameters.head import train_head
from tunesmith.parameters.settings import block_range
from tunesmith.recipe import Layers

LAST_NORMS = ("norm", "final_layernorm", "ln_f", "final_layer_norm")
"""Names of the one norm behind the last layer, which belongs to it."""


def apply(model: Model, settings: Layers) -> None:
    """Let what the items choose and the task's head train, and nothing else.

    Raises:
        RecipeError: An item chooses nothing, or a layer that the model has not.
    """
    model.network.requires_grad_(False)
    for item in settings.items:
        for part in _chosen(model, item):
            part.requires_grad_(True)
    if model.new_tokens:
        train_rows(model)
    train_head(model)


def _chosen(model: Model, item: str) -> list[nn.Module | nn.Parameter]:
    """Modules and parameters that one item of the selection means."""
    network = model.transformer()
    if item == "head":
        return [model.network.get_submodule(name) for name in model.head_names] or _output_layer(model)
    if item == "embeddings":
        if model.reads_pictures:
            return before_layers(model)
        return [network.get_input_embeddings()]  # type: ignore[operator]  # every transformers model has it
    if item == "new tokens":  # they train in any case
        return []
    if item == "norms":
        return _found(model, item, [m for m in network.modules() if "Norm" in type(m).__name__])
    if item == "biases":
        return _found(model, item, [p for name, p in network.named_parameters() if name.endswith("bias")])
    if block_range(item, 0) is not None:
        return _blocks(model, item)
    return _found(model, item, [p for name, p in model.network.named_parameters() if _matches(name, item)])


def _matches(name: str, pattern: str) -> bool:
    """Whether a pattern names a parameter or a module above it."""
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, f"{pattern}.*")


def _blocks(model: Model, item: str) -> list[nn.Module | nn.Parameter]:
    blocks = model.blocks()
    numbers = block_range(item, len(blocks))
    assert numbers is not None
    if numbers.start < 0 or numbers.stop > len(blocks) or not len(numbers):
        raise RecipeError(
            f"{model.name} has {len(blocks)} layers, 0 to {len(blocks) - 1}, so `{item}` cannot be chosen",
            where="parameters.layers",
            fix=f"use `last {len(blocks)}` or fewer, a range up to {len(blocks) - 1}, or `kind: full`",
        )
    chosen: list[nn.Module | nn.Parameter] = [blocks[number] for number in numbers]
    if item.startswith("last") and model.reads_pictures:
        chosen += behind_layers(model)
    elif item.startswith("last"):
        for name, module in model.transformer().named_modules():
            if name.rsplit(".", 1)[-1] in LAST_NORMS and not any(f".{n}." in f".{name}." for n in range(len(blocks))):
                chosen.append(module)
    return chosen


def before_layers(model: Model) -> list[nn.Module | nn.Parameter]:
    """Parameters of the encoder that come before its layers, in the network's own order."""
    return _outside(model)[0]


def behind_layers(model: Model) -> list[nn.Module | nn.Parameter]:
    """Those that come behind them: what the last layer's output goes through before it is pooled."""
    return _outside(model)[1]


def _outside(model: Model) -> tuple[list[nn.Module | nn.Parameter], list[nn.Module | nn.Parameter]]:
    inside = {id(parameter) for block in model.blocks() for parameter in block.parameters()}
    before: list[nn.Module | nn.Parameter] = []
    behind: list[nn.Module | nn.Parameter] = []
    entered = False
    for parameter in model.transformer().parameters():
        if id(parameter) in inside:
            entered = True
        else:
            (behind if entered else before).append(parameter)
    return before, behind


def _output_layer(model: Model) -> list[nn.Module | nn.Parameter]:
    """A language model's head: the layer that scores the vocabulary (where tied, the embeddings as well)."""
    return [model.vocabulary_head()] if model.form == "generate" else []


def _found(model: Model, item: str, parts: list[nn.Module] | list[nn.Parameter]) -> list[nn.Module | nn.Parameter]:
    if parts:
        return [*parts]
    names = sorted({re.sub(r"\.\d+\.", ".*.", name) for name, _ in model.network.named_parameters()})
    near = difflib.get_close_matches(item, names, n=3, cutoff=0.3)
    raise RecipeError(
        f"`{item}` matches nothing in {model.name}",
        where="parameters.layers",
        fix=f"names here (`*` is any layer): {', '.join(near or names[:12])}",
    )
