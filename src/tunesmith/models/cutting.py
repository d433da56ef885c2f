"""A smaller model cut from a larger one: fewer layers, narrower feed-forward layers, the weights of what is left.

Layers at even distances: Sanh et al. 2019, "DistilBERT" (arXiv 1910.01108, section 3), take one of two. Neurons by the
norms of the weights that lead into them and out of them, within each layer (structured magnitude pruning).
"""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tunesmith import catalog, disk
from tunesmith.catalog import cache
from tunesmith.errors import RecipeError
from tunesmith.events import Listener, Phase, nobody
from tunesmith.models.load import load_config, quiet
from tunesmith.models.model import layers_of
from tunesmith.models.settings import Student
from tunesmith.recipe import Recipe

COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
"""What configurations call the number of layers."""
WIDTHS = ("intermediate_size", "n_inner", "hidden_dim", "ffn_dim", "d_ff")
"""What they call the number of neurons of a feed-forward layer."""


def base_folder(recipe: Recipe, on_event: Listener = nobody) -> Path:
    """The folder of the model that a recipe begins with: the one it names, cut if the recipe says so.

    Raises:
        NotFoundError: There is no such model.
        RecipeError: It cannot be cut like this.
    """
    folder = catalog.model_folder(recipe.model, on_event=on_event)
    return folder if recipe.student is None else cut(folder, recipe.student, on_event=on_event)


def base_title(recipe: Recipe) -> str:
    """What tables call that model."""
    student = recipe.student
    if student is None:
        return recipe.model
    layers = f"to {student.layers} layers" if student.layers is not None else ""
    neurons = f"to {student.neurons:.0%} of the neurons" if student.neurons < 1 else ""
    return f"{recipe.model} cut {' and '.join(filter(None, (layers, neurons)))}"


def cut(source: Path, student: Student, *, on_event: Listener = nobody) -> Path:
    """The folder of a smaller model, kept in the user's cache under what it was made from.

    Args:
        source: Folder of the larger model.
        student: What shall be left.
        on_event: Told when it is made.

    Raises:
        RecipeError: The model has no such layers.
    """
    key = {"source": fingerprint(source), "student": student.model_dump(), "format": 1}
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]

    def build(staging: Path) -> dict[str, Any]:
        on_event(Phase(step="model", message=f"cutting the student from {source.name}"))
        return _write(source, student, staging)

    return cache.ensure(cache.root() / "students" / digest, build, key=key, on_event=on_event)


def fingerprint(folder: Path) -> str:
    """Identity of a model folder by the content of its configuration, tokenizer and weights."""
    files = [p for p in sorted(folder.rglob("*")) if p.suffix in (".json", ".safetensors") and p.name != cache.MANIFEST]
    states = tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files)
    return _fingerprint(folder, states)


