"""The plan for pictures: every picture goes once through the frozen network, so one is tried."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.planning.costs import Range
from tunesmith.planning.machine import Machine
from tunesmith.planning.result import Plan

if TYPE_CHECKING:
    from tunesmith.data.prepare import PreparedData
    from tunesmith.recipe import Recipe


def plan_pictures(recipe: Recipe, folder: Path, data: PreparedData, machine: Machine) -> Plan:
    """Read and embed one picture, and say that the rest take as long."""
    import torch

    from tunesmith.data.pictures import read_picture
    from tunesmith.models.precision import default_device
    from tunesmith.models.vision import load_vision

    network = load_vision(folder, name=recipe.model, labels=data.labels or [""], device=default_device())
    seconds = 0.0
    for path in [str(row.fields["image"]) for row in data.train][:1] * 2:  # the first time is a warm-up
        started = time.perf_counter()
        with torch.inference_mode():
            network.embed(network.prepare(read_picture(Path(path)))[None].to(default_device()))
        seconds = time.perf_counter() - started
    total = sum(p.numel() for p in network.parameters())
    need = Range(4.0 * total + 2e8, 4.0 * total + 8e8, 4.0 * total + 2e9)
    pictures = len(data.train) + len(data.validation)
    return Plan(
        trainable_parameters=sum(p.numel() for p in network.classifier.parameters()),
        total_parameters=total,
        tokens=0,
        steps=0,
        memory_bytes=need,
        seconds=Range(0.5 * seconds * pictures, seconds * pictures, 2.0 * seconds * pictures + 5.0),
        fits=need.high <= machine.memory_bytes,
        advice=(),
        machine=machine.name,
        free_bytes=machine.memory_bytes,
        cost=None,
    )
