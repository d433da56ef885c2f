"""Steps 3 and 4 for every stage of a recipe: build the model, run the loop, keep what came out."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tunesmith import catalog, disk, environment, objectives, rewards
from tunesmith.compression import fake_quantization
from tunesmith.data.batches import TokenFile, write_tokens
from tunesmith.data.documents import block_renderer, write_documents
from tunesmith.data.picture_file import PictureFile
from tunesmith.data.prepare import PreparedData
from tunesmith.data.render import ConversationRenderer, prompt_renderer
from tunesmith.data.renderers import recipe_renderer
from tunesmith.data.rows import Row
from tunesmith.errors import RecipeError
from tunesmith.evaluation.thresholds import tune_thresholds
from tunesmith.events import Listener, Notice, Phase
from tunesmith.models.build import build_for_training
from tunesmith.models.combining import COMBINATIONS, combine, refuse_own_heads
from tunesmith.models.compiling import compile_if_worthwhile
from tunesmith.models.cutting import keep_layers
from tunesmith.models.forms import answer_form, form_of
from tunesmith.models.heads import SentenceClassifier, pooling_of
from tunesmith.models.image_classifier import ImageClassifier
from tunesmith.models.load import load_config, load_model
from tunesmith.models.merging import merge
from tunesmith.models.model import Model
from tunesmith.models.precision import choose_dtype, default_device
from tunesmith.models.saving import save_artefact
from tunesmith.models.vision import load_vision
from tunesmith.objectives.base import Objective
from tunesmith.parameters.beginnings import from_activations
from tunesmith.recipe import InContext, LoRA, NoParameters, Recipe, Stage
from tunesmith.tasks import TASKS
from tunesmith.training import checkpoint, frozen_cache
from tunesmith.training.defaults import with_defaults
from tunesmith.training.loop import StageResult, Trainer
from tunesmith.training.remedies import Earlier, against_forgetting, keep_fisher
from tunesmith.training.teaching import taught

if TYPE_CHECKING:
    from tunesmith.evaluation.answering import Setting


@dataclass(frozen=True)
class Tuning:
    """What tuning took, wherever it was done.

    Attributes:
        facts: ``tokens_per_second``, ``peak_memory_bytes``, ``trainable_parameters``, ``total_parameters``, ``tokens``.
        seconds: Wall-clock time of the updates.
    """

    facts: dict[str, Any]
    seconds: float


@dataclass(frozen=True)
class Trained(Tuning):
    """The same with the tuned model, which has its best weights."""

    model: Model


def tune_stages(folder: Path, recipe: Recipe, base: Path, data: Sequence[PreparedData], tell: Listener) -> Trained:
    """All stages; the last one's model is saved as the run's.

    Args:
        folder: The run's.
        recipe: Resolved.
        base: Folder of the base model.
        data: Of each stage.
        tell: Told everything that happens.
    """
    trained: Trained | None = None
    seconds = 0.0  # of the stages that this process worked on
    earlier: list[Earlier] = []
    for number, (stage, prepared) in enumerate(zip(recipe.stages, data, strict=True), 1):
        view = recipe.of_stage(stage)
        place = folder / "stages" / f"{number}-{stage.name}"
        last = number == len(recipe.stages)
        apart = recipe.sequence.adapters != "chain"
        result = place / ("adapter" if apart else "merged")
        aside = stage.model is not None  # a judge for a later stage, which does not begin from it
        own_base = catalog.model_folder(view.model, on_event=tell) if aside else base
        if not last and result.is_dir():
            base = base if apart or aside else result
            earlier.append(Earlier(view, place, prepared))
            continue
        prepared = taught(prepared, view, stage, place, tell)
        identity = _identity(recipe, prepared)
        _refuse_foreign_checkpoint(place, identity)
        if isinstance(stage.parameters, NoParameters):
            fit = _fit_pictures if recipe.task == "image-classification" else _fit
            trained = fit(view, own_base, prepared, tell)
        elif isinstance(stage.parameters, InContext):
            trained = _show(view, stage, own_base, prepared, tell)
        else:
            trained = _train_stage(folder, place, view, stage, own_base, prepared, identity, earlier, last, tell)
        seconds += trained.seconds
        if apart:
            disk.write_folder(result, functools.partial(_save, trained.model, view))
        elif not last:
            disk.write_folder(result, functools.partial(_save_merged, trained.model, view))
            base = base if aside else result
        earlier.append(Earlier(view, place, prepared))
    assert trained is not None
    if recipe.sequence.adapters in COMBINATIONS and len(earlier) > 1:
        parts = [stage.place / "adapter" for stage in earlier]
        combine(trained.model, parts, recipe.sequence.adapters, recipe.training.seed)
    disk.write_folder(folder / "model", functools.partial(_save, trained.model, recipe))
    return dataclasses.replace(trained, seconds=seconds)


def _train_stage(
    folder: Path,
    place: Path,
    recipe: Recipe,
    stage: Stage,
    base: Path,
    prepared: PreparedData,
    identity: dict[str, Any],
    earlier: Sequence[Earlier],
    last: bool,
    tell: Listener,
) -> Trained:
    assert stage.parameters is not None and stage.training is not None
    device = default_device()
    dtype = choose_dtype(recipe.precision, device)
    form, objective_name = form_of(recipe, stage, base)
    if recipe.task == "image-classification" and recipe.precision == "auto":
        dtype = (
            torch.float32
        )  # convolutions gain little from narrow numbers on processors, and batch norms lose by them
    if form == "score" and recipe.precision == "auto" and pooling_of(base) is None:
        dtype = torch.float32  # a stock head has the type of the base, and 56.4 in bf16 is 56.5
    tell(Phase(step="tune", message=f"stage {stage.name}: {objective_name}, {stage.parameters.kind}, {dtype}"))
    settings = with_defaults(
        stage.training,
        kind=stage.parameters.kind,
        form=form,
        device=device,
        epoch_examples=len(prepared.train),
        objective=objective_name,
    )
    disk.write_json(place / "training.json", settings.model_dump(mode="json"))
    model = build_for_training(
        base,
        name=recipe.model,
        form=form,
        labels=prepared.labels,
        choice=stage.parameters,
        training=settings,
        data=recipe.data,
        dtype=dtype,
        device=device,
        pooling=(pooling_of(base) or "mean") if objective_name == "contrastive" else None,
    )
    if recipe.sequence.adapters in COMBINATIONS:
        refuse_own_heads(model)  # before the training, not after it
    if form == "mask" and model.head_names:
        message = f"{recipe.model} has no head that predicts words: it gets a new one, tied to its embeddings"
        tell(Notice(level="info", message=message))
    tokens = folder / "tokens" / place.name
    made = {e.view.stages[0].name: e.place / "merged" for e in earlier}
    sources = rewards.of_stages(settings.rewards, made)
    objective = objectives.make(objective_name, settings.model_copy(update={"rewards": sources}))
    train, validation = (
        _rendered(model, recipe, prepared.labels, objective, rows, tokens / part, tell)
        for part, rows in (("train", prepared.train), ("validation", prepared.validation))
    )

    def remembered(
        kept: Model, view: Recipe, data: PreparedData, learned: Objective, rows: Sequence[Row], name: str
    ) -> TokenFile:
        return _rendered(kept, view, data.labels, learned, rows, tokens / name, tell)

    if isinstance(stage.parameters, LoRA) and stage.parameters.init == "eva":
        tell(Phase(step="tune", message="the adapter begins from what the training data bring to each layer (EVA)"))
        from_activations(model, train, settings.seed)
    plain = objective
    objective = against_forgetting(objective, model, recipe, earlier, settings.seed, remembered)
    objective.start(model, [train, validation], tokens, tell)
    trainer = Trainer(
        model,
        objective,
        train,
        validation,
        settings,
        place,
        identity=identity,
        name=stage.name,
        on_event=tell,
    )
    frozen_cache.remember(
        model, objective, {"train": train, "validation": validation}, settings, trainer.steps, tokens, tell
    )
    compile_if_worthwhile(model, settings.compile if objective.compiles else "off", trainer.steps, tell)
    result = trainer.run()
    fake_quantization.stop(model)
    objective.finish(model)
    if recipe.sequence.hold == "ewc" and not last:
        keep_fisher(place, earlier, model, plain, train)
    tune_thresholds(model, prepared, _setting(recipe, prepared, tell), settings)
    return Trained(_facts(model, result), result.seconds, model)


def _rendered(
    model: Model,
    recipe: Recipe,
    labels: Sequence[str] | None,
    objective: Objective,
    rows: Sequence[Row],
    folder: Path,
    tell: Listener,
) -> TokenFile:
    """Rows as the model's tokens on disk; pictures as they are."""
    if isinstance(model.network, ImageClassifier):
        settings = recipe.stages[0].training
        assert settings is not None, "the recipe is resolved"
        return PictureFile(rows, labels or [], model.network.prepare, augment=settings.augment, seed=settings.seed)
    task, what = TASKS[recipe.task], f"rendering {folder.name}"
    if task.answer == "likelihood":
        blocks = block_renderer(model.tokenizer, task, masked=model.form == "mask", max_length=model.max_length)
        pack_to = model.max_length if recipe.data.packing and model.form == "generate" else None
        return write_documents(rows, blocks, folder, pack_to=pack_to, what=what, on_event=tell)
    render = recipe_renderer(
        recipe,
        model.tokenizer,
        form=model.form,
        labels=labels,
        max_length=model.max_length,
        eos_ids=model.eos_ids,
    )
    if objective.reads_prompts:
        rendering = ConversationRenderer(model.tokenizer, model.max_length, model.eos_ids)
        render = prompt_renderer(rendering, task, recipe.system_prompt)
    return write_tokens(*objective.examples_of(rows, render), folder, what=what, on_event=tell)


