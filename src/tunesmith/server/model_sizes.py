"""What models take in memory: guessed from their files before they are loaded, counted afterwards."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from tunesmith.models.model import Model
    from tunesmith.models.saving import ArtefactNotes

STORED = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Bytes of a weight in the number formats that take the model's own when they are loaded; int8 and others stay."""


def stored_bytes(folder: Path, dtype: torch.dtype) -> int:
    """Memory for the weights in a folder, once they are loaded in a number format.

    Args:
        folder: With safetensors.
        dtype: In which they are loaded, whatever they are stored in.
    """
    from safetensors import SafetensorError, safe_open

    total = 0
    for path in _weight_files(folder):
        total += path.stat().st_size
        with contextlib.suppress(SafetensorError), safe_open(path, "pt") as file:  # whoever loads it says what it has
            for name in file.keys():  # noqa: SIM118  # it is no mapping
                part = file.get_slice(name)
                if (stored := STORED.get(part.get_dtype())) is not None:
                    total += math.prod(part.get_shape()) * (dtype.itemsize - stored)
    return total


def _weight_files(folder: Path) -> list[Path]:
    """Those that are loaded: some makers ship the same weights once more, as ``consolidated.safetensors``."""
    names = {"model.safetensors", "adapter_model.safetensors"}
    with contextlib.suppress(OSError, ValueError, KeyError):  # no shards; or whoever loads them says what is wrong
        index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
        names = set(index["weight_map"].values())
    every = list(folder.glob("*.safetensors"))
    return [path for path in every if path.name in names] or every


def artefact_bytes(folder: Path, notes: ArtefactNotes) -> int:
    """Memory to load what a run made; for an adapter with its base, which is narrowed only once it is there.

    Raises:
        ResourceError: The base is not on this machine.
    """
    import torch

    from tunesmith.models.bases import find_base
    from tunesmith.models.saving import ONNX_FILE

    if (folder / ONNX_FILE).is_file():
        return (folder / ONNX_FILE).stat().st_size
    dtype = getattr(torch, notes.dtype)
    own = stored_bytes(folder, dtype)
    if not notes.adapter:
        return own
    return own + stored_bytes(find_base(notes, folder, fetch=False), dtype)


def loaded_bytes(model: Model) -> int:
    """Memory that the weights of a model take."""
    from tunesmith.compression.onnx_model import OnnxNetwork
    from tunesmith.models.quantized import weight_bytes
    from tunesmith.models.saving import ONNX_FILE

    outside = (model.folder / ONNX_FILE).stat().st_size if isinstance(model.network, OnnxNetwork) else 0
    return weight_bytes(model.network) + sum(buffer.nbytes for buffer in model.network.buffers()) + outside


def bytes_per_token(model: Model) -> int:
    """Keys and values of one token in all layers."""
    config: Any = model.transformer().config
    heads = int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
    width = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    return 2 * int(config.num_hidden_layers) * heads * width * model.dtype.itemsize
