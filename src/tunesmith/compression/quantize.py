"""A finished run, quantized: a folder like a run's, measured beside the original on the same rows and machine."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from tunesmith import disk, environment, runs
from tunesmith.compression import sensitivity, speed
from tunesmith.compression.modules import layers_of
from tunesmith.compression.sensitivity import Format, Found
from tunesmith.compression.settings import KINDS, Quantize
from tunesmith.compression.words import changes_in_words, sections
from tunesmith.data.prepare import PreparedData, prepare
from tunesmith.data.rows import Row
from tunesmith.errors import DataError, UsageError
from tunesmith.evaluation.comparison import Comparison, System
from tunesmith.evaluation.evaluate import Remade, evaluate_run
from tunesmith.evaluation.held_out import held_out, rows_to_measure, some_rows
from tunesmith.evaluation.metrics import measure, truth
from tunesmith.events import Listener, Notice, Phase, RunFinished, RunStarted, nobody
from tunesmith.models.image_classifier import ImageClassifier
from tunesmith.models.merging import merge
from tunesmith.models.model import Model
from tunesmith.models.precision import default_device
from tunesmith.models.quantized import weight_bytes
from tunesmith.models.saving import ONNX_FILE, ArtefactNotes, load_artefact, read_notes, save_artefact
from tunesmith.prediction import answering
from tunesmith.prediction.setting import Setting
from tunesmith.recipe import PICTURES, Recipe
from tunesmith.runs import EventLog, Run
from tunesmith.tasks import TASKS
from tunesmith.training.outcome import Trained

QUANTIZED = runs.QUANTIZED
FP8_CAPABILITY = (8, 9)
"""NVIDIA's compute capability from which on tensor cores multiply 8-bit floats (Ada, Hopper)."""
SPEED_ROWS = 8
"""Rows that speed is measured on."""


@dataclass(frozen=True)
class Work:
    """A model that is to be quantized, and all that is known about it.

    Attributes:
        opened: The run.
        recipe: The run's, with the choice in it.
        choice: The number format, calibration and budget.
        data: Of the run's last stage.
        original: The model, with its adapters in its weights.
        calibration: Rows.
        setting: How models are asked; what happens is told to its ``on_event``.
        folder: Where the result is put together.
    """

    opened: Run
    recipe: Recipe
    choice: Quantize
    data: PreparedData
    original: Model
    calibration: Sequence[Row]
    setting: Setting
    folder: Path

    @property
    def model_folder(self) -> Path:
        """For the quantized model."""
        return self.folder / "model"

    @property
    def trained_for_it(self) -> bool:
        """Whether the model was trained with the rounding of this very format, which then stays as it was."""
        training = self.recipe.stages[-1].training if self.recipe.stages else None
        return training is not None and training.quantization_aware == self.choice.to


@dataclass(frozen=True)
class Plan:
    """What is quantized, and what led to it.

    Attributes:
        kept: Names of the layers that are left as they are.
        sensitivity: Layer -> how far answers move when it alone is quantized; empty if that was not asked for.
        search: What the search for a budget came to.
    """

    kept: list[str]
    sensitivity: dict[str, float]
    search: Found | None


def quantize(opened: Run, choice: Quantize, *, target: Path | None = None, on_event: Listener = nobody) -> Run:
    """Quantize a finished run's model and measure what came out; the original stays as it is.

    Args:
        opened: The run.
        choice: The number format, calibration and budget.
        target: Folder of the result; default: ``quantized/KIND`` in the run's.
        on_event: Told everything that happens.

    Raises:
        UsageError: The run is not finished or quantized already, its model cannot be quantized, this machine lacks
            what the format needs, or something is in the way.
        DataError: The calibration data are not of the run's task.
        ResourceError: The disk is full; nothing is left under the target's name then.
    """
    opened.summary()
    target = target or opened.path / QUANTIZED / choice.to
    if target.exists():
        raise UsageError("there is something already", where=str(target), fix="remove it, or name another --run-dir")
    refuse_impossible(opened, choice)
    if choice.to == "onnx-int8":
        from tunesmith.compression.onnx_model import require_onnx

        require_onnx()
        make: Make = _make_onnx
    else:
        make = _make_narrow
    target.parent.mkdir(parents=True, exist_ok=True)

    def fill(staging: Path) -> None:
        _fill(staging, target, opened, choice, make, on_event)

    disk.write_folder(target, fill)
    return Run(target)


def is_quantized(opened: Run, notes: ArtefactNotes) -> bool:
    """Whether a run's model is narrow already, in a form of our own or as a graph of ONNX."""
    return notes.narrow is not None or (opened.model_folder / ONNX_FILE).is_file()


