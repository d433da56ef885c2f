"""What a sequence of tasks asks for and its model cannot give, found out before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tunesmith import catalog
from tunesmith.data.prepare import PreparedData
from tunesmith.errors import UsageError
from tunesmith.models.combining import COMBINATIONS, refuse_own_heads
from tunesmith.models.forms import form_of
from tunesmith.models.heads import SentenceClassifier
from tunesmith.models.load import load_config, load_tokenizer
from tunesmith.models.model import Model
from tunesmith.models.skeleton import skeleton
from tunesmith.recipe import PICTURES, Recipe
from tunesmith.training.remedies import refuse_foreign_pooling


def refuse_infeasible(recipe: Recipe, base: Path, data: Sequence[PreparedData]) -> None:
    """Put the models of all stages beside each other, without their weights.

    Raises:
        UsageError: Adapters that shall be merged hold heads of their own or belong to other networks, or an earlier
            task cannot be replayed on a later one's body.
    """
    merges, replays = recipe.sequence.adapters in COMBINATIONS, recipe.sequence.replay > 0
    if len(recipe.stages) < 2 or not (merges or replays) or recipe.task in PICTURES:
        return
    models = [_skeleton(recipe, number, base, data[number]) for number in range(len(recipe.stages))]
    if merges:
        for model in models:
            refuse_own_heads(model)
        _refuse_other_networks(recipe, models)
    if replays:
        for number, model in enumerate(models):
            for kept in models[:number]:
                if not kept.form == model.form == "generate":
                    refuse_foreign_pooling(kept, model)
                    _refuse_left_out_tokens(kept, model)


def _skeleton(recipe: Recipe, number: int, base: Path, data: PreparedData) -> Model:
    stage = recipe.stages[number]
    assert stage.parameters is not None, "the recipe is resolved"
    folder = catalog.model_folder(stage.model) if stage.model is not None else base
    form, _ = form_of(recipe.of_stage(stage), stage, folder)
    model = skeleton(folder, load_config(folder), load_tokenizer(folder), form, data.labels, stage.parameters)
    model.name = recipe.model
    return model


def _refuse_other_networks(recipe: Recipe, models: Sequence[Model]) -> None:
    """Modules of another network have other names, so its adapter would be merged with nothing."""
    first, *others = [type(model.transformer()) for model in models]
    for stage, other in zip(recipe.stages[1:], others, strict=True):
        if other is not first:
            raise UsageError(
                f"the stage {stage.name!r} trains a {other.__name__} and the first stage a {first.__name__}, and "
                "adapters of different networks cannot be merged",
                where="sequence.adapters",
                fix="use `adapters: separate`, or `adapters: chain` with `replay`",
            )


def _refuse_left_out_tokens(kept: Model, model: Model) -> None:
    if model.virtual_tokens and not isinstance(kept.network, SentenceClassifier):
        raise UsageError(
            "virtual tokens are all that trains, and the head of an earlier task does not see them",
            where="sequence.replay",
            fix="use `parameters: {kind: lora}`, or leave out `replay`",
        )
