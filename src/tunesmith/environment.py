"""Where a run happens: versions and machine, for the record and for the identity of checkpoints."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
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

    facts = {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "memory": f"{psutil.virtual_memory().total / 2**30:.1f} GiB",
    }
    if torch.cuda.is_available():
        facts["gpu"] = ", ".join(torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count()))
    return facts


def describe() -> dict[str, Any]:
    """The content of ``environment.json``."""
    return {"versions": versions(), "machine": machine(), "command": sys.argv[0].rsplit("/", 1)[-1]}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def _processor() -> str:
    from tunesmith.models.precision import cpu_flags

    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    except OSError:
        pass
    fast = sorted(cpu_flags() & {"amx_bf16", "avx512_bf16", "avx512f", "avx2"})
    return f"{name} ({', '.join(fast)})" if fast else name
