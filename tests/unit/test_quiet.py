"""What libraries say on their import stays off the terminal."""

from __future__ import annotations

import subprocess
import sys

import pytest

IMPORTS = """
import logging
from tunesmith.quiet import hush_imports

hush_imports()
import bitsandbytes
logging.getLogger("bitsandbytes.backends.cpu.ops").warning("no kernels")
logging.getLogger("bitsandbytes.nn.modules").warning("a weight was cast")
"""


def test_bitsandbytes_says_nothing_of_kernels_that_it_does_without() -> None:
    """Of its other parts what it says is heard."""
    pytest.importorskip("bitsandbytes")
    said = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True, timeout=120)
    assert "kernels" not in said.stderr and "a weight was cast" in said.stderr
