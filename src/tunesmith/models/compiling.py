"""Compiling a model's layers, one by one: the graph of one layer serves them all."""

from __future__ import annotations

import shutil

from tunesmith.events import Listener, Notice
from tunesmith.models import attention
from tunesmith.models.model import Model
from tunesmith.training.settings import Switch

PAYS_FROM_STEPS = 400
"""Updates from which `auto` compiles: warming up took as long as about 200 updates saved (see ``benchmarks/``)."""


def compile_if_worthwhile(model: Model, switch: Switch, steps: int, on_event: Listener) -> bool:
    """Compile the transformer's layers in place, if asked to or if the run is long enough to pay for it.

    The choice depends on the recipe and the number of updates alone, so that a resumed run makes the same one.

    Returns:
        Whether they were compiled.
    """
    unmeasured = model.form == "seq2seq" or model.quantization != "none" or model.virtual_tokens > 0
    if switch == "off" or (switch == "auto" and (unmeasured or steps < PAYS_FROM_STEPS)):
        return False
    if model.device.type == "cpu" and not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        message = "no C++ compiler here, so the layers are not compiled and training is slower"
        on_event(Notice(level="warning", message=message, fix="install g++, or set `training.compile: off`"))
        return False
    import torch

    # One graph a width would pass the default limit of 8 with long texts and fall back to eager without a word.
    torch._dynamo.config.recompile_limit = 64
    attention.register(torch.compiler.disable(attention.batched_attention))
    frozen = [] if model.prefix is None else model.prefix.blocks
    for block in model.blocks()[len(frozen) :]:  # frozen ones give the same bits whether the run computes them or not
        block.compile(dynamic=True)
    on_event(Notice(level="info", message="the layers are being compiled: the first updates are slow"))
    return True
