"""Every way to fine-tune a model: one recipe, your own hardware, and proof that it paid off."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunesmith.api import compare, load, load_adapters, plan, tune
    from tunesmith.recipe import Recipe
    from tunesmith.runs import Run

__version__ = "0.1.0"
__all__ = ["Recipe", "Run", "__version__", "compare", "load", "load_adapters", "plan", "tune"]

_HOMES = {
    "Recipe": "tunesmith.recipe",
    "Run": "tunesmith.runs",
    "compare": "tunesmith.api",
    "load": "tunesmith.api",
    "load_adapters": "tunesmith.api",
    "plan": "tunesmith.api",
    "tune": "tunesmith.api",
}


def __getattr__(name: str) -> Any:
    """Import the public names when they are first used, so that `import tunesmith` costs nothing."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'tunesmith' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
