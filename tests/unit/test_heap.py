"""Free pages go back to the system when the process holds far more than an update needs."""

from __future__ import annotations

import psutil
import pytest
import torch

from tunesmith import allocator
from tunesmith.allocator import Heap


def test_pages_go_back_when_the_heap_has_grown_by_a_tenth(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is needed is seen right after they went, and only ever grows."""
    given: list[int] = []
    monkeypatch.setattr(allocator, "give_back", lambda: given.append(held) is None)
    heap = Heap()
    for held in (100, 105, 110, 112, 120, 121, 131, 133, 100, 132):
        heap.tidy(held)
    assert given == [112, 133]


def test_what_was_freed_is_no_longer_held() -> None:
    """Gaps between blocks that live on: the heap cannot shrink at its top, and the pages in between go all the same."""
    process = psutil.Process()
    blocks = [torch.ones(2**16) for _ in range(800)]  # a quarter of a MB each, below the size that is mapped
    kept, full = blocks[::4], process.memory_info().rss
    del blocks
    assert allocator.give_back()
    assert process.memory_info().rss < full - 100e6 and float(sum(block.sum() for block in kept)) == 200 * 2**16
