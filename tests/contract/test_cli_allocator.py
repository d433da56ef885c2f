"""Freed memory stays with the process once it was asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tunesmith.allocator import keep_freed_memory

PROGRAM = """
import resource, sys
from tunesmith.allocator import keep_freed_memory
if sys.argv[1] == "keep" and not keep_freed_memory():
    sys.exit(7)
import numpy as np
def touch():
    np.empty(64 * 2**20, np.uint8).fill(1)
touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode: str) -> int:
    done = subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=False)
    if done.returncode == 7:
        pytest.skip("this C library has no mallopt")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_large_blocks_are_faulted_in_once() -> None:
    # 640 MB of fresh pages are 160,000 faults of 4 kB, or some hundreds where pages are huge.
    assert faults("keep") < 50 < faults("give back")


def test_elsewhere_nothing_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert keep_freed_memory() is False
