"""How much memory tuning takes."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch


class PeakMemory:
    """Memory of this process: on the GPU if there is one, else resident memory."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._peak = 0
        self._marked = _forget_mark()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def now(self) -> int:
        """Bytes at this moment."""
        used = torch.cuda.memory_allocated() if torch.cuda.is_available() else self._process.memory_info().rss
        self._peak = max(self._peak, used)
        return int(used)

    def bytes(self) -> int:
        """The most bytes seen: by the system itself where it says, else whenever somebody asked."""
        self.now()
        if torch.cuda.is_available():
            return int(torch.cuda.max_memory_allocated())
        return max(self._peak, _mark() if self._marked else 0)


def _forget_mark() -> bool:
    """Let the system's high-water mark of this process begin anew, where it lets us (Linux, proc(5))."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return _mark() > 0


def _mark() -> int:
    """The system's high-water mark of this process in bytes; 0 where it has none."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)
