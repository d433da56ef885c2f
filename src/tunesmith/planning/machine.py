"""What this machine can do, measured in a second and remembered for an hour."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

SPEED_SECONDS = 3600
"""How long a measurement of this machine is believed."""
RATES = ("fp32", "bf16", "copy")


def speed(device: torch.device) -> dict[str, float]:
    """Rates of this machine: ``fp32`` and ``bf16`` products in FLOP/s, ``copy`` in bytes/s.

    Measured once an hour. The best that was ever seen counts: other work on the machine only makes it look slower.
    """
    import torch

    from tunesmith import doctor
    from tunesmith.catalog import cache

    name = torch.cuda.get_device_name() if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    path = cache.root() / "speed.json"
    known = _remembered(path, name, torch.__version__)
    if known and time.time() - known["time"] < SPEED_SECONDS:
        return {rate: known[rate] for rate in RATES}
    found = doctor.speed()
    rates = {"fp32": found["fp32_gflops"] * 1e9, "bf16": found["bf16_gflops"] * 1e9, "copy": _copy_rate(device)}
    rates = {rate: max(value, known.get(rate, 0.0)) for rate, value in rates.items()}
    with contextlib.suppress(OSError):  # without a cache folder it is measured again next time
        path.parent.mkdir(parents=True, exist_ok=True)
        cache.write_json(path, {"device": name, "torch": torch.__version__, "time": time.time(), **rates})
    return rates


def _remembered(path: Path, device: str, version: str) -> dict[str, float]:
    """Earlier rates and their time, if they are of this device and this torch; else nothing."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        if (known["device"], known["torch"]) != (device, version):
            return {}
        return {key: float(known[key]) for key in ("time", *RATES)}
    except (OSError, ValueError, KeyError, TypeError):  # never measured, or by another version of this function
        return {}


def _copy_rate(device: torch.device) -> float:
    """Bytes read and written a second by copying 64 MB, the best of five."""
    import torch

    source = torch.ones(16 * 2**20, device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(5):
        if device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        target.copy_(source)
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return 2 * source.nbytes / best


def free_memory(device: torch.device) -> int:
    """Bytes that a run could take now: of the device, or of the machine within its container's limit."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    from tunesmith import doctor

    return min(int(psutil.virtual_memory().available), doctor.usable_memory())