def _fit(recipe: Recipe, base: Path, prepared: PreparedData, tell: Listener) -> Trained:
    """The `features` method: a classical fit instead of a loop, copied into a linear head."""
    device = default_device()
    form, _ = answer_form(recipe, recipe.stages[0], load_config(base))
    tell(Phase(step="tune", message="a classical fit on frozen features"))
    model = load_model(
        base,
        name=recipe.model,
        form=form,
        labels=prepared.labels,
        dtype=choose_dtype(recipe.precision, device),
        device=device,
        max_length=recipe.data.max_length,
        pooling=pooling_of(base) or "mean",
    )
    assert isinstance(model.network, SentenceClassifier)
    choice = recipe.stages[0].parameters
    assert isinstance(choice, NoParameters)
    if choice.layer is not None:
        _cut_above(model, choice.layer)
    started = time.perf_counter()
    setting = _setting(recipe, prepared, tell)
    _fit_head(model, choice, prepared, setting, tell)
    seconds = time.perf_counter() - started
    if recipe.stages[0].training is not None:
        tune_thresholds(model, prepared, setting, recipe.stages[0].training)
    fitted = sum(p.numel() for p in model.network.classifier.parameters())
    return Trained(_untrained(model, fitted), seconds, model)


def _fit_head(model: Model, choice: NoParameters, prepared: PreparedData, setting: Setting, tell: Listener) -> None:
    """Fit the head that the recipe asks for, and put it on the model."""
    from tunesmith.evaluation.answering import features_and_answers, fit_features
    from tunesmith.evaluation.classical import fit_classical

    network: Any = model.network
    if choice.head == "logistic":
        head = fit_features(model, prepared.train, prepared.validation, setting)
        head.copy_to(network)
        chosen = "chosen on the validation rows" if len(prepared.validation) else "by default: no validation rows"
        tell(Notice(level="info", message=f"penalty {head.penalty:g}, {chosen}"))
        return
    found = fit_classical(*features_and_answers(model, prepared.train, setting), len(model.labels or []), choice.head)
    network.classifier = found.head.to(model.device)
    tried = ", ".join(f"{title} {accuracy:.3f}" for title, accuracy in found.accuracies.items())
    why = f"cross-validated accuracy: {tried}" if tried else "by default: a label has only one row"
    tell(Notice(level="info", message=f"{found.title} ({why})"))


