"""A stage of updates: build the model, render the rows, run the loop."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tunesmith import disk, objectives, rewards
from tunesmith.compression import fake_quantization
from tunesmith.data.batches import TokenFile, write_tokens
from tunesmith.data.documents import block_renderer, write_documents
from tunesmith.data.dropped import sieved
from tunesmith.data.picture_file import PictureFile
from tunesmith.data.prepare import PreparedData
from tunesmith.data.render import ConversationRenderer, prompt_renderer
from tunesmith.data.renderers import model_renderer
from tunesmith.data.rows import Row
from tunesmith.errors import RecipeError
from tunesmith.events import Listener, Notice, Phase
from tunesmith.models import recomputing
from tunesmith.models.build import build_for_training
from tunesmith.models.combining import COMBINATIONS, refuse_own_heads
from tunesmith.models.forms import form_of
from tunesmith.models.heads import pooling_of
from tunesmith.models.image_classifier import ImageClassifier
from tunesmith.models.model import Form, Model
from tunesmith.models.precision import choose_dtype, default_device
from tunesmith.objectives.base import Objective
from tunesmith.parameters.beginnings import from_activations
from tunesmith.prediction.thresholds import tune_thresholds
from tunesmith.recipe import PICTURES, LoRA, ObjectiveName, Recipe, Stage, Training
from tunesmith.tasks import TASKS
from tunesmith.training import frozen_cache
from tunesmith.training.compiling import compile_if_worthwhile
from tunesmith.training.defaults import with_defaults
from tunesmith.training.fits import setting_of
from tunesmith.training.loop import StageResult, Trainer
from tunesmith.training.outcome import Trained
from tunesmith.training.remedies import Earlier, against_forgetting, keep_fisher


@dataclass(frozen=True)
class Work:
    """What a stage of updates works on.

    Attributes:
        recipe: As the stage sees it: with no other stage.
        base: Folder of the model that it begins from.
        data: Its own.
        place: Its folder, for checkpoints and what later stages need.
        tokens: Folder for its rendered rows.
        identity: What must be the same for a resume.
        earlier: The stages before it.
        last: Whether no stage comes after it.
        unlike: Whether other stages let other parameters train.
    """

    recipe: Recipe
    base: Path
    data: PreparedData
    place: Path
    tokens: Path
    identity: dict[str, Any]
    earlier: Sequence[Earlier]
    last: bool
    unlike: bool

    @property
    def stage(self) -> Stage:
        """The recipe's only one."""
        return self.recipe.stages[0]


def train(work: Work, tell: Listener) -> Trained:
    """Train the model of a stage by its objective, with its best weights at the end."""
    recipe, stage, data = work.recipe, work.stage, work.data
    assert stage.parameters is not None and stage.training is not None
    device = default_device()
    form, objective_name = form_of(recipe, stage, work.base)
    dtype = _dtype(recipe, form, work.base, device)
    tell(Phase(step="tune", message=f"stage {stage.name}: {objective_name}, {stage.parameters.kind}, {dtype}"))
    settings = with_defaults(
        stage.training,
        kind=stage.parameters.kind,
        form=form,
        device=device,
        epoch_examples=len(data.train),
        objective=objective_name,
    )
    disk.write_json(work.place / "training.json", settings.model_dump(mode="json"))
    model = _model(work, form, objective_name, settings, dtype, device, tell)
    plain = _objective(work, objective_name, settings)
    render = functools.partial(_rendered, work, tell)
    train_rows = render(model, recipe, data, plain, data.train, "train")
    validation_rows = render(model, recipe, data, plain, data.validation, "validation")
    if isinstance(stage.parameters, LoRA) and stage.parameters.init == "eva":
        tell(Phase(step="tune", message="the adapter begins from what the training data bring to each layer (EVA)"))
        from_activations(model, train_rows, settings.seed)
    objective = against_forgetting(plain, model, recipe, work.earlier, settings.seed, render)
    objective.start(model, [train_rows, validation_rows], work.tokens, tell)
    result = _updated(work, model, objective, train_rows, validation_rows, settings, tell)
    if recipe.sequence.hold == "ewc" and not work.last:  # before `finish`: in the units of the loss
        keep_fisher(work.place, work.earlier, model, plain, train_rows, whole=work.unlike)
    objective.finish(model)
    tune_thresholds(model, data, setting_of(recipe, data, tell), settings)
    return Trained(_facts(model, result), result.seconds, model)


