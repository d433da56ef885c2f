"""The plan for pictures: a trial with two of them says what one takes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.planning.calibration import Correction
from tunesmith.planning.costs import NOTHING, Range
from tunesmith.planning.machine import Machine
from tunesmith.planning.result import Plan, StagePlan, joined
from tunesmith.planning.table import parts_of

if TYPE_CHECKING:
    import torch

    from tunesmith.data.batches import TokenFile
    from tunesmith.data.prepare import PreparedData
    from tunesmith.models.model import Model
    from tunesmith.recipe import Recipe, Stage, Training

TRIED = 2
"""Pictures of the trial."""
PROCESS_BYTES = Range(2e8, 8e8, 2e9)
"""Libraries, and what a pass leaves behind; a guess."""


def plan_pictures(recipe: Recipe, folder: Path, data: Sequence[PreparedData], machine: Machine) -> Plan:
    """Plan each stage by a trial; what it takes on this machine is said for any."""
    stages = [
        _stage(recipe.of_stage(stage), stage, folder, prepared)
        for stage, prepared in zip(recipe.stages, data, strict=True)
    ]
    return joined(stages, machine)


def _stage(recipe: Recipe, stage: Stage, folder: Path, data: PreparedData) -> StagePlan:
    """A stage that trains in the loop, or fits a head on features."""
    import numpy as np
    import torch

    from tunesmith.data.picture_file import PictureFile
    from tunesmith.models.build import build_for_training
    from tunesmith.models.image_classifier import ImageClassifier
    from tunesmith.models.precision import default_device
    from tunesmith.models.vision import refuse_blind
    from tunesmith.recipe import Head
    from tunesmith.training.defaults import with_defaults
    from tunesmith.training.loop import total_steps

    assert stage.parameters is not None and stage.training is not None, "the recipe is resolved"
    refuse_blind(folder, recipe.model)
    fits, choice, device = stage.parameters.kind == "none", stage.parameters, default_device()
    settings = with_defaults(
        stage.training,
        kind="head" if fits else choice.kind,
        form="classify",
        device=device,
        epoch_examples=len(data.train),
    )
    model = build_for_training(
        folder,
        name=recipe.model,
        form="classify",
        labels=data.labels or [""],
        choice=Head() if fits else choice,
        training=settings,
        data=recipe.data,
        dtype=torch.float32,
        device=device,
    )
    assert isinstance(model.network, ImageClassifier)
    rows = [data.train[n] for n in range(min(TRIED, len(data.train)))]
    tried = PictureFile(rows, data.labels or [""], model.network.prepare)
    learning, reading, held = _trial(model, tried, trains=not fits)
    pictures, patches = len(data.train), int(tried.lengths[0])
    validated = len(data.validation)
    steps = 0 if fits else total_steps(np.full(pictures, patches), settings)
    seen = 0 if fits else min(steps * (settings.batch_size or pictures), round(pictures * settings.epochs))
    at_once = min(pictures, settings.batch_size or pictures, max(1, (settings.micro_tokens or 4096) // patches))
    parts = {
        "weights": 4.0 * model.total_parameters,
        "training": 0.0 if fits else 12.0 * model.trainable_parameters,  # gradient and two moments, fp32
        "activations": held * at_once,
        "logits": 0.0,
        "allocator": 0.0,
    }
    fixed = sum(parts.values())
    epochs = max(1.0, seen / pictures)
    once = reading * (pictures + validated) if fits else 0.0
    update = once + learning * seen
    return StagePlan(
        name=stage.name,
        kind="",
        trainable=model.trainable_parameters,
        total=model.total_parameters,
        tokens=seen * patches,
        epoch_tokens=pictures * patches,
        cut_share=0.0,
        steps=steps,
        memory_parts=parts,
        memory=Range(*(fixed + more for more in (PROCESS_BYTES.low, PROCESS_BYTES.expected, PROCESS_BYTES.high))),
        update_seconds=update,
        updates=Range(_least(settings, model) * update, update, 2.0 * update + 5.0),
        validations=NOTHING if fits else Range(0.5, 1.0, 2.0).times(reading * validated * epochs),
        checkpoint_bytes=0.0 if fits else 12.0 * model.trainable_parameters,
        disk_bytes=4.0 * model.total_parameters + (0.0 if fits else 36.0 * model.trainable_parameters),
        correction=Correction(),
        parts=tuple(parts_of(model)),
    )


def _least(settings: Training, model: Model) -> float:
    """Share of the planned time that is the least to expect: with a cache the frozen layers are computed once."""
    return 0.1 if model.prefix is not None and settings.cache != "off" and not settings.augment else 0.5


def _trial(model: Model, pictures: TokenFile, *, trains: bool) -> tuple[float, float, float]:
    """Of one picture: seconds to learn from it, seconds to read and judge it, and bytes kept for the gradient."""
    import torch

    def passed(learning: bool) -> float:
        started = time.perf_counter()
        batch = pictures.batch(range(len(pictures)), 0, 1, None).to(model.device)
        with torch.enable_grad() if learning else torch.inference_mode():
            logits = model.class_logits(batch)
            if learning:
                logits.square().sum().backward()
        return (time.perf_counter() - started) / len(pictures)

    kept: dict[int, int] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    learning = 0.0
    model.train()
    if trains:
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            passed(True)  # the first time is a warm-up
        learning = passed(True)
    model.network.eval()
    passed(False)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.network.parameters()}
    held = sum(size for place, size in kept.items() if place not in weights) / len(pictures)
    return learning, passed(False), held
