"""From a recipe to its plan: each stage's network without weights, a sample of its rows, and their costs."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith import catalog, words
from tunesmith.errors import UsageError
from tunesmith.events import Listener, Phase, nobody
from tunesmith.models.skeleton import skeleton
from tunesmith.planning import calibration, costs
from tunesmith.planning.cached import REWARDED, cached
from tunesmith.planning.calibration import Correction
from tunesmith.planning.costs import Network, Passes, Sample
from tunesmith.planning.dry_run import Layout, Scaled, scaled
from tunesmith.planning.machine import Machine, named, this_machine
from tunesmith.planning.result import FLEXIBLE, Plan, StagePlan, joined
from tunesmith.planning.sampling import grouped, render
from tunesmith.planning.shape import by_formula
from tunesmith.planning.table import parts_of
from tunesmith.planning.teaching import Teaching, teaching
from tunesmith.recipe import PICTURES, NoParameters, ObjectiveName, Parameters, Recipe, Stage, Training

if TYPE_CHECKING:
    import torch

    from tunesmith.data.prepare import PreparedData
    from tunesmith.models.heads import Pooling
    from tunesmith.models.model import Form, Model

LONG_SECONDS = 3600
CUT_SHARE = 0.05
UNTRAINED = {"none", "in-context"}
FEATURE_TOKENS = 4096  # in one pass, where rows are only read
RENDERED_BYTES = 8  # on disk for each token of the training data: its id and its weight


def plan(
    recipe: Recipe,
    on_event: Listener = nobody,
    *,
    machine: Machine | None = None,
    devices: int = 1,
    probe: bool = False,
) -> Plan:
    """Forecast a run of ``recipe``; downloads the model if it is not here yet.

    Args:
        recipe: What would be run.
        on_event: Told what happens.
        machine: Where it would run, see :func:`machine_of`; default: here.
        devices: Say too what so many of them would make of it.
        probe: Make three real updates, and correct the plan by them.

    Raises:
        DataError: The data have errors that would stop the run as well.
        ResourceError: The model cannot be had.
    """
    from tunesmith.planning.parallel import of_several
    from tunesmith.planning.probe import probe as probed

    recipe, folder, data = gather(recipe, on_event)
    machine = machine or machine_of(None)
    found = probed(recipe, folder, data[0], machine, on_event) if probe else None
    made = forecast(recipe, folder, data, on_event, machine=machine, correction=found.correction if found else None)
    if found is not None:
        made = dataclasses.replace(made, probed=found.as_dict())
    return dataclasses.replace(made, devices=tuple(of_several(made, machine, devices)) if devices > 1 else ())


def machine_of(name: str | None, table: Path | None = None) -> Machine:
    """The machine to plan for: one of the table by its name, or this one.

    Args:
        name: In the table; ``None`` for this one.
        table: The user's own; default: where it is usually kept.

    Raises:
        NotFoundError: No machine has this name, or the table is not there.
        UsageError: The table is malformed.
    """
    from tunesmith.models.precision import default_device
    from tunesmith.planning import hardware

    if name is None:
        return this_machine(default_device(), hardware.price_of_this(table))
    return named(hardware.find(name, table))


def gather(recipe: Recipe, on_event: Listener = nobody) -> tuple[Recipe, Path, list[PreparedData]]:
    """The resolved recipe, the folder of its model and the data of each stage."""
    from tunesmith.data.prepare import of_stages, prepare
    from tunesmith.models.cutting import base_folder

    recipe = recipe.resolved()
    if recipe.method == "hosted":
        fix = "`tunesmith hosted estimate RECIPE` says what a provider takes for it"
        raise UsageError("nothing is trained on this machine", where="method", fix=fix)
    catalog.require_models(recipe.named_models())
    folder = base_folder(recipe, on_event)
    return recipe, folder, of_stages(recipe, lambda view, number: prepare(view, on_event=on_event))


def forecast(
    recipe: Recipe,
    folder: Path,
    data: Sequence[PreparedData],
    on_event: Listener = nobody,
    *,
    machine: Machine | None = None,
    correction: Correction | None = None,
    remedies: bool = True,
) -> Plan:
    """The same for a resolved recipe whose model and data (of each stage) are at hand.

    Args:
        recipe: Resolved.
        folder: Of its model.
        data: Of each stage.
        on_event: Told what happens.
        machine: Where it would run; default: here.
        correction: Goes before what earlier runs say.
        remedies: Look for changes that make it fit, where it does not.
    """
    from tunesmith.models.precision import default_device
    from tunesmith.planning import fitting
    from tunesmith.planning.pictures import plan_pictures

    if machine is None:
        on_event(Phase(step="model", message="measuring this machine"))
        machine = this_machine(default_device())
    if recipe.task in PICTURES:
        return plan_pictures(recipe, folder, data, machine)
    planners = [
        StagePlanner.of(recipe, stage, prepared, folder, machine, correction)
        for stage, prepared in zip(recipe.stages, data, strict=True)
    ]
    made = joined([planner.plan() for planner in planners], machine)
    ways = [] if made.fits or not remedies else fitting.ways(planners, machine)
    return dataclasses.replace(made, advice=tuple([*ways, *_advice(recipe, made, planners, machine)]))


@dataclasses.dataclass(frozen=True)
class StagePlanner:
    """A stage with all that its plan depends on, so that it can be planned in other ways too.

    Attributes:
        stage: Of the resolved recipe.
        view: The recipe as the stage sees it.
        folder: Of the base model.
        form: How the model answers.
        objective: What is minimised.
        labels: Of the data.
        sample: Of the rows.
        rows: Training rows.
        machine: Where it would run.
        correction: Goes before what earlier runs say.
    """

    stage: Stage
    view: Recipe
    folder: Path
    form: Form
    objective: ObjectiveName
    labels: list[str] | None
    sample: Sample
    rows: int
    machine: Machine
    correction: Correction | None = None

    @staticmethod
    def of(
        recipe: Recipe,
        stage: Stage,
        data: PreparedData,
        folder: Path,
        machine: Machine,
        correction: Correction | None = None,
    ) -> StagePlanner:
        """Render a sample of a stage's rows."""
        from tunesmith.models.forms import answer_form
        from tunesmith.models.load import load_config

        assert stage.training is not None, "the recipe is resolved"
        view = recipe.of_stage(stage)
        folder = catalog.model_folder(stage.model) if stage.model is not None else folder
        config = load_config(folder)
        form, objective = answer_form(view, stage, config)
        sample = render(view, data, folder, config, form, stage.training)
        if objective == "contrastive":
            sample = grouped(sample, stage.training)
        return StagePlanner(
            stage, view, folder, form, objective, data.labels, sample, len(data.train), machine, correction
        )

    def plan(self, parameters: Parameters | None = None, training: Training | None = None) -> StagePlan:
        """Plan the stage as its recipe has it, or with other parameters or settings."""
        choice = parameters or self.stage.parameters
        asked = training or self.stage.training
        assert choice is not None and asked is not None, "the recipe is resolved"
        machine, settings = self.machine, self.filled_in(asked, choice)
        model, dtype = self._skeleton(choice, settings)
        trains = choice.kind not in UNTRAINED
        once = int(self.sample.lengths.sum())
        steps, tokens, passes, read, a_step, epochs = self._work(settings, trains, self._padded(model))
        network = self._network(model, choice, settings, dtype, steps, (passes if trains else read).largest)
        kind = calibration.kind_of(
            form=self.form,
            objective=self.objective,
            parameters=choice.kind,
            dtype=str(dtype).removeprefix("torch."),
            compiled=network.compiled,
        )
        known = self.correction or (calibration.correction(machine.name, kind) if machine.here else Correction())
        share = self.sample.loss_share
        an_epoch = self._reading(settings)
        largest = (passes if trains else read).largest
        kept = None
        if trains:
            kept = cached(
                model,
                network,
                self.objective,
                settings,
                machine,
                once + self.sample.validation_tokens,
                _layout(largest),
                once=epochs <= 1,
            )
        above = network if kept is None else kept.network
        update = costs.seconds(costs.work(above, machine, passes, share), machine) if trains else 0.0
        if kept is not None:  # once through all layers less what is above them
            update += costs.seconds(costs.work(network, machine, an_epoch, 0.0, forward=True), machine)
            update -= costs.seconds(costs.work(above, machine, an_epoch, 0.0, forward=True), machine)
        update += steps * costs.update_seconds(network, machine) + (costs.COMPILE_SECONDS if network.compiled else 0.0)
        reading = costs.seconds(costs.work(above, machine, read, share, forward=True), machine)
        uncorrected = costs.memory(
            network, machine, passes if trains else read, share, passes_an_update=a_step, trains=trains
        )
        taught = self._teaching(settings, passes, an_epoch, uncorrected) if trains else None
        if taught is not None:
            update += taught.seconds
            uncorrected = uncorrected | dict(taught.memory)
        parts = {name: size * (known.bytes if name in FLEXIBLE else 1.0) for name, size in uncorrected.items()}
        flexible = sum(size for name, size in uncorrected.items() if name in FLEXIBLE)
        checkpoint = network.trainable * network.wide + network.optimizer_bytes
        validations = max(1, round(epochs)) if trains else 0
        stored = min(validations, settings.keep_checkpoints + settings.keep_best_checkpoints)
        aside = (kept.bytes if kept else 0.0) + (taught.disk_bytes if taught else 0.0)
        saved = model.trainable_parameters if model.has_adapters else model.total_parameters
        return StagePlan(
            name=self.stage.name,
            kind=kind if trains else "",
            trainable=model.trainable_parameters,
            total=model.total_parameters,
            tokens=tokens or once,
            epoch_tokens=once,
            cut_share=self.sample.cut_share,
            steps=steps,
            memory_parts=parts,
            memory=known.memory_range(sum(uncorrected.values()) - flexible, flexible),
            update_seconds=update,
            updates=known.time_range(update),
            validations=known.time_range(reading),
            checkpoint_bytes=checkpoint if trains else 0.0,
            disk_bytes=stored * checkpoint + saved * network.wide + RENDERED_BYTES * once + aside,
            correction=known,
            parts=tuple(parts_of(model)),
            cached_bytes=aside,
        )

    def _reading(self, training: Training) -> Passes:
        """Passes over all rows, training and validation, a single time."""
        tokens = int(self.sample.lengths.sum()) + self.sample.validation_tokens
        return costs.read_passes(tokens, self.sample.typical_length, training.micro_tokens or FEATURE_TOKENS)

    def _teaching(
        self, training: Training, passes: Passes, once: Passes, student: Mapping[str, float]
    ) -> Teaching | None:
        """What a teacher on this machine adds; ``None`` where there is none, or it has written and gone."""
        from tunesmith.models.load import load_config, load_tokenizer, natural_form
        from tunesmith.objectives.teacher import folder_of, name_of

        own = training.distillation
        if self.objective != "distill" or own.is_server or not own.needs_scores:
            return None
        folder = folder_of(name_of(self.view, training))
        folder = folder if (folder / "config.json").is_file() else _base_of(folder)
        config = load_config(folder)
        writes = natural_form(config) != "classify" and self.form != "tag"
        form = natural_form(config) if writes else self.form
        labels = None if writes else self.labels
        model = skeleton(folder, config, load_tokenizer(folder), form, labels, NoParameters(), pooling=None)
        model.network.to(self._dtype())
        network = self._network(model, NoParameters(), training, self._dtype(), 0, passes.largest)
        rows = round(self.rows * (1 + self.sample.validation_tokens / max(1, int(self.sample.lengths.sum()))))
        return teaching(
            own,
            self.form,
            network,
            self.machine,
            passes,
            once,
            self.sample.loss_share,
            student,
            labels=len(self.labels or []),
            rows=rows,
        )

    def filled_in(self, training: Training | None = None, choice: Parameters | None = None) -> Training:
        """The settings, of the recipe or others, with the defaults that the loop would take."""
        import torch

        from tunesmith.training.defaults import with_defaults

        training, choice = training or self.stage.training, choice or self.stage.parameters
        assert choice is not None and training is not None, "the recipe is resolved"
        if choice.kind in UNTRAINED:
            return training.model_copy(update={"micro_tokens": training.micro_tokens or FEATURE_TOKENS})
        return with_defaults(
            training,
            kind=choice.kind,
            form=self.form,
            device=torch.device(self.machine.kind),
            epoch_examples=self.rows,
            objective=self.objective,
        )

    def _skeleton(self, choice: Parameters, training: Training) -> tuple[Model, torch.dtype]:
        """The stage's network on the meta device, in the precision that it would have."""
        from tunesmith.compression import fake_quantization
        from tunesmith.models import recomputing
        from tunesmith.models.load import load_config, load_tokenizer, set_dropout

        config = load_config(self.folder)
        if training.dropout is not None:
            set_dropout(config, training.dropout)
        pooling: Pooling | None = "mean" if choice.kind == "none" or self.objective == "contrastive" else None
        tokenizer = load_tokenizer(self.folder)
        model = skeleton(self.folder, config, tokenizer, self.form, self.labels, choice, pooling=pooling)
        dtype = self._dtype()
        model.network.to(dtype)
        if training.quantization_aware is not None:
            fake_quantization.simulate(model, training.quantization_aware)
        if training.recompute == "on" and recomputing.obstacle(model) is None:
            recomputing.begin(model)
        return model, dtype

    def _dtype(self) -> torch.dtype:
        """The precision that the machine would compute in."""
        import torch

        from tunesmith.models.precision import choose_dtype, default_device

        if self.machine.here:
            return choose_dtype(self.view.precision, default_device())
        wanted = {"fp32": torch.float32, "fp64": torch.float64}
        return wanted.get(self.view.precision, torch.bfloat16)

    def _padded(self, model: Model) -> bool:
        """Whether rows are filled up to the longest of their pass."""
        from tunesmith.models.heads import SentenceClassifier

        packs = self.form in ("generate", "tag", "mask") or isinstance(model.network, SentenceClassifier)
        return self.machine.kind == "cuda" or not packs or model.virtual_tokens > 0

    def _work(self, training: Training, trains: bool, padded: bool) -> tuple[int, int, Passes, Passes, float, float]:
        """Updates, tokens trained on, passes of the training and of reading, passes an update, and epochs."""
        from tunesmith.training.loop import total_steps

        sample, micro = self.sample, training.micro_tokens or FEATURE_TOKENS
        once = int(sample.lengths.sum())
        if not trains:
            read = costs.read_passes(once + sample.validation_tokens, sample.typical_length, micro)
            return 0, 0, read.times(0), read, 0.0, 1.0
        steps = total_steps(sample.lengths, training)
        an_epoch, passes = costs.epoch_passes(sample, training, padded=padded)
        epochs = training.epochs if training.max_steps is None else steps / max(1, an_epoch)
        validations = steps // training.eval_steps if training.eval_steps else max(1, round(epochs))
        read = costs.read_passes(sample.validation_tokens * validations, sample.typical_length, micro)
        return steps, int(once * epochs), passes.times(epochs), read, passes.count / max(1, an_epoch), epochs

    def _network(
        self,
        model: Model,
        choice: Parameters,
        training: Training,
        dtype: torch.dtype,
        steps: int,
        largest: tuple[float, float],
    ) -> Network:
        from tunesmith.models.model import TEXT_HEADS
        from tunesmith.training import compiling

        trains = choice.kind not in UNTRAINED
        writes = self.form not in (*TEXT_HEADS, "tag")
        head = next(iter(model.vocabulary_head().parameters())) if writes else None
        sides = (0, 0) if head is None else (int(head.shape[0]), int(head.shape[-1]))
        quantized = getattr(choice, "quantization", "none")
        unread, read = self._word_vectors(model, training) if trains else (0.0, 0.0)
        return Network(
            scaled=_costs_of(model, self.machine, largest),
            total=model.total_parameters,
            trainable=model.trainable_parameters if trains else 0,
            unread=unread,
            copied=read,
            weight_bytes=costs.weight_bytes(model, dtype.itemsize, quantized, getattr(choice, "quantizer", "torchao")),
            narrow=dtype.itemsize < 4,
            wide=dtype.itemsize,
            head=sides,
            head_trains=trains and head is not None and head.requires_grad,
            compiled=trains
            and compiling.chosen(model, training, steps, matrix_units=self.machine.matrix_units)
            and (self.machine.kind == "cuda" or compiling.has_compiler()),
            narrow_moments=training.optimizer == "adamw-8bit",
        )

    def _word_vectors(self, model: Model, training: Training) -> tuple[float, float]:
        """Parameters of word vectors that no text reads, and of those that one does; nothing where all are updated."""
        from tunesmith import objectives
        from tunesmith.training.read_rows import WORTHWHILE_SHARE, table_of

        layer = table_of(model)
        if (
            layer is None or training.optimizer == "adamw-8bit" or self.view.sequence.replay
        ):  # of texts not sampled here
            return 0.0, 0.0
        rows, width = layer.weight.shape
        read = min(self.sample.words, rows)
        shows_others = self.objective in REWARDED or objectives.make(self.objective, training).shows_others
        return (0.0, 0.0) if shows_others or read > WORTHWHILE_SHARE * rows else ((rows - read) * width, read * width)