def _dtype(recipe: Recipe, form: Form, base: Path, device: torch.device) -> torch.dtype:
    """Of weights and activations: as the recipe says, else fp32 where narrow numbers lose more than they gain."""
    if recipe.precision == "auto":
        if recipe.task in PICTURES:
            return torch.float32  # convolutions gain little from them on processors, and batch norms lose by them
        if form == "score" and pooling_of(base) is None:
            return torch.float32  # a stock head has the type of the base, and 56.4 in bf16 is 56.5
    return choose_dtype(recipe.precision, device)


def _model(
    work: Work,
    form: Form,
    objective_name: ObjectiveName,
    settings: Training,
    dtype: torch.dtype,
    device: torch.device,
    tell: Listener,
) -> Model:
    recipe, choice = work.recipe, work.stage.parameters
    assert choice is not None
    model = build_for_training(
        work.base,
        name=recipe.model,
        form=form,
        labels=work.data.labels,
        choice=choice,
        training=settings,
        data=recipe.data,
        dtype=dtype,
        device=device,
        pooling=(pooling_of(work.base) or "mean") if objective_name == "contrastive" else None,
    )
    if recipe.sequence.adapters in COMBINATIONS:
        refuse_own_heads(model)  # before the training, not after it
    if form == "mask" and model.head_names:
        message = f"{recipe.model} has no head that predicts words: it gets a new one, tied to its embeddings"
        tell(Notice(level="info", message=message))
    return model


def _objective(work: Work, name: ObjectiveName, settings: Training) -> Objective:
    """What is minimised; its rewards may be models that earlier stages made."""
    made = {stage.view.stages[0].name: stage.place / "merged" for stage in work.earlier}
    sources = rewards.of_stages(settings.rewards, made)
    return objectives.make(name, settings.model_copy(update={"rewards": sources}))


def _updated(
    work: Work,
    model: Model,
    objective: Objective,
    train_rows: TokenFile,
    validation_rows: TokenFile,
    settings: Training,
    tell: Listener,
) -> StageResult:
    """Run the loop, with frozen layers cached and the model compiled where that pays; then put training aids away."""
    trainer = Trainer(
        model,
        objective,
        train_rows,
        validation_rows,
        settings,
        work.place,
        identity=work.identity,
        name=work.stage.name,
        on_event=tell,
    )
    sets = {"train": train_rows, "validation": validation_rows}
    frozen_cache.remember(model, objective, sets, settings, trainer.steps, work.tokens, tell)
    if settings.recompute == "on":
        _recompute(model)
    if objective.compiles:
        compile_if_worthwhile(model, settings, trainer.steps, tell)
    result = trainer.run()
    fake_quantization.stop(model)
    return result


def _recompute(model: Model) -> None:
    reason = recomputing.obstacle(model)
    if reason is not None:
        fix = "leave it at `auto`, and lower `training.micro_tokens`"
        raise RecipeError(f"activations cannot be recomputed: {reason}", where="training.recompute", fix=fix)
    recomputing.begin(model)


def _rendered(
    work: Work,
    tell: Listener,
    model: Model,
    recipe: Recipe,
    data: PreparedData,
    objective: Objective,
    rows: Sequence[Row],
    name: str,
) -> TokenFile:
    """Some of the data's rows as the model's tokens in ``tokens/name``; pictures as they are.

    Raises:
        DataError: Nothing can be learned from a row, or it is cut and must not be, unless such rows are left out.
    """
    if isinstance(model.network, ImageClassifier):
        settings = recipe.stages[0].training
        assert settings is not None, "the recipe is resolved"
        return PictureFile(rows, data.labels or [], model.network.prepare, augment=settings.augment, seed=settings.seed)
    folder, what, task = work.tokens / name, f"rendering {name}", TASKS[recipe.task]
    dropped_to = work.place / f"dropped-{name}.jsonl" if recipe.data.drop_bad else None
    if task.answer == "likelihood":
        blocks = block_renderer(model.tokenizer, task, masked=model.form == "mask", max_length=model.max_length)
        pack_to = model.max_length if recipe.data.packing and model.form == "generate" else None
        return write_documents(rows, blocks, folder, pack_to=pack_to, what=what, dropped_to=dropped_to, on_event=tell)
    render = model_renderer(recipe, model, data.labels)
    if objective.reads_prompts:
        rendering = ConversationRenderer(model.tokenizer, model.max_length, model.eos_ids)
        render = prompt_renderer(rendering, task, recipe.system_prompt)
    if objective.joins_rows:
        rows, dropped_to = [rows[n] for n, _ in sieved(rows, render, dropped_to, what, tell)], None
    examples = objective.examples_of(rows, render)
    return write_tokens(*examples, folder, what=what, dropped_to=dropped_to, on_event=tell)


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
