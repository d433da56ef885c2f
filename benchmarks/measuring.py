"""What every contender measures of itself, in the same way. Only the standard library: it runs in each environment."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "sentence-transformers", "scikit-learn", "tunesmith")
STARTED = time.perf_counter()


class Clock:
    """Real tokens and seconds of each update, from the end of one to the end of the next: loading data included."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.seconds: list[float] = []
        self._pending = 0
        self._begun = self._last = 0.0

    def begin(self) -> None:
        """The run starts now; model and data are loaded."""
        self._begun = self._last = time.perf_counter()

    def count(self, tokens: int) -> None:
        """A forward and backward pass over this many tokens, without padding."""
        self._pending += tokens

    def step(self) -> None:
        """An update is done."""
        now = time.perf_counter()
        self.seconds.append(now - self._last)
        self.tokens.append(self._pending)
        self._last, self._pending = now, 0

    def result(self) -> dict[str, Any]:
        """Call it as soon as the run is over."""
        return {
            "run_seconds": time.perf_counter() - self._begun,
            "step_tokens": self.tokens,
            "step_seconds": [round(seconds, 4) for seconds in self.seconds],
            "peak_rss_bytes": peak_rss_bytes(),
        }


def peak_rss_bytes() -> int:
    """Most resident memory of this process so far (Linux counts it in kB, macOS in bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def read_spec() -> dict[str, Any]:
    """The job's description: the file that the first argument names."""
    spec: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    return spec


def read_lines(path: str) -> list[dict[str, Any]]:
    """The rows of a JSONL file."""
    with open(path, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def write_result(spec: dict[str, Any], **values: Any) -> None:
    """Leave the measurements for the command, with what they were measured on."""
    facts = {
        "process_seconds": time.perf_counter() - STARTED,
        "process_peak_rss_bytes": peak_rss_bytes(),
        "children_peak_rss_bytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024,
        "threads": _threads(),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
    }
    target = Path(spec["out"]) / "result.json"
    part = target.with_suffix(".part")
    part.write_text(json.dumps(values | facts), encoding="utf-8")
    os.replace(part, target)


def _threads() -> int:
    torch = sys.modules.get("torch")
    return int(torch.get_num_threads()) if torch else 0


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
