"""Remedies against forgetting, put around the objective of a stage: replay, and holding the weights."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from tunesmith import objectives
from tunesmith.data.batches import TokenFile
from tunesmith.data.prepare import PreparedData
from tunesmith.data.rows import Row
from tunesmith.errors import UsageError
from tunesmith.models.forms import answer_form
from tunesmith.models.heads import SentenceClassifier
from tunesmith.models.load import load_config
from tunesmith.models.model import Model, decoder_of
from tunesmith.models.saving import load_artefact
from tunesmith.objectives.base import Objective
from tunesmith.objectives.held import Held, added, fisher
from tunesmith.objectives.replay import Memory, Replay
from tunesmith.recipe import Recipe

REMEMBERED = 2000
"""Training rows of each earlier stage that replay draws from."""
FISHER = "fisher.safetensors"

Render = Callable[[Model, Recipe, PreparedData, Objective, Sequence[Row], str], TokenFile]


@dataclass(frozen=True)
class Earlier:
    """A stage that is done: the recipe as it saw it, its folder (with ``merged`` in it), and its data."""

    view: Recipe
    place: Path
    data: PreparedData


def against_forgetting(
    objective: Objective, model: Model, recipe: Recipe, earlier: Sequence[Earlier], seed: int, render: Render
) -> Objective:
    """The objective with what the recipe asks for against forgetting; as it is in a first stage.

    Args:
        objective: Of this stage.
        model: Ready to train.
        recipe: Its ``sequence`` is read.
        earlier: The stages before this one.
        seed: Of the draws.
        render: Writes rows of an earlier stage as tokens.
    """
    settings = recipe.sequence
    if not earlier:
        return objective
    if settings.replay:
        memories = [_memory(model, stage, render) for stage in earlier]
        objective = Replay(objective, memories, settings.replay, seed)
    if settings.hold != "none":  # around replay: the penalty is for each unit of weight, that of the replayed rows too
        importance = _read(earlier[-1].place / FISHER, model) if settings.hold == "ewc" else None
        objective = Held(objective, settings.hold_strength, importance)
    return objective


def keep_fisher(
    place: Path, earlier: Sequence[Earlier], model: Model, objective: Objective, data: TokenFile, *, whole: bool
) -> None:
    """Write what EWC needs of a stage that is done: its Fisher information added to that of the stages before it.

    Args:
        place: The stage's folder.
        earlier: The stages before it.
        model: As the stage left it.
        objective: Its own.
        data: Its training rows.
        whole: Other stages train other parts, so what this one left as it was is measured as well.
    """
    from safetensors.torch import save_file

    found = fisher(model, objective, data, seed=0, whole=whole)
    if earlier:
        found = added(_read(earlier[-1].place / FISHER, model), found)
    staging = place / f".{FISHER}"
    save_file({name: tensor.cpu().contiguous() for name, tensor in found.items()}, staging)
    os.replace(staging, place / FISHER)


def _read(path: Path, model: Model) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(path, device=str(model.device))


def _memory(model: Model, stage: Earlier, render: Render) -> Memory:
    """An earlier task, with its head on the body that trains now."""
    kept, _ = load_artefact(stage.place / "merged", device=model.device)
    view = stage.view
    _, name = answer_form(view, view.stages[0], load_config(stage.place / "merged"))
    assert view.stages[0].training is not None, "the recipe is resolved"
    objective = objectives.make(name, view.stages[0].training)
    rows = sorted(stage.data.train, key=lambda row: row.key)[:REMEMBERED]
    data = render(kept, view, stage.data, objective, rows, f"replay-{stage.place.name}")
    objective.restart(kept, data)
    if kept.form == model.form == "generate":
        return Memory(objective, model, data)
    share_body(kept, model)
    return Memory(objective, kept, data)


def share_body(kept: Model, model: Model) -> None:
    """Let the head of ``kept``, which stays as it is, stand on the body of ``model``, which trains.

    Raises:
        UsageError: The head needs a pooling layer that the body has not.
    """
    refuse_foreign_pooling(kept, model)
    kept.network.requires_grad_(False)
    body, network = decoder_of(model.transformer()), cast(Any, kept.network)
    if isinstance(network, SentenceClassifier):  # with the virtual tokens that the other may have
        network.encoder = model.wrapped if isinstance(model.network, SentenceClassifier) else body
    else:
        setattr(network, network.base_model_prefix, body)
    kept.packable_length = model.packable_length


def refuse_foreign_pooling(kept: Model, model: Model) -> None:
    """Stock classifiers of some families have a pooling layer between body and head, which other networks lack.

    Raises:
        UsageError: The head of ``kept`` needs one that the body of ``model`` has not.
    """
    body, own = decoder_of(model.transformer()), decoder_of(kept.transformer())
    if getattr(own, "pooler", None) is not None and getattr(body, "pooler", None) is None:
        raise UsageError(
            f"{kept.name} has a head with a pooling layer of its own, so its task cannot be replayed beside this one",
            where="sequence.replay",
            fix="use a sentence encoder, or `sequence: {hold: l2}`",
        )