def refuse_impossible(opened: Run, choice: Quantize) -> None:
    """Say what cannot work before anything is loaded.

    Raises:
        UsageError: With the reason and what to do instead.
    """
    notes = read_notes(opened.model_folder)
    if is_quantized(opened, notes):
        raise UsageError(
            "the model is quantized already: to narrow it again would add the errors of both",
            where=str(opened.path),
            fix="quantize the run that it was made from",
        )
    if notes.task in PICTURES:
        raise UsageError("models of pictures are not quantized here", where=str(opened.path))
    if choice.to == "onnx-int8" and notes.form not in ("classify", "multi-label", "score", "ordinal", "tag"):
        raise UsageError(
            f"only encoders with a head become ONNX graphs here, and this model's form is `{notes.form}`",
            where="quantize.to",
            fix="use `int8`",
        )
    if choice.to == "fp8":
        refuse_without_fp8()


def refuse_without_fp8() -> None:
    """Raise where the hardware has no 8-bit floats."""
    if torch.cuda.is_available() and torch.cuda.get_device_capability() >= FP8_CAPABILITY:
        return
    has = torch.cuda.get_device_name() if torch.cuda.is_available() else "this machine has no GPU"
    raise UsageError(
        f"fp8 needs a GPU whose tensor cores multiply 8-bit floats (compute capability 8.9 or later); {has}",
        where="quantize.to",
        fix="use `int8`, which is as small",
    )


def _fill(staging: Path, target: Path, opened: Run, choice: Quantize, make: Make, on_event: Listener) -> None:
    """Everything that a run's folder holds."""
    started = time.time()
    recipe = opened.recipe.model_copy(update={"quantize": choice})
    log = EventLog(staging)

    def tell(event: Any) -> None:
        log(event)
        on_event(event)

    tell(RunStarted(run=target.name, task=recipe.task, model=recipe.model, method=recipe.method))
    disk.write_text(staging / "recipe.yaml", recipe.to_yaml())
    disk.write_json(staging / "environment.json", environment.describe())
    data = prepare(recipe.of_stage(recipe.stages[-1]) if recipe.stages else recipe, on_event=tell)
    disk.write_json(staging / "data.json", data.report.as_dict() | {"fingerprint": data.fingerprint})
    tell(Phase(step="model", message=f"the model of {opened.id}"))
    original = load_original(opened)
    calibration = _calibration_rows(recipe, choice, data, original, tell)
    setting = Setting(
        TASKS[recipe.task], data.labels, recipe.system_prompt, recipe.evaluate.generation, recipe.evaluate.seed, tell
    )
    work = Work(opened, recipe, choice, data, original, calibration, setting, staging)
    tell(Phase(step="tune", message=f"quantizing to {choice.to}: {KINDS[choice.to]}"))
    plan = make(work)
    remade, _ = load_artefact(work.model_folder, device=default_device())
    _evaluate(work, remade, _measure(work, remade, plan))
    summary = Run(staging).summary()
    disk.write_json(staging / "summary.json", summary | {"run": str(target)})
    tell(RunFinished(verdict=summary["verdict"], seconds=time.time() - started))


def load_original(opened: Run) -> Model:
    """The run's model, with its adapters in its weights: what would be deployed otherwise."""
    model, _ = load_artefact(opened.model_folder, device=default_device())
    if model.has_adapters:
        merge(model)
        cast(Any, model.network).eval()
    if isinstance(model.network, ImageClassifier):
        raise UsageError("models of pictures are not compressed here", where=str(opened.path))
    return model


def _make_narrow(work: Work) -> Plan:
    """Calibrate, probe, search, and write the quantized model."""
    original, choice, setting = work.original, work.choice, work.setting
    layers = layers_of(original)
    names = {layer.name for layer in layers}
    if unknown := [name for name in choice.keep if name not in names]:
        raise UsageError(
            f"no layer is named {unknown[0]!r}",
            where="quantize.keep",
            fix=f"layers: {', '.join(layer.name for layer in layers)}",
        )
    asks = choice.to == "int8-static" or (choice.to == "int8" and not work.trained_for_it)
    seen = sensitivity.calibrate(original, layers, work.calibration, setting) if asks else {}
    form = Format(choice.to, seen)
    found = sensitivity.sensitivities(original, layers, form, work.calibration, setting)
    search = None if choice.budget is None else _search(work, found, form, choice.budget)
    kept = list(choice.keep) if search is None else search.kept
    quantized = [layer for layer in layers if layer.name not in kept]
    if not quantized:
        raise UsageError(
            "the budget leaves no layer to quantize: each costs more than it allows",
            where="quantize.budget",
            fix="allow more, or use a format that keeps more (`int8-weights`)",
        )
    with sensitivity.narrowed(original, quantized, form):
        save_artefact(original, work.model_folder, task=work.recipe.task, system_prompt=work.recipe.system_prompt)
    return Plan(kept, found, search)


def _search(work: Work, sensitivities: dict[str, float], form: Format, budget: float) -> Found:
    """Which layers are to be left alone, by rows that are not the test rows."""
    rows = list(work.data.validation) or list(work.calibration)
    limited = some_rows(rows, max(work.choice.rows * 4, 200))
    task = work.setting.task
    right = truth(task, [task.reference(row) for row in limited], work.data.labels, work.recipe.evaluate)
    return sensitivity.search(
        work.original, sensitivities, form, limited, right, work.setting, budget=budget, kept=work.choice.keep
    )


