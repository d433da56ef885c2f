"""What several devices would make of a plan: memory of each, and the time of talking to each other.

Formulae, for N devices, weights of W bytes and gradients of G bytes:

- DDP keeps everything on each device and adds up gradients in a ring, 2 (N - 1) / N G bytes sent by each
  (Patarasuk & Yuan 2009), while the backward pass goes on.
- FSDP2 keeps an N-th of weights, gradients and optimizer (ZeRO stage 3, arXiv 1910.02054) and gathers each layer when
  it is needed: (N - 1) / N (2 W + G) bytes, 1.5 times what DDP sends where all weights train.

This version trains on one device; the figures say what more would bring, and are checked against no measurement.
"""

from __future__ import annotations

from typing import Any

from tunesmith.planning.machine import Machine
from tunesmith.planning.result import Plan, StagePlan

BUCKET_BYTES = 25 * 2**20
"""DDP's bucket of gradients (torch's default), of which two are on their way at a time."""
GATHERED_LAYERS = 2
"""Layers whose weights FSDP2 holds whole: the one at work, and the one that is being fetched."""
PCIE_BYTES = 25e9
"""Bytes a second in one direction over PCIe 4.0 x16, of 32 by the standard, where devices have no link of their own."""
OVERLAP = 0.7
"""Share of the talking that is hidden behind the arithmetic; an assumption."""


def of_several(made: Plan, machine: Machine, devices: int) -> list[dict[str, Any]]:
    """Memory, time and cost of both strategies, each as a row for ``--json``."""
    stage = max(made.stages, key=lambda part: part.memory.expected)
    layers = max(1, sum(_layers_in(part.module) for part in stage.parts))
    rows = []
    for strategy in ("ddp", "fsdp2"):
        memory = _memory(stage, strategy, devices, layers)
        talking = _seconds(stage, strategy, devices, machine)
        working = made.seconds.expected / devices
        took = working + max((1 - OVERLAP) * talking, talking - working)
        rows.append(
            {
                "strategy": strategy,
                "devices": devices,
                "memory_bytes_each": int(memory),
                "fits": memory * (stage.memory.high / stage.memory.expected) <= machine.memory_bytes,
                "communication_seconds": round(talking, 1),
                "seconds": round(took, 1),
                "cost_usd": None if machine.price is None else round(took * devices * machine.price / 3600, 4),
            }
        )
    return rows


def _memory(stage: StagePlan, strategy: str, devices: int, layers: int) -> float:
    parts = stage.memory_parts
    states = parts["weights"] + parts["gradients"] + parts["optimizer"]
    others = sum(parts.values()) - states
    if strategy == "ddp":
        return states + others + 2 * BUCKET_BYTES
    return states / devices + GATHERED_LAYERS * parts["weights"] / layers + others


def _seconds(stage: StagePlan, strategy: str, devices: int, machine: Machine) -> float:
    """Of all updates. An update sends gradients once, but gathers weights in each of its passes."""
    weights, gradients = stage.memory_parts["weights"], stage.memory_parts["gradients"]
    others = (devices - 1) / devices
    an_update = 2 * others * gradients if strategy == "ddp" else others * (2 * weights + gradients)
    return stage.steps * an_update / (machine.link or PCIE_BYTES)


def _layers_in(module: str) -> int:
    """How many layers a row of the table of parts stands for."""
    if not module.startswith("layers "):
        return 0
    first, _, last = module.removeprefix("layers ").partition("-")
    return int(last or first) - int(first) + 1
