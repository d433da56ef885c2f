"""What each stage of a run gave: language stages on held-out text of their corpus, and the task without them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tunesmith import catalog
from tunesmith.data.prepare import PreparedData
from tunesmith.data.rows import Row
from tunesmith.evaluation import answering
from tunesmith.evaluation.answering import Setting
from tunesmith.evaluation.comparison import System
from tunesmith.evaluation.intervals import Interval
from tunesmith.evaluation.likelihood import score_documents
from tunesmith.evaluation.metrics import METRICS, available, evaluated, measure, primary
from tunesmith.evaluation.metrics import change as difference
from tunesmith.evaluation.outputs import Outputs, Truth
from tunesmith.evaluation.report import Section
from tunesmith.events import Listener, Phase
from tunesmith.models.load import load_model
from tunesmith.models.model import Model
from tunesmith.models.precision import default_device
from tunesmith.models.saving import load_artefact
from tunesmith.recipe import Recipe
from tunesmith.tasks import TASKS

WITHOUT_DOMAIN = "without-domain"


@dataclass(frozen=True)
class StageGain:
    """A language stage, measured on text that was held back from it; lower is better.

    Attributes:
        stage: Its name.
        documents: Held-out documents.
        metric: ``bits_per_byte`` or ``masked_loss``.
        after: With the model that the stage left.
        before: With the model that it began from; ``None`` if that has no head that predicts words.
        change: After minus before, paired by document.
    """

    stage: str
    documents: int
    metric: str
    after: Interval
    before: Interval | None = None
    change: Interval | None = None

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        values = {"before": self.before, "after": self.after, "change": self.change}
        named = {name: interval.as_dict() for name, interval in values.items() if interval is not None}
        return {"stage": self.stage, "documents": self.documents, "metric": self.metric, **named}


def stage_gains(
    folder: Path, recipe: Recipe, base: Path, stages: Sequence[PreparedData], tell: Listener
) -> list[StageGain]:
    """Measure every language stage but the last one (which the run itself measures) before and after.

    Args:
        folder: The run's, where each stage left its model.
        recipe: Resolved.
        base: Folder of the base model.
        stages: Data of each stage.
        tell: Told what is measured.
    """
    found = []
    for number, (stage, data) in enumerate(zip(recipe.stages, stages, strict=False), 1):
        view = recipe.of_stage(stage)
        after = folder / "stages" / f"{number}-{stage.name}" / "merged"
        rows = list(data.test) or list(data.validation)
        if TASKS[view.task].answer == "likelihood" and number < len(recipe.stages) and rows:
            tell(Phase(step="evaluate", message=f"stage {stage.name}: {len(rows)} held-out documents"))
            found.append(_gain(view, base, after, rows, tell))
        base = after
    return found


def _gain(view: Recipe, base: Path, after: Path, rows: Sequence[Row], tell: Listener) -> StageGain:
    task, settings = TASKS[view.task], view.evaluate
    right = Truth(task.answer, [task.reference(row) for row in rows])
    tuned, _ = load_artefact(after, device=default_device())
    ours = score_documents(tuned, rows, task, tell)
    metric = next(name for name in primary(right) if name in available(ours, right))
    value = measure(ours, right, settings)[metric]
    stage = view.stages[0].name
    untuned = _as_before(view, base, tuned)
    if untuned is None:
        return StageGain(stage, len(rows), metric, value)
    theirs = score_documents(untuned, rows, task, tell)
    before = measure(theirs, right, settings)[metric]
    return StageGain(stage, len(rows), metric, value, before, difference(ours, theirs, right, settings))


def _as_before(view: Recipe, base: Path, tuned: Model) -> Model | None:
    """The model that a stage began from, in the same form; ``None`` if its head would be a random one."""
    model = load_model(
        base, name=view.model, form=tuned.form, dtype=tuned.dtype, device=tuned.device, max_length=tuned.max_length
    )
    return None if tuned.form == "mask" and model.head_names else model


def gains_section(gains: Sequence[StageGain]) -> Section:
    """For the report."""
    rows = [
        [
            f"{gain.stage}: {METRICS[gain.metric].title.lower()} of {gain.documents} held-out documents",
            "–" if gain.before is None else gain.before.format(),
            gain.after.format(),
            "–" if gain.change is None else gain.change.format(signed=True),
        ]
        for gain in gains
    ]
    lead = (
        "Language stages are measured on text of their corpus that was held back from them: lower is better. "
        "What they gave to the task is the difference to the system “without the domain stage” above."
    )
    columns = ["Stage", "Before it", "After it", "Change"]
    return Section("stages", "What each stage gave", lead, columns, rows, [gain.as_dict() for gain in gains])


def without_domain(
    folder: Path,
    recipe: Recipe,
    data: PreparedData,
    rows: Sequence[Row],
    right: Truth,
    setting: Setting,
    tell: Listener,
) -> System:
    """Train the last stage from the plain base, with the same data, seed and settings, and measure it.

    Its checkpoints lie in a folder of the run, so that a resume goes on with it too.
    """
    from tunesmith.training.stages import tune_stages

    stage = recipe.stages[-1].model_copy(update={"name": WITHOUT_DOMAIN})
    alone = recipe.of_stage(recipe.stages[-1]).model_copy(update={"stages": [stage]})
    tell(Phase(step="evaluate", message="the task without the domain stage: tuning it from the plain base"))
    trained = tune_stages(folder / WITHOUT_DOMAIN, alone, catalog.model_folder(recipe.model), [data], tell)
    outputs: Outputs = answering.answer(trained.model, rows, replace(setting, on_event=tell))
    metrics = measure(outputs, right, recipe.evaluate)
    tell(evaluated(WITHOUT_DOMAIN, outputs, metrics))
    return System(
        WITHOUT_DOMAIN,
        f"{recipe.model}, without the domain stage",
        "the same task stage, begun from the plain base",
        outputs,
        metrics,
        parameters=trained.facts["total_parameters"],
        trainable_parameters=trained.facts["trainable_parameters"],
        training_seconds=trained.seconds,
    )
