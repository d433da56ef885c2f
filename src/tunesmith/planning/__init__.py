"""What a run will take, before it runs: parameters, tokens, steps, memory and time, each as honest as it can be.

Parameters are counted on the real network, built without weights. Tokens come from rendering a sample of the real
rows. Memory and time are ranges: a model of where they go, times what this machine was measured to do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.events import Listener, Phase, nobody
from tunesmith.planning.costs import Range, Sample, memory, seconds
from tunesmith.planning.machine import free_memory, speed
from tunesmith.planning.shape import Shape, shape_of, skeleton
from tunesmith.planning.table import Part, parts_of
from tunesmith.recipe import Parameters, Recipe, Training

if TYPE_CHECKING:
    import torch

    from tunesmith.data.prepare import PreparedData
    from tunesmith.models.model import Form, Model

SAMPLE_ROWS = 512
LONG_SECONDS = 3600
CUT_SHARE = 0.05
UNTRAINED = {"none", "in-context"}


@dataclass(frozen=True)
class Plan:
    """The forecast for a recipe.

    Attributes:
        trainable_parameters: Of the stage in which most train.
        total_parameters: Base, adapters and head.
        tokens: Real tokens trained on, all epochs and stages, without padding.
        steps: Updates.
        memory_bytes: Peak of the training: of the process on a CPU, of the device on a GPU.
        seconds: Training with its validations. Loading and the comparison with baselines come on top.
        fits: Whether the upper bound of the memory is there.
        advice: What would help, in sentences; may be empty.
        parts: For each stage its name and the table of what trains in it.
    """

    trainable_parameters: int
    total_parameters: int
    tokens: int
    steps: int
    memory_bytes: Range
    seconds: Range
    fits: bool
    advice: tuple[str, ...]
    parts: tuple[tuple[str, tuple[Part, ...]], ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The plan as ``tunesmith plan --json`` prints it."""
        return {
            "trainable_parameters": self.trainable_parameters,
            "total_parameters": self.total_parameters,
            "tokens": self.tokens,
            "steps": self.steps,
            "memory_bytes": {"low": int(self.memory_bytes.low), "high": int(self.memory_bytes.high)},
            "seconds": {"low": round(self.seconds.low, 1), "high": round(self.seconds.high, 1)},
            "fits": self.fits,
            "advice": list(self.advice),
            "parts": [{"stage": stage, **part.as_dict()} for stage, parts in self.parts for part in parts],
        }


@dataclass(frozen=True)
class _Stage:
    """One stage's part of the plan."""

    trainable: int
    total: int
    tokens: int
    steps: int
    memory: Range
    seconds: Range
    parts: tuple[Part, ...]


def plan(recipe: Recipe, on_event: Listener = nobody) -> Plan:
    """Forecast a run of ``recipe`` on this machine; downloads the model if it is not here yet.

    Raises:
        DataError: The data have errors that would stop the run as well.
        ResourceError: The model cannot be had.
    """
    from tunesmith.data.prepare import of_stages, prepare
    from tunesmith.models.cutting import base_folder

    recipe = recipe.resolved()
    folder = base_folder(recipe, on_event)
    data = of_stages(recipe, lambda view, number: prepare(view, on_event=on_event))
    return forecast(recipe, folder, data, on_event)


def forecast(recipe: Recipe, folder: Path, data: Sequence[PreparedData], on_event: Listener = nobody) -> Plan:
    """The same for a resolved recipe whose model and data (of each stage) are at hand."""
    from tunesmith import catalog
    from tunesmith.models.forms import answer_form
    from tunesmith.models.load import load_config, load_tokenizer
    from tunesmith.models.precision import choose_dtype, default_device

    if recipe.task == "image-classification":
        return _of_pictures(recipe, folder, data[-1])
    device = default_device()
    dtype = choose_dtype(recipe.precision, device)
    on_event(Phase(step="model", message="measuring this machine"))
    machine = speed(device)
    stages, samples = [], []
    for stage, prepared in zip(recipe.stages, data, strict=True):
        view = recipe.of_stage(stage)
        assert stage.parameters is not None and stage.training is not None, "the recipe is resolved"
        base = catalog.model_folder(stage.model, on_event=on_event) if stage.model is not None else folder
        config, tokenizer = load_config(base), load_tokenizer(base)
        form, objective = answer_form(view, stage, config)
        sample = _render(view, prepared, tokenizer, base, config, form, stage.training)
        if objective == "contrastive":
            sample = _grouped(sample, stage.training)
        model = skeleton(base, config, tokenizer, form, prepared.labels, stage.parameters)
        shape = shape_of(model, config)
        training = _filled_in(stage.training, stage.parameters, form, device, len(sample.lengths))
        stages.append(_forecast(model, shape, sample, stage.parameters, training, machine, device.type, dtype.itemsize))
        samples.append(sample)
    return _joined(recipe, stages, samples, device)


