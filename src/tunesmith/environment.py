"""Where a run happens: versions, and the machine as far as this process may use it.

For the record, for the identity of checkpoints, and for :mod:`tunesmith.doctor`, which judges it.
"""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "peft", "tokenizers", "safetensors", "datasets", "scikit-learn", "numpy")


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of those that decide numbers."""
    found = {"python": platform.python_version(), "tunesmith": _version("tunesmith")}
    return found | {name: _version(name) for name in PACKAGES}


def machine() -> dict[str, str]:
    """The machine in words; no host name, no user."""
    import psutil
    import torch

    from tunesmith.models.precision import cpu_flags

    fast = sorted(cpu_flags() & {"amx_bf16", "avx512_bf16", "avx512f", "avx2"})
    facts = {
        "system": system(),
        "processor": f"{processor()} ({', '.join(fast)})" if fast else processor(),
        "cores": str(usable_cores()),
        "threads": str(torch.get_num_threads()),
        "memory": f"{psutil.virtual_memory().total / 2**30:.1f} GiB",
    }
    if torch.cuda.is_available():
        facts["gpu"] = ", ".join(torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count()))
    return facts


def system() -> str:
    """The operating system and the kind of processor that it was built for."""
    return f"{platform.system()} {platform.machine()}"


def processor() -> str:
    """The processor's name."""
    for line in _read("/proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """Cores that this process may use: its affinity, and the quota of its container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _read("/sys/fs/cgroup/cpu.max").partition(" ")
    if quota.isdigit() and period.strip().isdigit():
        cores = min(cores, max(1, round(int(quota) / int(period))))
    return cores


def usable_memory() -> int:
    """Bytes of memory that this process may use: the machine's, or the limit of its container."""
    import psutil

    limit = _read("/sys/fs/cgroup/memory.max").strip()
    total = int(psutil.virtual_memory().total)
    return min(total, int(limit)) if limit.isdigit() else total


def describe() -> dict[str, Any]:
    """The content of ``environment.json``."""
    return {"versions": versions(), "machine": machine(), "command": sys.argv[0].rsplit("/", 1)[-1]}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def _read(path: str) -> str:
    """A file of the system, or nothing where this system has no such file."""
    if not sys.platform.startswith("linux"):
        return ""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
