"""Steps 3 and 4 for every stage of a recipe: tune the model, keep what came out."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tunesmith import catalog, disk, environment, runs
from tunesmith.data.prepare import PreparedData
from tunesmith.events import Listener
from tunesmith.models.combining import COMBINATIONS, combine
from tunesmith.models.merging import merge
from tunesmith.models.model import Model
from tunesmith.models.saving import load_artefact, save_artefact
from tunesmith.recipe import PICTURES, InContext, NoParameters, Recipe
from tunesmith.training import checkpoint, fits, updates
from tunesmith.training.outcome import Taken, Trained
from tunesmith.training.remedies import Earlier
from tunesmith.training.teaching import taught

TAKEN = "taken.json"
"""File in a stage's folder: what its training took, for the process that goes on after it."""


def tune_stages(folder: Path, recipe: Recipe, base: Path, data: Sequence[PreparedData], tell: Listener) -> Trained:
    """All stages; the last one's model is saved as the run's, with what all of them took.

    Args:
        folder: The run's.
        recipe: Resolved.
        base: Folder of the base model.
        data: Of each stage.
        tell: Told everything that happens.
    """
    trained: Trained | None = None
    taken = Taken()
    earlier: list[Earlier] = []
    apart = recipe.sequence.adapters != "chain"
    unlike = any(stage.parameters != recipe.stages[0].parameters for stage in recipe.stages)
    for number, (stage, prepared) in enumerate(zip(recipe.stages, data, strict=True)):
        view = recipe.of_stage(stage)
        place, result = runs.stage_folder(folder, recipe, number), runs.stage_result(folder, recipe, number)
        last = number == len(recipe.stages) - 1
        aside = stage.model is not None  # a judge for a later stage, which does not begin from it
        if last or not result.is_dir():  # else it was done before this process began
            prepared = taught(prepared, view, stage, place, tell)
            identity = _identity(recipe, prepared)
            _refuse_foreign_checkpoint(place, identity)
            tokens = folder / "tokens" / place.name
            own_base = catalog.model_folder(view.model, on_event=tell) if aside else base
            trained = _tuned(
                updates.Work(view, own_base, prepared, place, tokens, identity, earlier, last, unlike), tell
            )
            taken += trained.taken
            if apart or not last:
                disk.write_json(place / TAKEN, asdict(trained.taken))
                save = _save if apart else _save_merged
                disk.write_folder(result, functools.partial(save, trained.model, view))
        else:
            taken += _taken_before(folder, place, stage.name)
        earlier = [*earlier, Earlier(view, place, prepared)]
        base = base if apart or aside else result
    assert trained is not None
    if recipe.sequence.adapters in COMBINATIONS and len(earlier) > 1:
        parts = [runs.stage_result(folder, recipe, number) for number in range(len(earlier))]
        model, _ = load_artefact(parts[-1], device=trained.model.device)  # on the base as it was, whatever PiSSA took
        combine(model, parts, recipe.sequence.adapters, recipe.training.seed)
        trained = dataclasses.replace(trained, model=model)
    disk.write_folder(folder / "model", functools.partial(_save, trained.model, recipe))
    return dataclasses.replace(trained, facts=trained.facts | taken.as_facts(), seconds=taken.seconds)


def _taken_before(folder: Path, place: Path, stage: str) -> Taken:
    """What a stage took that was done before this process began: as it says itself, else by the run's events."""
    path = place / TAKEN
    if path.is_file():
        return Taken(**json.loads(path.read_text(encoding="utf-8")))
    found, measuring = Taken(), False
    for event in runs.read_events(folder):
        if event["type"] == "run_started":
            measuring = False
        elif event["type"] == "phase" and event["step"] == "evaluate":  # rivals may train in stages of the same names
            measuring = True
        elif event["type"] == "stage_finished" and event["stage"] == stage and not measuring:
            found = Taken(event["seconds"], event["tokens"], event["peak_memory_bytes"])
    return found


def _tuned(work: updates.Work, tell: Listener) -> Trained:
    """One stage, by what its parameters are: fitted, shown or updated."""
    recipe, stage = work.recipe, work.stage
    if isinstance(stage.parameters, InContext):
        return fits.show_examples(recipe, stage, work.base, work.data, tell)
    if not isinstance(stage.parameters, NoParameters):
        return updates.train(work, tell)
    fit = fits.fit_pictures if recipe.task in PICTURES else fits.fit
    return fit(recipe, work.base, work.data, tell)


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
