"""Vision models: loaded, and asked for vectors and labels of pictures."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from tunesmith.catalog import cache
from tunesmith.data.pictures import digest, read_picture
from tunesmith.errors import ResourceError, UsageError
from tunesmith.events import Listener, Progress, nobody
from tunesmith.models import classical, efficientnet
from tunesmith.models.image_classifier import HEAD, OWN, ImageClassifier
from tunesmith.models.load import quiet, set_dropout

PICTURES_A_PASS = 16


def is_vision(folder: Path) -> bool:
    """Whether a folder holds a model that reads pictures and no text."""
    return bool(_config(folder).get("model_type") == efficientnet.MODEL_TYPE) or (
        (folder / "preprocessor_config.json").is_file() and not (folder / "tokenizer.json").is_file()
    )


def refuse_blind(folder: Path, name: str) -> None:
    """Models that read no pictures are refused.

    Raises:
        UsageError: This is one.
    """
    if not is_vision(folder):
        raise UsageError(
            f"{name} reads no pictures", where="model", fix="use `efficientnet-lite0`, or a vision model in a folder"
        )


def load_vision(
    folder: Path,
    *,
    name: str,
    labels: Sequence[str],
    device: torch.device | None = None,
    dropout: float | None = None,
) -> ImageClassifier:
    """Load a vision model of the catalog, or one of transformers with its ``preprocessor_config.json``.

    Args:
        folder: Of the base model, or of a tuned one, whose head is read as well if it is for these labels.
        name: What to call it in errors.
        labels: One output each.
        device: Where to put it.
        dropout: Before the head, and in place of every dropout probability of the model's own.

    Raises:
        UsageError: The model reads no pictures.
        ResourceError: Files are missing or damaged.
    """
    refuse_blind(folder, name)
    try:
        if _config(folder).get("model_type") == efficientnet.MODEL_TYPE:
            network = _efficientnet(folder, len(labels), dropout)
        else:
            network = _of_transformers(folder, len(labels), dropout)
        network.classifier = classical.load(folder) or network.classifier
        if (folder / HEAD).is_file() and _head_labels(folder) in (None, list(labels)):
            network.classifier.load_state_dict(load_file(folder / HEAD))
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ResourceError(f"cannot load the model: {error}", where=str(folder)) from error
    network.requires_grad_(False)
    return network.to(device or torch.device("cpu")).eval()


def _head_labels(folder: Path) -> list[str] | None:
    """Labels of the head that was tuned, if the folder says."""
    notes = folder / "tunesmith.json"
    found: list[str] | None = json.loads(notes.read_text(encoding="utf-8")).get("labels") if notes.is_file() else None
    return found


def vectors(
    network: ImageClassifier, folder: Path, paths: Sequence[Path], *, on_event: Listener = nobody
) -> np.ndarray:
    """One vector a picture, (N, d) float64; those of pictures seen before by the same model come from the cache.

    Args:
        network: The model. There is no cache for an encoder that trained: it is no longer what its folder holds.
        folder: Its folder, whose weights and settings are part of the key, as is each picture's content.
        paths: N pictures.
        on_event: Told the progress.
    """
    keys = [digest(path) for path in paths]
    store = None if network.encoder_trains else cache.root() / "features" / f"{_key(folder)}.safetensors"
    known = {} if store is None else _read(store)
    missing = {key: path for key, path in zip(keys, paths, strict=True) if key not in known}
    device = next(network.encoder.parameters()).device
    names = list(missing)
    network.eval()
    with torch.inference_mode():
        for start in range(0, len(names), PICTURES_A_PASS):
            some = names[start : start + PICTURES_A_PASS]
            pixels = torch.stack([network.prepare(read_picture(missing[name])) for name in some])
            for name, vector in zip(some, network.embed(pixels.to(device)).float().cpu(), strict=True):
                known[name] = vector
            on_event(Progress(what="reading pictures", done=start + len(some), total=len(names)))
    if missing and store is not None:
        _write(store, known)
    return torch.stack([known[key] for key in keys]).double().numpy()


def probabilities(
    network: ImageClassifier, folder: Path, paths: Sequence[Path], *, on_event: Listener = nobody
) -> np.ndarray:
    """Softmax of the head's scores, (N, C) float64."""
    found = torch.from_numpy(vectors(network, folder, paths, on_event=on_event))
    head = copy.deepcopy(network.classifier).cpu().double()
    with torch.inference_mode():
        return torch.softmax(head(found), dim=-1).numpy()


def _read(store: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(store)
    except (OSError, SafetensorError):  # none yet, or broken off: it is made anew
        return {}


def _write(store: Path, known: dict[str, torch.Tensor]) -> None:
    from safetensors.torch import save

    from tunesmith.disk import write_bytes

    write_bytes(store, save({name: vector.clone() for name, vector in known.items()}))


def _key(folder: Path) -> str:
    parts = [digest(path) for path in sorted(folder.glob("*.safetensors")) if path.name not in OWN]
    parts += [digest(path) for path in sorted(folder.glob("*config.json"))]
    return "-".join(part[:10] for part in parts)


def _config(folder: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found


def _efficientnet(folder: Path, num_labels: int, dropout: float | None) -> ImageClassifier:
    """The catalog's EfficientNet-Lite0, with the preprocessing that Google published with it.

    Its layer for the 1,000 classes of ImageNet is left out.
    """
    encoder = efficientnet.EfficientNetLite0()
    weights = load_file(folder / "model.safetensors")
    encoder.load_state_dict({name: weight for name, weight in weights.items() if not name.startswith("_fc.")})
    size = int(_config(folder).get("image_size", 224))

    def prepare(picture: Any) -> torch.Tensor:
        """Centre crop of 87.5 %, bicubic, (x - 127) / 128."""
        from PIL.Image import Resampling

        side = min(picture.size) * size / (size + 32)
        left, top = (picture.width - side) / 2, (picture.height - side) / 2
        box = (left, top, left + side, top + side)
        small = np.asarray(picture.resize((size, size), Resampling.BICUBIC, box=box), dtype=np.float32)
        return torch.from_numpy((small - 127.0) / 128.0).permute(2, 0, 1)

    return ImageClassifier(encoder, prepare, efficientnet.WIDTH, num_labels, dropout)


def _of_transformers(folder: Path, num_labels: int, dropout: float | None) -> ImageClassifier:
    """A model in transformers' format: its own processor, its own pooling or else the mean of its patches."""
    from transformers import AutoConfig, AutoImageProcessor, AutoModel

    with quiet():
        options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
        processor = AutoImageProcessor.from_pretrained(folder, backend="pil", **options)
        settings = AutoConfig.from_pretrained(folder, **options)
        if dropout is not None:
            set_dropout(settings, dropout)
        encoder = AutoModel.from_pretrained(
            folder, config=settings, use_safetensors=True, dtype=torch.float32, **options
        )
    config = encoder.config
    width = int(getattr(config, "hidden_size", None) or config.hidden_sizes[-1])

    def prepare(picture: Any) -> torch.Tensor:
        return cast(torch.Tensor, processor(picture, return_tensors="pt")["pixel_values"][0])

    return ImageClassifier(encoder, prepare, width, num_labels, dropout)
