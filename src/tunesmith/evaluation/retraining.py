"""What a run's model would be, had it been trained in another way: the only fair rival of the way it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tunesmith.data.prepare import PreparedData
from tunesmith.data.rows import Row
from tunesmith.evaluation.comparison import System
from tunesmith.evaluation.metrics import evaluated, measure
from tunesmith.events import Listener
from tunesmith.models.cutting import base_folder
from tunesmith.prediction import answering
from tunesmith.prediction.outputs import Outputs, Truth
from tunesmith.prediction.setting import Setting
from tunesmith.recipe import Recipe


def trained_otherwise(
    folder: Path,
    recipe: Recipe,
    data: Sequence[PreparedData],
    named: tuple[str, str, str],
    rows: Sequence[Row],
    right: Truth,
    setting: Setting,
    tell: Listener,
) -> System:
    """Train by another recipe, and measure.

    Its checkpoints lie in a folder of the run, so that a resume goes on with it too.

    Args:
        folder: The run's.
        recipe: Resolved, with the other stages.
        data: Of each stage.
        named: Name, title and description of the system.
        rows: To measure on.
        right: Their right answers.
        setting: What all systems share.
        tell: Told everything that happens.
    """
    from tunesmith.training.stages import tune_stages

    name, title, what = named
    trained = tune_stages(folder / name, recipe, base_folder(recipe, tell), data, tell)
    outputs: Outputs = answering.answer(trained.model, rows, replace(setting, on_event=tell))
    metrics = measure(outputs, right, recipe.evaluate)
    tell(evaluated(name, outputs, metrics))
    return System(
        name,
        title,
        what,
        outputs,
        metrics,
        parameters=trained.facts["total_parameters"],
        trainable_parameters=trained.facts["trainable_parameters"],
        training_seconds=trained.seconds,
    )
