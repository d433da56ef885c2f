"""Memory that tensors free stays with the process, where the C library allows it.

glibc gives every block above its mmap threshold (32 MB at most) back to the system when it is freed, and the next
tensor of that size is faulted in again, page by page. On a processor that costs more than the arithmetic on it: filling
a fresh tensor of 64 MB took 16 ms, filling a kept one 2.3 ms (two cores, AVX-512). Activations of every step are such
tensors.
"""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD = -1  # malloc.h: free memory at the top of the heap above which it is given back
M_MMAP_MAX = -4  # malloc.h: how many blocks may be mapped from the system one by one
LARGEST_INT = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed blocks for the next tensors; call it before the model is loaded.

    Blocks then come from the heap, which shrinks no more: the process holds on to its peak until it ends.

    Returns:
        Whether it took effect; ``False`` with another C library or system, where nothing is changed.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # musl has no mallopt
        return False
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, LARGEST_INT))
