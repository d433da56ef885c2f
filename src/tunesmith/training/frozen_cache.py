"""What the frozen layers make of the data, computed once, kept on disk and read in each epoch.

It is kept by example, not by batch, since every epoch deals the examples into other batches. A copy that belongs to
other data, other weights, other layers or other versions of the libraries is made again, which is said.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tunesmith import environment, words
from tunesmith.catalog import cache
from tunesmith.data.batches import States, TokenFile, collate
from tunesmith.errors import RecipeError
from tunesmith.events import Listener, Notice, Progress
from tunesmith.models.frozen import FrozenPrefix
from tunesmith.models.model import Model
from tunesmith.objectives.base import Objective
from tunesmith.training.loop import WIDTH_MULTIPLE, batches_of_epoch, pieces
from tunesmith.training.settings import Training

FREE_SHARE = 0.5
"""Of the free space of the disk that the states may take."""


def remember(
    model: Model,
    objective: Objective,
    sets: dict[str, TokenFile],
    settings: Training,
    steps: int,
    folder: Path,
    tell: Listener,
) -> bool:
    """Give the data sets the states of the model's frozen layers, if that is possible and asked for, or pays.

    Args:
        model: Ready to train.
        objective: What will be minimised.
        sets: Training data under ``train``, and others that the loop goes through.
        settings: All defaults filled in.
        steps: Updates of the stage.
        folder: For the states, unless the settings name one.
        tell: Told of the cost, and of states that had to be made again.

    Returns:
        Whether they have states now.

    Raises:
        RecipeError: They are asked for and cannot be had.
    """
    prefix = model.prefix
    if prefix is not None and prefix.has_dropout():
        message = f"the {len(prefix.blocks)} frozen layers below what trains compute without dropout"
        tell(Notice(level="info", message=message))
    if settings.cache == "off":
        return False
    place = Path(settings.cache_folder) if settings.cache_folder else folder
    sets = {name: data for name, data in sets.items() if len(data)}
    states = sum(int(data.state_offsets[-1]) for data in sets.values())
    needed = 0 if prefix is None else states * prefix.width * prefix.dtype.itemsize
    obstacle = hindrance(prefix, objective, settings, needed, free_bytes(place))
    if obstacle is None and any(data.varies for data in sets.values()):
        obstacle = "`training.augment` shows the model other pictures in each epoch"
    if obstacle is not None and settings.cache == "on":
        raise RecipeError(
            f"the frozen layers cannot be cached: {obstacle}",
            where="training.cache",
            fix="use `cache: auto`, or `off`",
        )
    if prefix is None or obstacle is not None:
        if prefix is not None and objective.skips_frozen:
            tell(Notice(level="info", message=f"the frozen layers are computed in each epoch: {obstacle}"))
        return False
    if settings.cache == "auto" and steps <= len(batches_of_epoch(sets["train"].lengths, settings, 0)):
        return False  # every example is seen once: nothing would be read again
    message = f"{len(prefix.blocks)} frozen layers are computed once; their output takes {words.size(needed)} on disk"
    tell(Notice(level="info", message=message))
    weights = _digest(prefix, settings)
    for name, data in sets.items():
        data.states = _states(model, prefix, data, weights, place / f"frozen-{name}", settings, tell)
    return True


def hindrance(
    prefix: FrozenPrefix | None, objective: Objective, settings: Training, needed: int, free: int
) -> str | None:
    """Why the states cannot be kept."""
    if prefix is None:
        return "there are none, or more than hidden states passes from layer to layer in this model"
    if not objective.skips_frozen:
        return f"the objective `{objective.name}` shows the model other texts in each epoch, or looks into its layers"
    if needed > settings.cache_gigabytes * 1e9:
        return f"their output takes {words.size(needed)}, more than `cache_gigabytes: {settings.cache_gigabytes:g}`"
    if needed > FREE_SHARE * free:
        return f"their output takes {words.size(needed)}, and {words.size(free)} of disk are free"
    return None


def free_bytes(place: Path) -> int:
    """Free space of the disk that a folder is or will be on."""
    existing = next(folder for folder in (place, *place.absolute().parents) if folder.is_dir())
    return shutil.disk_usage(existing).free


def _states(
    model: Model,
    prefix: FrozenPrefix,
    data: TokenFile,
    weights: str,
    folder: Path,
    settings: Training,
    tell: Listener,
) -> States:
    """The states of a data set, from its folder or computed into it."""
    size = (int(data.state_offsets[-1]), prefix.width)
    key = {
        "data": data.digest,
        "weights": weights,
        "layers": len(prefix.blocks),
        "dtype": str(prefix.dtype),
        "size": size,
        **environment.versions(),
    }

    def build(staging: Path) -> dict[str, Any]:
        states_Td = _mapped(staging, size, prefix.dtype, new=True)
        assert settings.micro_tokens is not None, "the loop's settings"
        _compute(model, prefix, data, states_Td, settings.micro_tokens, tell)
        return {}

    cache.ensure(folder, build, key=key, on_event=tell)
    return States(data.state_offsets, _mapped(folder, size, prefix.dtype))


def _mapped(folder: Path, size: tuple[int, int], dtype: torch.dtype, *, new: bool = False) -> torch.Tensor:
    path, numbers = folder / "states.bin", size[0] * size[1]
    if new:
        _reserve(path, numbers * dtype.itemsize)
    return torch.from_file(str(path), shared=new, size=numbers, dtype=dtype).view(size)


def _reserve(path: Path, size: int) -> None:
    """Make a file of a size: a full disk is an error now, not a signal in the middle of a write to mapped memory.

    Raises:
        OSError: There is no room.
    """
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(file.fileno(), 0, size)
                return
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # a file system that cannot
                    raise
        if free_bytes(path.parent) < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        file.truncate(size)


def _compute(
    model: Model, prefix: FrozenPrefix, data: TokenFile, states_Td: torch.Tensor, micro_tokens: int, tell: Listener
) -> None:
    """Fill in the states of all tokens, texts of like lengths together; or of all pictures."""
    model.network.eval()
    done = 0
    with torch.inference_mode():
        for rows in pieces(model, data, np.arange(len(data)), micro_tokens):
            batch = collate(data, rows.tolist(), model.pad_id, WIDTH_MULTIPLE).to(model.device)
            found_BSd = prefix.states(functools.partial(model.read, batch)).cpu()
            for row, found_Sd in zip(rows.tolist(), found_BSd, strict=True):
                begin, end = int(data.state_offsets[row]), int(data.state_offsets[row + 1])
                states_Td[begin:end] = found_Sd[: end - begin]
            done += len(rows)
            tell(Progress(what="computing the frozen layers", done=done, total=len(data)))


def _digest(prefix: FrozenPrefix, settings: Training) -> str:
    """Identifies what the frozen layers compute with."""
    digest = hashlib.blake2b((settings.quantization_aware or "").encode(), digest_size=16)
    for part in prefix.parts:
        for name, tensor in part.state_dict().items():
            digest.update(name.encode())
            for values in _bytes(tensor):
                digest.update(values)
    return digest.hexdigest()


def _bytes(tensor: torch.Tensor) -> Iterator[memoryview]:
    """A tensor's bytes; of a quantized one those of the tensors that it is made of."""
    if hasattr(tensor, "__tensor_flatten__"):
        for name in tensor.__tensor_flatten__()[0]:
            yield from _bytes(getattr(tensor, name))
    else:
        yield tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
