"""Checkpoints that are whole or absent.

Contract: everything is staged in a temporary folder, files and folder are flushed to disk, a manifest with the sha256
of each file is written last, and the folder is renamed to its final name. Reading takes the newest checkpoint whose
manifest holds, and says which it skipped and why.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tunesmith import disk
from tunesmith.errors import CheckpointError, ResourceError

MANIFEST = "MANIFEST.json"
_PREFIX = "step-"


@dataclass(frozen=True)
class Checkpoint:
    """One complete checkpoint folder.

    Attributes:
        path: The folder.
        step: Updates done.
        trainer: Position, best value so far and identity.
        needs: The step of another checkpoint that the end of the run will need: the best so far.
    """

    path: Path
    step: int
    trainer: dict[str, Any]
    needs: int | None = None

    def weights(self) -> dict[str, torch.Tensor]:
        """Tensors of the parameters that train."""
        return load_file(self.path / "model.safetensors")

    def optimizer(self) -> dict[str, torch.Tensor]:
        """Masters, moments, and the state of the random generators."""
        return load_file(self.path / "optimizer.safetensors")


def save(
    folder: Path,
    step: int,
    *,
    weights: dict[str, torch.Tensor],
    optimizer: dict[str, torch.Tensor],
    trainer: dict[str, Any],
    needs: int | None = None,
) -> Checkpoint:
    """Write ``folder/step-00000120`` by the contract above.

    Args:
        folder: The stage's ``checkpoints`` folder.
        step: Updates done.
        weights: The parameters that train, by name.
        optimizer: Everything else that is a tensor.
        trainer: Position, best value so far and identity, as plain values.
        needs: The step of another checkpoint without which this one is of no use.

    Raises:
        ResourceError: The disk is full or not writable; nothing is left under the final name.
    """
    final = at(folder, step)
    staging = folder / f".staging-{uuid.uuid4().hex[:8]}"
    try:
        staging.mkdir(parents=True)
        save_file({k: v.contiguous().cpu() for k, v in weights.items()}, staging / "model.safetensors")
        save_file({k: v.contiguous().cpu() for k, v in optimizer.items()}, staging / "optimizer.safetensors")
        notes = {"step": step, "needs": needs, **trainer}
        (staging / "trainer.json").write_text(json.dumps(notes, indent=1), encoding="utf-8")
        files = sorted(path.name for path in staging.iterdir())
        manifest = {"files": {name: _flushed_sha256(staging / name) for name in files}}
        (staging / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        disk.flush(staging / MANIFEST)
        disk.flush(staging)
        if final.exists():  # the same step again after a resume: the same bytes, so the older may go
            shutil.rmtree(final)
        os.replace(staging, final)
        disk.flush(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(staging, ignore_errors=True)
        raise ResourceError(
            f"cannot write the checkpoint of step {step}: {error}",
            where=str(folder),
            fix="free some disk space, then go on with `tunesmith resume`; earlier checkpoints are intact",
        ) from error
    return Checkpoint(final, step, trainer, needs)


def at(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return folder / f"{_PREFIX}{step:08d}"


def newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest valid checkpoint, and a line for each newer one that had to be skipped.

    One whose best predecessor is damaged is skipped too: from an older one the way leads over the best again.
    """
    skipped: list[str] = []
    for path in sorted(folder.glob(f"{_PREFIX}*"), reverse=True):
        try:
            found = read(path)
            if found.needs is not None and found.needs != found.step:
                read(at(folder, found.needs))
            return found, skipped
        except CheckpointError as error:
            place = Path(error.where or path).relative_to(folder).parts[0]
            needed = f" (the best one, without which {path.name} is of no use)" if place != path.name else ""
            skipped.append(f"{place}: {error.what}{needed}")
    return None, skipped


def read(path: Path) -> Checkpoint:
    """Open a checkpoint and verify every byte of it.

    Raises:
        CheckpointError: A file is missing or differs from the manifest.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        for name, expected in manifest["files"].items():
            if disk.sha256(path / name) != expected:
                raise CheckpointError(f"{name} differs from its checksum", where=str(path / name))
        trainer = json.loads((path / "trainer.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"not a complete checkpoint: {error}", where=str(path)) from error
    return Checkpoint(path, int(trainer["step"]), trainer, trainer.get("needs"))


def best_steps(scores: Mapping[str, Sequence[float]], count: int) -> list[int]:
    """The steps of the ``count`` best validations, best first; of equals the earlier one, as the loop has it."""
    return sorted((int(step) for step in scores), key=lambda step: ([-x for x in scores[str(step)]], step))[:count]


def prune(folder: Path, keep: int, protected: set[int]) -> None:
    """Delete old checkpoints: the newest ``keep`` and those of ``protected`` steps stay."""
    paths = sorted(folder.glob(f"{_PREFIX}*"))
    for path in paths[:-keep]:
        if int(path.name.removeprefix(_PREFIX)) not in protected:
            shutil.rmtree(path, ignore_errors=True)
    for leftover in folder.glob(".staging-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def size(path: Path) -> int:
    """Bytes of a checkpoint on disk."""
    return sum(file.stat().st_size for file in path.iterdir())


def random_state() -> dict[str, torch.Tensor]:
    """The state of every generator that the loop draws from."""
    state = {"random.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state |= {f"random.cuda.{n}": value for n, value in enumerate(torch.cuda.get_rng_state_all())}
    return state


def set_random_state(tensors: dict[str, torch.Tensor]) -> None:
    """Put the generators back."""
    torch.set_rng_state(tensors["random.cpu"])
    cuda = [tensors[key] for key in sorted(tensors) if key.startswith("random.cuda.")]
    if cuda and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(cuda)


def _flushed_sha256(path: Path) -> str:
    disk.flush(path)
    return disk.sha256(path)


def check_identity(saved: dict[str, Any], now: dict[str, Any], where: str) -> None:
    """Refuse to go on from a checkpoint of other data, another recipe or other library versions.

    Raises:
        CheckpointError: Names every difference.
    """
    keys = [key for key in sorted(saved.keys() | now.keys()) if saved.get(key) != now.get(key)]
    if keys:
        differences = "; ".join(f"{key}: {saved.get(key)!r} then, {now.get(key)!r} now" for key in keys)
        raise CheckpointError(
            f"this checkpoint does not belong to this run ({differences})",
            where=where,
            fix="restore what changed, or start a new run",
        )
