"""What each stage of a run gave: language stages on held-out text of their corpus, and the task without them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tunesmith import runs
from tunesmith.data.prepare import PreparedData
from tunesmith.data.rows import Row
from tunesmith.evaluation.before_after import BeforeAfter, before_and_after
from tunesmith.evaluation.comparison import System
from tunesmith.evaluation.held_out import held_out
from tunesmith.evaluation.metrics import METRICS
from tunesmith.evaluation.report import Section
from tunesmith.evaluation.retraining import trained_otherwise
from tunesmith.events import Listener, Phase
from tunesmith.models.precision import default_device
from tunesmith.models.saving import load_artefact
from tunesmith.prediction.outputs import Truth
from tunesmith.prediction.setting import Setting
from tunesmith.recipe import Recipe
from tunesmith.tasks import TASKS

WITHOUT_DOMAIN = "without-domain"


def stage_gains(
    folder: Path, recipe: Recipe, base: Path, stages: Sequence[PreparedData], tell: Listener
) -> dict[str, BeforeAfter]:
    """Measure every language stage but the last one (which the run itself measures) before and after.

    Args:
        folder: The run's, where each stage left its model.
        recipe: Resolved.
        base: Folder of the base model.
        stages: Data of each stage.
        tell: Told what is measured.

    Returns:
        By the stages' names.
    """
    found = {}
    for number, (stage, data) in enumerate(zip(recipe.stages[:-1], stages, strict=False)):
        view = recipe.of_stage(stage)
        after = runs.stage_result(folder, recipe, number)
        likelihood = TASKS[view.task].answer == "likelihood"
        if likelihood and (rows := held_out(data, tell, stage=stage.name)):
            tell(Phase(step="evaluate", message=f"stage {stage.name}: {len(rows)} held-out documents"))
            tuned, _ = load_artefact(after, device=default_device())
            found[stage.name] = before_and_after(rows, view, base, tuned, tell)
        if recipe.sequence.adapters == "chain" and stage.model is None:  # else later stages begin from what was before
            base = after
    return found


def gains_section(gains: Mapping[str, BeforeAfter], *, without: bool) -> Section:
    """For the report; ``without`` says that the task without them was measured too."""
    rows = [
        [f"{stage}: {METRICS[gain.metric].title.lower()} of {gain.documents} held-out documents", *gain.cells()]
        for stage, gain in gains.items()
    ]
    lead = "Language stages are measured on text of their corpus that was held back from them: lower is better."
    if without:
        lead += " What they gave to the task is the difference to the system “without the domain stage” above."
    columns = ["Stage", "Before it", "After it", "Change"]
    facts = [{"stage": stage} | gain.as_dict() for stage, gain in gains.items()]
    return Section("stages", "What each stage gave", lead, columns, rows, facts)


def without_domain(
    folder: Path,
    recipe: Recipe,
    data: PreparedData,
    rows: Sequence[Row],
    right: Truth,
    setting: Setting,
    tell: Listener,
) -> System:
    """Train the last stage from the plain base, with the same data, seed and settings, and measure it."""
    stage = recipe.stages[-1].model_copy(update={"name": WITHOUT_DOMAIN})
    alone = recipe.of_stage(recipe.stages[-1]).model_copy(update={"stages": [stage]})
    tell(Phase(step="evaluate", message="the task without the domain stage: tuning it from the plain base"))
    named = (
        WITHOUT_DOMAIN,
        f"{recipe.model}, without the domain stage",
        "the same task stage, begun from the plain base",
    )
    return trained_otherwise(folder, alone, [data], named, rows, right, setting, tell)