def _cut_above(model: Model, layer: int) -> None:
    """Leave out what comes behind a layer: its output is what the vectors are made of."""
    layers = len(model.blocks())
    if layer >= layers:
        raise RecipeError(
            f"{model.name} has {layers} layers, 0 to {layers - 1}", where="parameters.layer", fix="choose one of these"
        )
    keep_layers(model.transformer(), range(layer + 1), where="parameters.layer")


def _fit_pictures(recipe: Recipe, base: Path, prepared: PreparedData, tell: Listener) -> Trained:
    """The same for pictures, whose vectors come from the cache where they were seen before."""
    choice = recipe.stages[0].parameters
    assert isinstance(choice, NoParameters)
    tell(Phase(step="tune", message="a classical fit on the features of pictures"))
    labels = prepared.labels or []
    network = load_vision(base, name=recipe.model, labels=labels, device=default_device())
    model = Model(network, None, "classify", recipe.model, base, 0, labels)
    started = time.perf_counter()
    _fit_head(model, choice, prepared, _setting(recipe, prepared, tell), tell)
    fitted = sum(p.numel() for p in network.classifier.parameters())
    return Trained(_untrained(model, fitted), time.perf_counter() - started, model)


def _show(recipe: Recipe, stage: Stage, base: Path, prepared: PreparedData, tell: Listener) -> Trained:
    """In-context learning: the model stays as it is, and gets examples to show."""
    from tunesmith.evaluation.in_context import choose

    assert isinstance(stage.parameters, InContext) and stage.training is not None
    answer_form(recipe, stage, load_config(base))
    device = default_device()
    model = load_model(
        base,
        name=recipe.model,
        form="generate",
        labels=prepared.labels,
        dtype=choose_dtype(recipe.precision, device),
        device=device,
        max_length=recipe.data.max_length,
    )
    model.shown = choose(prepared.train, stage.parameters, TASKS[recipe.task], prepared.labels, stage.training.seed)
    tell(Phase(step="tune", message=f"{stage.parameters.examples} examples in the prompt ({stage.parameters.choose})"))
    return Trained(_untrained(model, 0), 0.0, model)


