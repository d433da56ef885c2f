"""How good the judges are that stages of a run made for later stages: each on its own test pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tunesmith.data.prepare import PreparedData
from tunesmith.evaluation import pairs
from tunesmith.evaluation.held_out import held_out
from tunesmith.evaluation.intervals import Interval
from tunesmith.evaluation.metrics import METRICS, measure
from tunesmith.evaluation.pairs import LengthBand
from tunesmith.evaluation.report import Section
from tunesmith.events import Listener, Phase
from tunesmith.models.precision import default_device
from tunesmith.models.saving import load_artefact
from tunesmith.prediction import answering, preferences
from tunesmith.prediction.outputs import Truth
from tunesmith.prediction.setting import Setting
from tunesmith.recipe import Recipe
from tunesmith.tasks import TASKS


@dataclass(frozen=True)
class StageJudge:
    """A reward model that a stage left, on pairs that were held back from it.

    Attributes:
        stage: Its name.
        pairs: How many there are.
        metrics: Of the reward model.
        longer: Those of a judge that prefers the longer text.
        by_length: Pair accuracy where the better text is shorter, about as long, longer: (what, pairs, accuracy).
    """

    stage: str
    pairs: int
    metrics: dict[str, Interval]
    longer: dict[str, Interval]
    by_length: list[LengthBand]

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "stage": self.stage,
            "pairs": self.pairs,
            "metrics": {name: interval.as_dict() for name, interval in self.metrics.items()},
            "longer": {name: interval.as_dict() for name, interval in self.longer.items()},
            "by_length": [band.as_dict() for band in self.by_length],
        }


def stage_judges(
    recipe: Recipe, made: Mapping[str, Path], stages: Sequence[PreparedData], tell: Listener
) -> list[StageJudge]:
    """Measure every stage but the last (which the run itself measures) that learned from pairs to score.

    Args:
        recipe: Resolved.
        made: Name of each stage -> the folder of the model that it left.
        stages: Data of each stage.
        tell: Told what is measured.
    """
    found = []
    for stage, data in list(zip(recipe.stages, stages, strict=False))[:-1]:
        view = recipe.of_stage(stage)
        task = TASKS[view.task]
        if task.answer != "pair" or stage.objective != "reward":
            continue
        if not (rows := held_out(data, tell, stage=stage.name)):
            continue
        tell(Phase(step="evaluate", message=f"stage {stage.name}: {len(rows)} held-out pairs"))
        model, _ = load_artefact(made[stage.name], device=default_device())
        right = Truth(task.answer, [task.reference(row) for row in rows])
        setting = Setting(task, None, recipe.system_prompt, recipe.evaluate.generation, on_event=tell)
        outputs = answering.answer(model, rows, setting)
        ours, longer = (measure(one, right, recipe.evaluate) for one in (outputs, preferences.longer(rows)))
        found.append(StageJudge(stage.name, len(rows), ours, longer, pairs.by_length(rows, outputs, recipe.evaluate)))
    return found


def length_section(bands: Sequence[LengthBand]) -> Section:
    """For the report of a run whose own task is to judge pairs."""
    lead = (
        "A judge that goes by length is right where the better text is the longer one, and wrong where it is shorter."
    )
    rows = [[band.what, str(band.pairs), band.accuracy.format()] for band in bands]
    data = [band.as_dict() for band in bands]
    return Section("by_length", "By the difference in length", lead, ["Pairs", "Number", "Pair accuracy"], rows, data)


def section(judge: StageJudge) -> Section:
    """For the report."""
    rows = [
        [METRICS[name].title, value.format(), judge.longer[name].format() if name in judge.longer else "–"]
        for name, value in judge.metrics.items()
    ]
    rows += [[f"Pair accuracy, {band.what} ({band.pairs} pairs)", str(band.accuracy), "–"] for band in judge.by_length]
    lead = f"The judge that the stage `{judge.stage}` made, on {judge.pairs} pairs that were held back from it."
    columns = ["Metric", "Reward model", "Prefers the longer text"]
    return Section(
        f"stage_{judge.stage}", f"The reward model of stage {judge.stage}", lead, columns, rows, judge.as_dict()
    )
