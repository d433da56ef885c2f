"""Vision models: from pictures to one vector each, and a linear head on it."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from tunesmith.catalog import cache
from tunesmith.data.pictures import digest, read_picture
from tunesmith.errors import ResourceError, UsageError
from tunesmith.events import Listener, Progress, nobody
from tunesmith.models import classical, efficientnet
from tunesmith.models.load import quiet

PICTURES_A_PASS = 16
HEAD = "head.safetensors"
OWN = (cache.MANIFEST, HEAD, classical.ARRAYS, classical.SETTINGS)
"""Files of a base that are not copied from it."""


class ImageClassifier(nn.Module):
    """A vision encoder and a linear head on its pooled vector.

    Attributes:
        encoder: Gives feature maps (B, d, h, w), or hidden states of patches (B, P, d).
        prepare: From a picture to pixels (3, H, W), as the model was trained.
        classifier: The head.
    """

    def __init__(self, encoder: nn.Module, prepare: Callable[[Any], torch.Tensor], width: int, num_labels: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.prepare = prepare
        self.classifier: nn.Linear | classical.Neighbours | classical.Trees = nn.Linear(width, num_labels)

    def embed(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """The pooled vectors, (B, d)."""
        found = self.encoder(pixels_BCHW)
        if isinstance(found, torch.Tensor):
            return found.mean((2, 3))
        if getattr(found, "pooler_output", None) is not None:
            return cast(torch.Tensor, found.pooler_output.flatten(1))
        states = found.last_hidden_state
        return cast(torch.Tensor, states.mean((2, 3)) if states.ndim == 4 else states.mean(1))

    def forward(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """Logits, (B, C)."""
        return cast(torch.Tensor, self.classifier(self.embed(pixels_BCHW).to(classical.dtype_of(self.classifier))))

    def save(self, folder: Path, base: Path) -> None:
        """Write encoder and head: the base's own files, and the head beside them."""
        for path in base.iterdir():
            if path.is_file() and path.suffix in (".json", ".safetensors") and path.name not in OWN:
                shutil.copyfile(path, folder / path.name)
        if not isinstance(self.classifier, nn.Linear):
            classical.save(self.classifier, folder)
            return
        weights = {"weight": self.classifier.weight, "bias": self.classifier.bias}
        save_file({name: w.detach().contiguous().cpu() for name, w in weights.items()}, folder / HEAD)


def is_vision(folder: Path) -> bool:
    """Whether a folder holds a model that reads pictures and no text."""
    return bool(_config(folder).get("model_type") == efficientnet.MODEL_TYPE) or (
        (folder / "preprocessor_config.json").is_file() and not (folder / "tokenizer.json").is_file()
    )


def load_vision(
    folder: Path, *, name: str, labels: Sequence[str], device: torch.device | None = None
) -> ImageClassifier:
    """Load a vision model of the catalog, or one of transformers with its ``preprocessor_config.json``.

    Args:
        folder: Of the base model, or of a tuned one, whose head is read as well.
        name: What to call it in errors.
        labels: One output each.
        device: Where to put it.

    Raises:
        UsageError: The model reads no pictures.
        ResourceError: Files are missing or damaged.
    """
    if not is_vision(folder):
        raise UsageError(
            f"{name} reads no pictures", where="model", fix="use `efficientnet-lite0`, or a vision model in a folder"
        )
    try:
        if _config(folder).get("model_type") == efficientnet.MODEL_TYPE:
            network = _efficientnet(folder, len(labels))
        else:
            network = _of_transformers(folder, len(labels))
        network.classifier = classical.load(folder) or network.classifier
        if (folder / HEAD).is_file():
            network.classifier.load_state_dict(load_file(folder / HEAD))
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ResourceError(f"cannot load the model: {error}", where=str(folder)) from error
    network.requires_grad_(False)
    return network.to(device or torch.device("cpu")).eval()


def vectors(
    network: ImageClassifier, folder: Path, paths: Sequence[Path], *, on_event: Listener = nobody
) -> np.ndarray:
    """One vector a picture, (N, d) float64; those of pictures seen before by the same model come from the cache.

    Args:
        network: Of the untuned model: its encoder does not train.
        folder: Its folder, whose weights and settings are part of the key, as is each picture's content.
        paths: N pictures.
        on_event: Told the progress.
    """
    keys = [digest(path) for path in paths]
    store = cache.root() / "features" / f"{_key(folder)}.safetensors"
    known = _read(store)
    missing = {key: path for key, path in zip(keys, paths, strict=True) if key not in known}
    device = next(network.encoder.parameters()).device
    names = list(missing)
    with torch.inference_mode():
        for start in range(0, len(names), PICTURES_A_PASS):
            some = names[start : start + PICTURES_A_PASS]
            pixels = torch.stack([network.prepare(read_picture(missing[name])) for name in some])
            for name, vector in zip(some, network.embed(pixels.to(device)).float().cpu(), strict=True):
                known[name] = vector
            on_event(Progress(what="reading pictures", done=start + len(some), total=len(names)))
    if missing:
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

    from tunesmith.runs import write_bytes

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


def _efficientnet(folder: Path, num_labels: int) -> ImageClassifier:
    """The catalog's EfficientNet-Lite0, with the preprocessing that Google published with it."""
    encoder = efficientnet.EfficientNetLite0()
    encoder.load_state_dict(load_file(folder / "model.safetensors"))
    size = int(_config(folder).get("image_size", 224))

    def prepare(picture: Any) -> torch.Tensor:
        """Centre crop of 87.5 %, bicubic, (x - 127) / 128."""
        from PIL.Image import Resampling

        side = min(picture.size) * size / (size + 32)
        left, top = (picture.width - side) / 2, (picture.height - side) / 2
        box = (left, top, left + side, top + side)
        small = np.asarray(picture.resize((size, size), Resampling.BICUBIC, box=box), dtype=np.float32)
        return torch.from_numpy((small - 127.0) / 128.0).permute(2, 0, 1)

    return ImageClassifier(encoder, prepare, efficientnet.WIDTH, num_labels)


def _of_transformers(folder: Path, num_labels: int) -> ImageClassifier:
    """A model in transformers' format: its own processor, its own pooling or else the mean of its patches."""
    from transformers import AutoImageProcessor, AutoModel

    with quiet():
        options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
        processor = AutoImageProcessor.from_pretrained(folder, backend="pil", **options)
        encoder = AutoModel.from_pretrained(folder, use_safetensors=True, dtype=torch.float32, **options)
    config = encoder.config
    width = int(getattr(config, "hidden_size", None) or config.hidden_sizes[-1])

    def prepare(picture: Any) -> torch.Tensor:
        return cast(torch.Tensor, processor(picture, return_tensors="pt")["pixel_values"][0])

    return ImageClassifier(encoder, prepare, width, num_labels)