def _of_pictures(recipe: Recipe, folder: Path, data: PreparedData) -> Plan:
    """Every picture goes once through the frozen network: one is tried, and the rest take as long."""
    import time

    import torch

    from tunesmith.data.pictures import read_picture
    from tunesmith.models.precision import default_device
    from tunesmith.models.vision import load_vision

    network = load_vision(folder, name=recipe.model, labels=data.labels or [""], device=default_device())
    seconds = 0.0
    for path in [str(row.fields["image"]) for row in data.train][:1] * 2:  # the first time is a warm-up
        started = time.perf_counter()
        with torch.inference_mode():
            network.embed(network.prepare(read_picture(Path(path)))[None].to(default_device()))
        seconds = time.perf_counter() - started
    total = sum(p.numel() for p in network.parameters())
    need, free = Range(4.0 * total + 2e8, 4.0 * total + 2e9), free_memory(default_device())
    pictures = len(data.train) + len(data.validation)
    return Plan(
        trainable_parameters=sum(p.numel() for p in network.classifier.parameters()),
        total_parameters=total,
        tokens=0,
        steps=0,
        memory_bytes=need,
        seconds=Range(0.5 * seconds * pictures, 2.0 * seconds * pictures + 5.0),
        fits=need.high <= free,
        advice=(),
    )


def _forecast(
    model: Model,
    shape: Shape,
    sample: Sample,
    parameters: Parameters,
    training: Training,
    machine: dict[str, float],
    device: str,
    wide: int,
) -> _Stage:
    """One stage's part of the plan."""
    steps, trained, read = _work(parameters, training, sample)
    total, trainable = model.total_parameters, model.trainable_parameters
    micro_tokens = training.micro_tokens or 0
    return _Stage(
        trainable=trainable,
        total=total,
        tokens=trained or read,
        steps=steps,
        memory=memory(
            shape,
            sample,
            total=total - _narrowed(shape, parameters, wide),
            trainable=trainable,
            micro_tokens=micro_tokens,
            device=device,
            wide=wide,
        ),
        seconds=seconds(
            shape, sample, trained_tokens=trained, read_tokens=read, machine=machine, device=device, wide=wide
        ),
        parts=tuple(parts_of(model)),
    )


def _narrowed(shape: Shape, parameters: Parameters, wide: int) -> int:
    """How many weights' worth of memory a quantized base saves."""
    narrow = {"int8": 1.01, "int4": 0.52}.get(getattr(parameters, "quantization", "none"), wide)  # bytes, with scales
    return int(shape.layer_weights * (1 - narrow / wide))


