"""Stages without updates: a classical fit on frozen features, and examples to show in the prompt."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from tunesmith.data.prepare import PreparedData
from tunesmith.errors import RecipeError
from tunesmith.events import Listener, Notice, Phase
from tunesmith.models.cutting import keep_layers
from tunesmith.models.forms import answer_form
from tunesmith.models.heads import SentenceClassifier, pooling_of
from tunesmith.models.load import load_config, load_model
from tunesmith.models.model import Model
from tunesmith.models.precision import choose_dtype, default_device
from tunesmith.models.vision import load_vision
from tunesmith.prediction.answering import features_and_answers, fit_features
from tunesmith.prediction.classical import fit_classical
from tunesmith.prediction.in_context import choose
from tunesmith.prediction.setting import Setting
from tunesmith.prediction.thresholds import tune_thresholds
from tunesmith.recipe import InContext, NoParameters, Recipe, Stage
from tunesmith.tasks import TASKS
from tunesmith.training.memory import PeakMemory
from tunesmith.training.outcome import Trained, facts_without_updates


def fit(recipe: Recipe, base: Path, prepared: PreparedData, tell: Listener) -> Trained:
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
    started, memory = time.perf_counter(), PeakMemory()
    setting = setting_of(recipe, prepared, tell)
    _fit_head(model, choice, prepared, setting, tell)
    seconds = time.perf_counter() - started
    if recipe.stages[0].training is not None:
        tune_thresholds(model, prepared, setting, recipe.stages[0].training)
    fitted = sum(p.numel() for p in model.network.classifier.parameters())
    return Trained(facts_without_updates(model, fitted, memory.bytes()), seconds, model)


def _fit_head(model: Model, choice: NoParameters, prepared: PreparedData, setting: Setting, tell: Listener) -> None:
    """Fit the head that the recipe asks for, and put it on the model."""
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


def fit_pictures(recipe: Recipe, base: Path, prepared: PreparedData, tell: Listener) -> Trained:
    """The same for pictures, whose vectors come from the cache where they were seen before."""
    choice = recipe.stages[0].parameters
    assert isinstance(choice, NoParameters)
    tell(Phase(step="tune", message="a classical fit on the features of pictures"))
    labels = prepared.labels or []
    network = load_vision(base, name=recipe.model, labels=labels, device=default_device())
    model = Model(network, None, "classify", recipe.model, base, 0, labels)
    started, memory = time.perf_counter(), PeakMemory()
    _fit_head(model, choice, prepared, setting_of(recipe, prepared, tell), tell)
    seconds = time.perf_counter() - started
    fitted = sum(p.numel() for p in network.classifier.parameters())
    return Trained(facts_without_updates(model, fitted, memory.bytes()), seconds, model)


def show_examples(recipe: Recipe, stage: Stage, base: Path, prepared: PreparedData, tell: Listener) -> Trained:
    """In-context learning: the model stays as it is, and gets examples to show."""
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
    memory = PeakMemory()
    model.shown = choose(prepared.train, stage.parameters, TASKS[recipe.task], prepared.labels, stage.training.seed)
    tell(Phase(step="tune", message=f"{stage.parameters.examples} examples in the prompt ({stage.parameters.choose})"))
    return Trained(facts_without_updates(model, 0, memory.bytes()), 0.0, model)


def setting_of(recipe: Recipe, prepared: PreparedData, tell: Listener) -> Setting:
    """For answers that choices are made by."""
    task, generation = TASKS[recipe.task], recipe.evaluate.generation
    return Setting(task, prepared.labels, recipe.system_prompt, generation, on_event=tell)
