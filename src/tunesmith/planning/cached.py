"""What the cache of frozen layers (:mod:`tunesmith.training.frozen_cache`) spares, and what it takes on disk."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tunesmith import objectives
from tunesmith.models.frozen import FrozenPrefix, frozen_layers
from tunesmith.planning.costs import Network
from tunesmith.planning.dry_run import Layout, without_first
from tunesmith.training import frozen_cache

if TYPE_CHECKING:
    from tunesmith.models.model import Model
    from tunesmith.planning.machine import Machine
    from tunesmith.recipe import ObjectiveName, Training

REWARDED = ("ppo", "grpo")
"""Objectives that learn from new texts in each epoch, and that cannot be made before their judges are."""


@dataclass(frozen=True)
class Cached:
    """A stage whose frozen layers are computed once.

    Attributes:
        network: What is computed in each pass: all above these layers.
        bytes: Of their output on disk.
    """

    network: Network
    bytes: float


def cached(
    model: Model,
    network: Network,
    objective: ObjectiveName,
    training: Training,
    machine: Machine,
    tokens: float,
    largest: Layout,
    *,
    once: bool,
) -> Cached | None:
    """The stage with a cache, if the run will make one; ``None`` if not.

    Args:
        model: On the meta device, with what trains.
        network: Of the whole model.
        objective: What is minimised.
        training: All defaults filled in.
        machine: Where it would run.
        tokens: Of training and validation rows.
        largest: The largest pass.
        once: Whether no text is read twice.
    """
    count = frozen_layers(model)
    if training.cache == "off" or not count or (once and training.cache == "auto") or objective in REWARDED:
        return None
    width = int(cast(Any, model.transformer()).config.hidden_size)
    prefix = FrozenPrefix(model.blocks()[:count], [], width, model.dtype)
    needed = int(tokens * width * model.dtype.itemsize)
    free = frozen_cache.free_bytes(Path(training.cache_folder or ".")) if machine.here else math.inf
    made = objectives.make(objective, training)
    if frozen_cache.hindrance(prefix, made, training, needed, int(min(free, 2**62))) is not None:
        return None
    with contextlib.suppress(RuntimeError, NotImplementedError, TypeError, AttributeError, ValueError, IndexError):
        above = without_first(model, count, machine, largest)
        return Cached(replace(network, scaled=above), needed)
    return None  # a network that cannot run dry is planned by formula, whole
