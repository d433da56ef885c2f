"""Step 4: which parameters train. One module of this folder a kind, each with two functions.

``apply(model, settings)`` changes the model in place and sets ``requires_grad``; ``learning_rate(form)`` is the default
peak rate with its source. The registry is lazy: naming a kind imports nothing heavy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunesmith.models.model import Model
    from tunesmith.recipe import Parameters

KINDS = {
    "full": "tunesmith.parameters.full",
    "head": "tunesmith.parameters.head",
    "layers": "tunesmith.parameters.layers",
    "lora": "tunesmith.parameters.lora",
}


def apply(model: Model, settings: Parameters) -> None:
    """Choose what trains. Afterwards exactly the parameters with ``requires_grad`` may change."""
    module(settings.kind).apply(model, settings)


def learning_rate(kind: str, form: str) -> float:
    """The default peak learning rate of a kind for models that ``classify`` or ``generate``."""
    return float(module(kind).learning_rate(form))


def module(kind: str) -> Any:
    """The module that knows a kind."""
    return importlib.import_module(KINDS[kind])
