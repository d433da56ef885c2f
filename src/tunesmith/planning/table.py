"""The table of what trains: the network's parts from input to output, with their parameters."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunesmith.models.model import Model

_WRAPPERS = (
    "encoder.",
    "base_model.model.",
    "base_model.",
    "bert.",
    "roberta.",
    "distilbert.",
    "model.",
    "transformer.",
)
"""What stands before the names of parts: sentence head, PEFT, and the architectures' own."""


@dataclass(frozen=True)
class Part:
    """One row.

    Attributes:
        module: Name of the part; layers with the same counts share a row, as ``layers 0-11``.
        total: Parameters, those added included.
        trainable: How many of them train.
    """

    module: str
    total: int
    trainable: int

    def as_dict(self) -> dict[str, Any]:
        """The row as ``tunesmith plan --json`` prints it."""
        return asdict(self)


def parts_of(model: Model) -> list[Part]:
    """The rows of a model, in its own order; shared parameters are counted once, where they come first."""
    blocks = {id(p): number for number, block in enumerate(model.blocks()) for p in block.parameters()}
    counts: dict[str | int, list[int]] = {}
    for name, parameter in model.network.named_parameters():
        row = counts.setdefault(blocks.get(id(parameter), _short(name)), [0, 0])
        row[0] += parameter.numel()
        row[1] += parameter.numel() * parameter.requires_grad
    found: list[Part] = []
    first = 0
    for key, (total, trainable) in counts.items():
        if not isinstance(key, int):
            found.append(Part(key, total, trainable))
            continue
        before = found[-1] if found else None
        if before and before.module.startswith("layers ") and (before.total, before.trainable) == (total, trainable):
            found[-1] = Part(f"layers {first}-{key}", total, trainable)
        else:
            first = key
            found.append(Part(f"layers {key}", total, trainable))
    return [_all_layers(part) for part in found]


def _all_layers(part: Part) -> Part:
    """A row of several layers with the sums over them."""
    first, dash, last = part.module.removeprefix("layers ").partition("-")
    if not part.module.startswith("layers ") or not dash:
        return part
    count = int(last) - int(first) + 1
    return Part(part.module, part.total * count, part.trainable * count)


def _short(name: str) -> str:
    """The part that a parameter outside the layers belongs to, e.g. ``embeddings`` or ``classifier``."""
    stripped = True
    while stripped:
        stripped = False
        for prefix in _WRAPPERS:
            if name.startswith(prefix):
                name, stripped = name.removeprefix(prefix), True
    return name.split(".")[0]
