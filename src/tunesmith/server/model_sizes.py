"""What models take in memory: guessed from their files before they are loaded, counted afterwards."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from tunesmith.models.model import Model
    from tunesmith.models.saving import ArtefactNotes

STORED = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Bytes of a weight in the number formats that take the model's own when they are loaded; int8 and others stay."""
NARROWED = {"int8": 1.0, "int4": 0.5}
"""Bytes of a weight that is narrowed once it is loaded."""


def stored_bytes(folder: Path, dtype: torch.dtype, quantization: str = "none") -> int:
    """Memory for the weights in a folder, once they are loaded in a number format.

    Args:
        folder: With safetensors.
        dtype: In which they are loaded, whatever they are stored in.
        quantization: How they are narrowed then.
    """
    from safetensors import SafetensorError, safe_open

    width = NARROWED.get(quantization, dtype.itemsize)
    total = 0.0
    for path in folder.glob("*.safetensors"):
        total += path.stat().st_size
        with contextlib.suppress(SafetensorError), safe_open(path, "pt") as file:  # whoever loads it says what it has
            for name in file.keys():  # noqa: SIM118  # it is no mapping
                part = file.get_slice(name)
                if (stored := STORED.get(part.get_dtype())) is not None:
                    total += math.prod(part.get_shape()) * (width - stored)
    return int(total)


def artefact_bytes(folder: Path, notes: ArtefactNotes) -> int:
    """Memory for what a run made; for an adapter with its base.

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
    return own + stored_bytes(find_base(notes, folder, fetch=False), dtype, notes.quantization)


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
