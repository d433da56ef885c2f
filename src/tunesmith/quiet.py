"""Libraries that talk of what no user can act on, whenever they are imported."""

from __future__ import annotations

import logging

NOISY = ("torchao", "torch.utils._pytree", "bitsandbytes.backends.cpu")
"""torchao tells about its parts for other machines, torch about torchao's use of it, and bitsandbytes about a package
of kernels that it does without."""


def hush_imports() -> None:
    """Let errors of these libraries through, and nothing less; to be called before they are imported."""
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
