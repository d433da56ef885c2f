"""Compiling a model's layers, one by one: the graph of one layer serves them all."""

from __future__ import annotations

import shutil

from tunesmith.events import Listener, Notice
from tunesmith.models import attention
from tunesmith.models.model import Model
from tunesmith.models.precision import MATRIX_FLAG, cpu_flags
from tunesmith.training.settings import Training

PAYS_FROM_STEPS = 400
"""Updates from which `auto` compiles: warming up took as long as about 200 updates saved (see ``benchmarks/``)."""


def has_compiler() -> bool:
    """Whether there is a C++ compiler, which compiling for a processor needs."""
    return any(shutil.which(name) for name in ("c++", "g++", "clang++"))


def chosen(model: Model, settings: Training, steps: int, *, matrix_units: bool) -> bool:
    """Whether the settings, or else the length of the run, ask for compiled layers.

    Nothing that may change between a run and its resumption decides.

    Args:
        model: What is trained.
        settings: Of the stage.
        steps: Its updates.
        matrix_units: Whether the machine has them (a GPU, AMX). Without them products take most of the time, and
            compiling what lies between them gained nothing: 2,860 against 3,080 tokens/s (MiniLM-L6, no dropout, an
            EPYC with AVX-512 bf16), and with dropout, whose random numbers it draws one by one, a fifth was lost.
    """
    if settings.compile != "auto":
        return settings.compile == "on"
    unmeasured = model.form == "seq2seq" or model.quantization != "none" or model.virtual_tokens > 0
    return matrix_units and not unmeasured and settings.recompute != "on" and steps >= PAYS_FROM_STEPS


def compile_if_worthwhile(model: Model, settings: Training, steps: int, on_event: Listener) -> bool:
    """Compile the transformer's layers in place, if asked to or if the run is long enough to pay for it.

    Returns:
        Whether they were compiled.
    """
    matrix_units = model.device.type == "cuda" or MATRIX_FLAG in cpu_flags()
    if not chosen(model, settings, steps, matrix_units=matrix_units):
        return False
    if model.device.type == "cpu" and not has_compiler():
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
