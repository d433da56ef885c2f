"""What a machine can do: this one, measured in a second and remembered for an hour, or one of the table."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

    from tunesmith.planning.hardware import Hardware

SPEED_SECONDS = 3600
"""How long a measurement of this machine is believed."""
RATES = ("fp32", "bf16", "copy", "draws")
START_SECONDS = {"cpu": 8e-6, "cuda": 6e-6}
"""Time to start one operation from Python: what small ones take at least."""
PEAK_SHARE = 0.8
"""Of a datasheet's arithmetic: an H100 measures 798 of its 989 TFLOP/s on a product of 8192 cubed."""
BUS_SHARE = 0.9
"""Of a datasheet's memory bandwidth: an H100 measures 3.0 of 3.35 TB/s."""
HALF_SPEED_SIDE = 120
"""A product whose shortest side is so long runs at half the processor's speed. Fitted to two runs of MiniLM-L6, of 160
and 1,000 tokens a pass, so it stands for other costs of small passes as well: by themselves, on one AVX-512 thread,
products of side 16 ran at 0.7 to 0.9 of the full speed in fp32 and 0.43 to 0.75 in bf16, of side 64 at 0.8 to 1.07. It
makes LoRA of high rank in large batches look too slow (docs/plan-accuracy.md)."""
PROBED_SIDE = 512  # of the products whose speed was measured
GPU_DRAWS = 4e10  # numbers a second; on a GPU they cost little more than writing them
HOST_BYTES = 450 * 2**20
"""Python with torch and transformers. A process that shows less has idle pages that the system took back for a while;
475 MB were seen here before the first weight."""


@dataclass(frozen=True)
class Machine:
    """What the arithmetic of a plan needs to know.

    Attributes:
        name: For people, and by which measurements of it are found again.
        kind: ``cpu`` or ``cuda``.
        fp32: FLOP/s of matrix products.
        bf16: The same in bf16.
        copy: Bytes read and written a second.
        draws: Random numbers a second that dropout draws.
        memory_bytes: What a run may take.
        process_bytes: What the process takes beside the run, where it counts.
        price: US dollars an hour; ``None`` if nobody said.
        price_note: Where the price is from, and of when.
        link: Bytes a second that a device sends to others while it receives as much; 0 if that is not known.
        here: Whether it is the machine that plans.
    """

    name: str
    kind: Literal["cpu", "cuda"]
    fp32: float
    bf16: float
    copy: float
    draws: float
    memory_bytes: int
    process_bytes: int = 0
    price: float | None = None
    price_note: str = ""
    link: float = 0.0
    here: bool = False

    def products(self, dtype: torch.dtype, shortest: float = PROBED_SIDE) -> float:
        """FLOP/s in a number format, of products whose shortest side is so long."""
        rate = self.bf16 if dtype.itemsize <= 2 else self.fp32 * 4 / dtype.itemsize
        if self.kind == "cuda":  # where small products are bound by memory or by their start
            return rate
        return rate * (1 + HALF_SPEED_SIDE / PROBED_SIDE) / (1 + HALF_SPEED_SIDE / max(1.0, shortest))

    @property
    def matrix_units(self) -> bool:
        """Whether it has units for products in bf16: with AMX they are 8 times as fast as in fp32, without it twice."""
        return self.kind == "cuda" or self.bf16 > 4 * self.fp32

    @property
    def start_seconds(self) -> float:
        """Time to start an operation."""
        return START_SECONDS[self.kind]


def this_machine(device: torch.device, hardware: Hardware | None = None) -> Machine:
    """The machine that this process runs on, with a price if the user's table names one for ``this``."""
    import psutil

    cpu = device.type == "cpu"
    return Machine(
        name=device_name(device),
        kind="cpu" if cpu else "cuda",
        **speed(device),
        memory_bytes=free_memory(device),
        process_bytes=max(HOST_BYTES, int(psutil.Process().memory_info().rss)) if cpu else 0,
        price=hardware.price_per_hour if hardware else None,
        price_note=hardware.price_note if hardware else "",
        here=True,
    )


def named(hardware: Hardware) -> Machine:
    """A machine of the table, at what is usually reached of its datasheet."""
    gpu = hardware.kind == "gpu"
    return Machine(
        name=hardware.name,
        kind="cuda" if gpu else "cpu",
        fp32=hardware.fp32_tflops * 1e12 * PEAK_SHARE,
        bf16=hardware.bf16_tflops * 1e12 * PEAK_SHARE,
        copy=hardware.bandwidth_gb * 1e9 * BUS_SHARE,
        draws=GPU_DRAWS if gpu else 1e9,
        memory_bytes=int(hardware.memory_gb * 1e9),
        process_bytes=0 if gpu else HOST_BYTES,
        price=hardware.price_per_hour,
        price_note=hardware.price_note,
        link=hardware.link_gb * 1e9,
    )


def slower(machine: Machine, factor: float) -> Machine:
    """The same machine at a fraction of its speed."""
    return replace(machine, **{rate: getattr(machine, rate) * factor for rate in RATES})


def device_name(device: torch.device) -> str:
    """By which measurements of this machine are found again."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name()
    from tunesmith import environment

    return f"{environment.machine()['processor']}, {torch.get_num_threads()} threads"


def speed(device: torch.device) -> dict[str, float]:
    """Rates of this machine: :data:`RATES`, in FLOP/s, bytes/s and numbers/s.

    Measured once an hour. The best that was ever seen counts: other work on the machine only makes it look slower.
    """
    import torch

    from tunesmith import disk, doctor
    from tunesmith.catalog import cache
    from tunesmith.errors import TunesmithError

    name = device_name(device)
    path = cache.root() / "speeds.json"
    device_and_torch = f"{name}, torch {torch.__version__}"
    every = _remembered(path)
    known = every.get(device_and_torch, {})
    if known and time.time() - known["time"] < SPEED_SECONDS:
        return {rate: known[rate] for rate in RATES}
    found = doctor.speed()
    rates = {
        "fp32": found["fp32_gflops"] * 1e9,
        "bf16": found["bf16_gflops"] * 1e9,
        "copy": _copy_rate(device),
        "draws": _draw_rate(device),
    }
    rates = {rate: max(value, known.get(rate, 0.0)) for rate, value in rates.items()}
    with contextlib.suppress(TunesmithError):  # without a cache folder it is measured again next time
        disk.write_json(path, every | {device_and_torch: {"time": time.time(), **rates}})
    return rates


def _remembered(path: Path) -> dict[str, dict[str, float]]:
    """Earlier rates and their time, by device and version of torch."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        return {name: {key: float(known[key]) for key in ("time", *RATES)} for name, known in tree.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # never measured, or by another version
        return {}


def _copy_rate(device: torch.device) -> float:
    """Bytes read and written a second by copying more than caches hold."""
    import torch

    from tunesmith.doctor import best_seconds

    source = torch.ones(16 * 2**20, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / best_seconds(lambda: target.copy_(source), device)


def _draw_rate(device: torch.device) -> float:
    """Numbers drawn a second for dropout, which takes one thread of a processor."""
    import torch

    from tunesmith.doctor import best_seconds
    from tunesmith.models.dropout import draw

    mask = torch.empty(2**18, device=device)
    work = mask.bernoulli_ if device.type == "cuda" else lambda: draw(mask.numel())
    return mask.numel() / best_seconds(work, device, threads=1)


def free_memory(device: torch.device) -> int:
    """Bytes that a run could take now: of the device, or of the machine within its container's limit."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    from tunesmith import environment

    return min(int(psutil.virtual_memory().available), environment.usable_memory())