def _untrained(model: Model, fitted: int) -> dict[str, Any]:
    """The facts of a stage without updates, in which so many parameters were fitted."""
    return {
        "trainable_parameters": fitted,
        "total_parameters": model.total_parameters,
        "tokens": 0,
        "tokens_per_second": 0.0,
        "peak_memory_bytes": 0,
    }


def _setting(recipe: Recipe, prepared: PreparedData, tell: Listener) -> Setting:
    """For answers that choices are made by."""
    from tunesmith.evaluation.answering import Setting

    task, generation = TASKS[recipe.task], recipe.evaluate.generation
    return Setting(task, prepared.labels, recipe.system_prompt, generation, on_event=tell)


def _facts(model: Model, result: StageResult) -> dict[str, Any]:
    return {
        "trainable_parameters": model.trainable_parameters,
        "total_parameters": model.total_parameters,
        "tokens": result.tokens,
        "tokens_per_second": result.tokens_per_second,
        "peak_memory_bytes": result.peak_memory_bytes,
        "best_step": result.best_step,
        "steps": result.steps,
        "stopped": result.reason,
    }


def _save(model: Model, recipe: Recipe, target: Path) -> None:

    save_artefact(model, target, task=recipe.task, system_prompt=recipe.system_prompt)


def _save_merged(model: Model, recipe: Recipe, target: Path) -> None:
    """A stage's result as a plain model: the base of the next stage."""
    if model.has_adapters:
        merge(model)
    _save(model, recipe, target)


def _identity(recipe: Recipe, prepared: PreparedData) -> dict[str, Any]:
    """What must not change between the parts of one run. How it is evaluated may."""
    asked = recipe.model_dump(mode="json", exclude={"evaluate", "quantize"})
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    return {"data": prepared.fingerprint, "recipe": digest[:16], **environment.versions()}


def _refuse_foreign_checkpoint(place: Path, identity: dict[str, Any]) -> None:
    """Find out that a resume is impossible before the model is loaded."""
    found, _ = checkpoint.newest(place / "checkpoints")
    if found is not None:
        checkpoint.check_identity(found.trainer["identity"], identity, str(found.path))
