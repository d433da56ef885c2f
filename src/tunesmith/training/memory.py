"""How much memory tuning takes."""

from __future__ import annotations

import psutil
import torch


class PeakMemory:
    """Memory of this process: on the GPU if there is one, else resident memory."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._peak = 0
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def now(self) -> int:
        """Bytes at this moment."""
        used = torch.cuda.memory_allocated() if torch.cuda.is_available() else self._process.memory_info().rss
        self._peak = max(self._peak, used)
        return int(used)

    def bytes(self) -> int:
        """The most bytes seen."""
        self.now()
        return int(torch.cuda.max_memory_allocated() if torch.cuda.is_available() else self._peak)