@functools.lru_cache
def _fingerprint(folder: Path, states: tuple[tuple[str, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for name, _, _ in states:
        digest.update(f"{Path(name).relative_to(folder)}:{disk.sha256(Path(name))};".encode())
    return digest.hexdigest()[:16]


def kept_layers(total: int, kept: int) -> list[int]:
    """Which of ``total`` layers are kept: evenly spaced, with the first and the last."""
    if kept == 1:
        return [0]
    return [(number * (total - 1) + (kept - 1) // 2) // (kept - 1) for number in range(kept)]


def _write(source: Path, student: Student, target: Path) -> dict[str, Any]:
    """Fill ``target`` with the cut model and everything that lies beside its weights."""
    network = _load(source)
    notes: dict[str, Any] = {}
    if student.layers is not None:
        notes["layers"] = _keep_layers(network, student.layers)
    if student.neurons < 1:
        notes["neurons"] = _keep_neurons(network, student.neurons)
    shutil.copytree(source, target, dirs_exist_ok=True, ignore=functools.partial(_own_weights, source))
    with quiet():
        network.save_pretrained(target)
    return notes


def _own_weights(source: Path, folder: str, names: list[str]) -> list[str]:
    """What the cut model has anew. Weights in folders below are of heads that stand on it: they are kept."""
    if Path(folder) != source:
        return []
    return [n for n in names if ".safetensors" in n or n in ("config.json", cache.MANIFEST)]


def _load(source: Path) -> Any:
    """The model in the class that its files are of, so that its head is kept too."""
    import transformers

    config = load_config(source)
    name = (getattr(config, "architectures", None) or ["AutoModel"])[0]
    kind = getattr(transformers, name, transformers.AutoModel)
    with quiet():
        return kind.from_pretrained(source, dtype="auto", local_files_only=True, use_safetensors=True)


def _keep_layers(network: Any, kept: int) -> list[int]:
    """Drop layers in place, and what the configuration says of each of them."""
    chosen = kept_layers(len(layers_of(network)), kept)
    keep_layers(network, chosen, where="student.layers")
    return chosen


def keep_layers(network: Any, chosen: Sequence[int], *, where: str) -> None:
    """Drop all other layers in place, and what the configuration says of each of them.

    Raises:
        RecipeError: There are no such layers, or it is an encoder-decoder model.
    """
    layers, kept = layers_of(network), len(chosen)
    count = next((name for name in COUNTS if getattr(network.config, name, None) == len(layers)), None)
    holder = next((m for m in network.modules() if isinstance(m, nn.ModuleList) and list(m) == layers), None)
    missing = max(chosen) >= len(layers) or len({*chosen}) < kept
    if count is None or holder is None or missing or network.config.is_encoder_decoder:
        has = "is an encoder-decoder" if network.config.is_encoder_decoder else f"has {len(layers)} layers"
        raise RecipeError(
            f"the model {has}, of which {kept} cannot be kept",
            where=where,
            fix=f"give a number from 1 to {len(layers) - 1}, or another model",
        )
    for name, value in vars(network.config).items():  # `layer_types` and the like
        if "layer" in name and isinstance(value, list) and len(value) == len(layers):
            setattr(network.config, name, [value[number] for number in chosen])
    setattr(network.config, count, kept)
    for number in reversed(range(len(layers))):
        if number not in chosen:
            del holder[number]


def _keep_neurons(network: Any, share: float) -> int:
    """Keep the neurons with the largest weights of each feed-forward layer, in their order, in place."""
    name = next((name for name in WIDTHS if isinstance(getattr(network.config, name, None), int)), None)
    width = getattr(network.config, name) if name else 0
    groups = [_feed_forward(layer, width) for layer in layers_of(network)]
    if name is None or not groups or not all(into and out for into, out in groups):
        raise RecipeError(
            "the feed-forward layers of this model are not of a kind whose neurons can be taken out",
            where="student.neurons",
            fix="leave out `neurons` and cut `layers`, or take another model",
        )
    kept = max(1, round(share * width))
    for into, out in groups:
        norms_n = sum(m.weight.detach().float().square().sum(1) for m in into) + sum(
            m.weight.detach().float().square().sum(0) for m in out
        )
        chosen = torch.as_tensor(norms_n).topk(kept).indices.sort().values
        for module in into:
            module.weight = nn.Parameter(module.weight.detach()[chosen].clone())
            module.out_features = kept
            if module.bias is not None:
                module.bias = nn.Parameter(module.bias.detach()[chosen].clone())
        for module in out:
            module.weight = nn.Parameter(module.weight.detach()[:, chosen].clone())
            module.in_features = kept
    setattr(network.config, name, kept)
    return kept


def _feed_forward(layer: nn.Module, width: int) -> tuple[list[nn.Linear], list[nn.Linear]]:
    """The products that lead into the neurons of a layer, and those that lead out of them."""
    linear = [module for module in layer.modules() if isinstance(module, nn.Linear)]
    into = [module for module in linear if module.out_features == width != module.in_features]
    out = [module for module in linear if module.in_features == width != module.out_features]
    return into, out