def _base_of(folder: Path) -> Path:
    """The base of a run whose model is an adapter: its sizes are the teacher's but for the adapter's few weights."""
    from tunesmith.models.bases import find_base
    from tunesmith.models.saving import read_notes

    return find_base(read_notes(folder), folder)


def _layout(largest: tuple[float, float]) -> Layout:
    """Rows of one width for the tokens and pairs of a pass."""
    tokens, pairs = largest
    width = max(1, round(pairs / max(1.0, tokens)))
    return Layout(max(1, round(tokens / width)), width)


def _costs_of(model: Model, machine: Machine, largest: tuple[float, float]) -> Scaled:
    """Dry runs of a network; by formula where it computes with values, which a dry run has none of."""
    with contextlib.suppress(RuntimeError, NotImplementedError, TypeError, AttributeError, ValueError, IndexError):
        return scaled(model, machine, _layout(largest))
    return by_formula(model, machine)


def _advice(recipe: Recipe, made: Plan, planners: Sequence[StagePlanner], machine: Machine) -> list[str]:
    """What would help besides memory, most important first."""
    advice = []
    if made.seconds.low > LONG_SECONDS:
        advice.append("it will run for hours: try it first with `data.max_rows`, or with `training.max_steps`")
    cut = max(planner.sample.cut_share for planner in planners)
    if cut > CUT_SHARE:
        advice.append(f"{cut:.0%} of the examples are cut to fit: see `data.max_length`")
    if machine.here and made.disk_bytes > shutil.disk_usage(Path.cwd()).free:
        size, free = words.size(made.disk_bytes), words.size(shutil.disk_usage(Path.cwd()).free)
        advice.append(f"its checkpoints and model take up to {size} and {free} of disk are free here")
    return advice