def _make_onnx(work: Work) -> Plan:
    """Export the whole encoder and let ONNX Runtime quantize it, which knows no single layers."""
    from tunesmith.compression.onnx_model import save_onnx_int8

    if work.choice.budget is not None or work.choice.keep:
        raise UsageError(
            "an ONNX graph is quantized as a whole: `budget` and `keep` need another format",
            where="quantize.to",
            fix="use `int8`",
        )
    recipe = work.recipe
    save_onnx_int8(work.original, work.model_folder, task=recipe.task, system_prompt=recipe.system_prompt)
    return Plan([], {}, None)


Make = Callable[[Work], Plan]
"""Writes the quantized model of some work."""


def _calibration_rows(recipe: Recipe, choice: Quantize, data: PreparedData, model: Model, tell: Listener) -> list[Row]:
    """Rows like those that the model will see: never the test rows."""
    rows: Sequence[Row] = data.train
    if choice.data:
        all_of_it = {"validation": 0.0, "test": 0.0, "shots": None, "max_rows": None, "read_rows": None}
        apart = {"group_by": None, "duplicates": "keep"}  # what decides sides, or chooses among rows
        own = recipe.data.model_copy(update={"train": choice.data, **all_of_it, **apart})
        try:
            found = prepare(recipe.model_copy(update={"data": own, "stages": []}), on_event=tell)
        except DataError as error:
            raise DataError(
                f"the calibration data are not of the task {recipe.task}: {error.what}",
                where=error.where,
                fix=error.fix or "give data with the fields that the model was tuned on",
            ) from error
        foreign = sorted(set(found.labels or []) - set(model.labels or found.labels or []))
        if foreign:
            raise DataError(
                f"the calibration data are of another task: the model knows no label {foreign[0]!r}",
                where=", ".join(choice.data),
                fix="give data with the labels that the model was tuned on",
            )
        rows = found.train
    if len(rows) < choice.rows:
        tell(Notice(level="info", message=f"calibrating on {len(rows)} rows: there are no more"))
    return some_rows(rows, choice.rows)


def _measure(work: Work, remade: Model, plan: Plan) -> dict[str, Any]:
    """Bytes and speed of both, and of the original in bf16 where it computes in fp32."""
    original, data = work.original, work.data
    models = {"original": original, "quantized": remade}
    if original.dtype == torch.float32:
        narrow = copy.deepcopy(original.network).to(torch.bfloat16)
        models["original in bf16"] = replace(original, network=narrow, packable_length=0)
    rows = some_rows(held_out(data, nobody) or data.train, SPEED_ROWS)
    speeds = speed.measure_in_turns(models, answering.inputs(original, rows, work.setting))
    files = work.model_folder.rglob("*")
    return {
        "bytes": sum(path.stat().st_size for path in files if path.suffix in (".safetensors", ".onnx")),
        "original_bytes": weight_bytes(original.network),
        "memory_bytes": speed.memory_bytes(remade.network),
        "original_memory_bytes": speed.memory_bytes(original.network),
        "speed": {name: speed.as_dict(found) for name, found in speeds.items()},
        "original_dtype": str(original.dtype).removeprefix("torch."),
        "ways": sensitivity.ways_of(remade),
        "kept": plan.kept,
        "sensitivity": plan.sensitivity,
        "search": None if plan.search is None else plan.search.__dict__,
    }


def _evaluate(work: Work, remade: Model, measured: dict[str, Any]) -> None:
    """Both on the test rows, and all that is written about it."""
    recipe, settings, task, tell = work.recipe, work.recipe.evaluate, work.setting.task, work.setting.on_event
    rows = rows_to_measure(recipe, work.data, nobody)
    right = truth(task, [task.reference(row) for row in rows], work.data.labels, settings)
    tell(Phase(step="evaluate", message=f"the original on {len(rows)} test rows"))
    outputs = answering.answer(work.original, rows, work.setting)
    before = measure(outputs, right, settings)
    system = System(
        "original", f"{work.opened.id}, not quantized", "the model that was quantized", outputs, before,
        parameters=work.original.total_parameters,
    )  # fmt: skip

    def judge(found: Comparison) -> str:
        return changes_in_words(work.choice.to, measured, found)

    facts = measured | {
        "kind": work.choice.to,
        "original": str(work.opened.path),
        "original_metrics": {name: interval.as_dict() for name, interval in before.items()},
        "tokens_per_second": measured["speed"]["quantized"][0]["tokens_per_second"],
        "original_tokens_per_second": measured["speed"]["original"][0]["tokens_per_second"],
    }
    title = f"{recipe.model}, tuned ({recipe.method}), {work.choice.to}"
    silent = settings.model_copy(update={"baselines": [], "general": None})
    tuned = work.opened.summary()
    evaluate_run(
        work.folder,
        recipe.model_copy(update={"evaluate": silent}),
        work.data,
        Trained(tuned, tuned.get("tuning_seconds", 0.0), remade),
        tell,
        remade=Remade(title, system, judge, sections(measured), facts),
    )