def _render(
    recipe: Recipe, data: PreparedData, tokenizer: Any, folder: Path, config: Any, form: Form, training: Training
) -> Sample:
    """Render rows at even distances and take them for the whole."""
    import numpy as np

    from tunesmith.data.documents import block_renderer
    from tunesmith.data.renderers import recipe_renderer
    from tunesmith.models.load import default_max_length
    from tunesmith.tasks import TASKS

    max_length = recipe.data.max_length or default_max_length(folder, config)
    task = TASKS[recipe.task]
    rows = [data.train[n] for n in range(0, len(data.train), max(1, len(data.train) // SAMPLE_ROWS))]
    if task.answer == "likelihood":
        blocks = block_renderer(tokenizer, task, masked=form == "mask", max_length=max_length)
        rendered = [block for row in rows for block in blocks(row)]
    else:
        render = recipe_renderer(recipe, tokenizer, form=form, labels=data.labels, max_length=max_length)
        rendered = [render(row) for row in rows]
    lengths = np.array([len(example.input_ids) for example in rendered], dtype=np.int64)
    weighted = sum(sum(w > 0 for w in example.loss_weights or []) for example in rendered)
    asked = training.mask_share if form == "mask" else 1.0
    return Sample(
        lengths=np.resize(lengths, len(data.train) * len(rendered) // len(rows)),
        validation_tokens=int(len(data.validation) * lengths.sum() / len(rows)),
        loss_share=asked * weighted / max(1, int(lengths.sum())),
        cut_share=sum(example.cut_tokens > 0 for example in rendered) / max(1, len(rendered)),
    )


def _grouped(sample: Sample, training: Training) -> Sample:
    """The same rows in the groups of contrastive learning, each as often as it has rounds."""
    import numpy as np

    from tunesmith.data.groups import default_rounds

    size = training.contrastive.group_size
    rounds = training.contrastive.rounds or default_rounds(len(sample.lengths), size)
    groups = max(1, len(sample.lengths) // size) * rounds
    mean = int(sample.lengths.mean() * min(size, len(sample.lengths)))
    return dataclasses.replace(
        sample, lengths=np.full(groups, mean), validation_tokens=sample.validation_tokens * rounds
    )


def _filled_in(training: Training, parameters: Parameters, form: Form, device: torch.device, examples: int) -> Training:
    """The settings with the defaults that the loop would take."""
    from tunesmith.training.defaults import with_defaults

    if parameters.kind in UNTRAINED:
        return training.model_copy(update={"micro_tokens": training.micro_tokens or 4096})
    return with_defaults(training, kind=parameters.kind, form=form, device=device, epoch_examples=examples)


def _work(parameters: Parameters, training: Training, sample: Sample) -> tuple[int, int, int]:
    """Updates, tokens trained on, and tokens only read."""
    from tunesmith.training.loop import total_steps

    once = int(sample.lengths.sum())
    if parameters.kind in UNTRAINED:
        return 0, 0, once + sample.validation_tokens
    steps = total_steps(sample.lengths, training)
    an_epoch = total_steps(sample.lengths, training.model_copy(update={"epochs": 1.0, "max_steps": None}))
    epochs = training.epochs if training.max_steps is None else steps / max(1, an_epoch)
    validations = steps // training.eval_steps if training.eval_steps else max(1, round(epochs))
    return steps, int(once * epochs), sample.validation_tokens * validations


def _joined(recipe: Recipe, stages: list[_Stage], samples: list[Sample], device: torch.device) -> Plan:
    """Stages one after the other: work adds up, memory is that of the largest."""
    need = Range(max(s.memory.low for s in stages), max(s.memory.high for s in stages))
    took = sum((s.seconds for s in stages), Range(0.0, 0.0))
    free = free_memory(device)
    return Plan(
        trainable_parameters=max(s.trainable for s in stages),
        total_parameters=max(s.total for s in stages),
        tokens=sum(s.tokens for s in stages),
        steps=sum(s.steps for s in stages),
        memory_bytes=need,
        seconds=took,
        fits=need.high <= free,
        parts=tuple((stage.name, s.parts) for stage, s in zip(recipe.stages, stages, strict=True)),
        advice=tuple(_advice(recipe, need, took, free, samples, device)),
    )


def _advice(
    recipe: Recipe, need: Range, took: Range, free: int, samples: list[Sample], device: torch.device
) -> list[str]:
    """What would help, most important first."""
    kinds = {stage.parameters.kind for stage in recipe.stages if stage.parameters}
    advice = []
    if need.high > free:
        sure = "does not fit" if need.low > free else "may not fit"
        ways = ["`training.micro_tokens: 1024` makes activations smaller without changing the result"]
        ways += ["`method: peft` needs no optimizer state for the base"] if kinds & {"full", "layers"} else []
        advice.append(f"it {sure} into the {free / 1e9:.1f} GB that are free: {'; '.join(ways)}; or a smaller model")
    if took.low > LONG_SECONDS:
        advice.append("it will run for hours: try it first with `data.max_rows`, or with `training.max_steps`")
    cut = max(sample.cut_share for sample in samples)
    if cut > CUT_SHARE:
        advice.append(f"{cut:.0%} of the examples are cut to fit: see `data.max_length`")
    trains = recipe.stages and not kinds & UNTRAINED
    dropout = any(stage.training and stage.training.dropout is None for stage in recipe.stages)
    if device.type == "cpu" and trains and dropout and recipe.task == "text-classification" and "full" in kinds:
        advice.append("dropout's random numbers are dear on a CPU: `training.dropout: 0` is faster, by up to a third")
    return advice
