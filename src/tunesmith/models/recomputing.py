"""Activations that are computed again in the backward pass instead of being kept (Chen et al. 2016, arXiv 1604.06174).

Of each layer only the input is kept, so a pass takes the memory of all inputs and of one layer; its forward pass runs a
second time, which is about a third more work. The numbers stay the same to the bit: dropout draws what it drew before.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from tunesmith.models import packing
from tunesmith.models.model import Model


def obstacle(model: Model) -> str | None:
    """Why the layers of a model cannot be computed again; ``None`` if they can."""
    network: Any = model.transformer()
    if model.virtual_tokens:
        return "the layers read virtual tokens from a cache that each of them adds to"
    if not getattr(network, "supports_gradient_checkpointing", False):
        return f"{type(network).__name__} keeps the activations of its layers in a way of its own"
    if any(block._compiled_call_impl is not None for block in model.blocks()):
        return "the layers are compiled"
    return None


def begin(model: Model) -> None:
    """From now on the layers compute their activations again in the backward pass. May be called again."""
    network: Any = model.transformer()
    network.activation_checkpointing_enable({"use_reentrant": False, "context_fn": _contexts})


def _contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Of the pass that runs now and of its repetition, which must see the rows laid out as this one does."""
    where = packing.layout()
    return nullcontext(), nullcontext() if where is None else packing.laid_out(where)
