"""Which number format this hardware multiplies fast."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.recipe import Precision

if TYPE_CHECKING:
    import torch

FAST_BF16_FLAGS = frozenset({"amx_bf16", "avx512_bf16", "bf16"})
"""Processor flags (x86 and Arm) that mean bf16 products in hardware."""

MATRIX_FLAG = "amx_bf16"
"""Of a processor with units for products of matrices."""


@functools.cache
def cpu_flags() -> frozenset[str]:
    """Flags of this machine's processor, as the kernel names them; empty where it does not say."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    for line in text.splitlines():
        if line.lower().startswith(("flags", "features")):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


def default_device() -> torch.device:
    """The device that a run uses: a GPU if there is one."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("cpu")


def choose_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """The dtype of weights and activations. With bf16 the optimizer keeps fp32 masters of what trains."""
    import torch

    if precision != "auto":
        return {"bf16": torch.bfloat16, "fp32": torch.float32, "fp64": torch.float64}[precision]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if FAST_BF16_FLAGS & cpu_flags() else torch.float32
