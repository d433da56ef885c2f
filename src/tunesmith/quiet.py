"""Libraries that talk of what no user can act on, whenever they are imported."""

from __future__ import annotations

import logging

NOISY = ("torchao", "torch.utils._pytree")
"""torchao tells about its parts for other machines, torch about torchao's use of it."""


def hush_imports() -> None:
    """Let errors of these libraries through, and nothing less; to be called before they are imported."""
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
