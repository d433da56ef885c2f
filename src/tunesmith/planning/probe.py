"""Three real updates on the longest rows: what memory they take, and how fast they are."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.errors import UsageError
from tunesmith.events import Event, Listener, Phase, StageFinished, Step
from tunesmith.planning.calibration import Correction, ratio_of_bytes
from tunesmith.planning.measured import Stopwatch

if TYPE_CHECKING:
    from tunesmith.data.prepare import PreparedData
    from tunesmith.planning.machine import Machine
    from tunesmith.recipe import Recipe

UPDATES = 3
BATCH_TOKENS = 4096  # of an update whose size the recipe does not give


@dataclasses.dataclass(frozen=True)
class Probed:
    """What the updates after the first took; the first one also sets up what the others use.

    Attributes:
        seconds: Of them, by the clock.
        own_seconds: Of the processors' time over the threads, which is what plans count in; on a GPU the clock's.
        planned_seconds: What the plan says of them, without correction.
        memory_bytes: The most at any time.
        planned_bytes: What the plan says of that part of it which depends on the rows, without correction.
        bytes: That part.
    """

    seconds: float
    own_seconds: float
    planned_seconds: float
    memory_bytes: int
    planned_bytes: float
    bytes: float

    @property
    def correction(self) -> Correction:
        """What it says about a plan."""
        return Correction(
            seconds=self.own_seconds / max(self.planned_seconds, 1e-9),
            bytes=ratio_of_bytes(self.bytes, self.planned_bytes),
            sharing=max(1.0, self.seconds / max(self.own_seconds, 1e-9)),
            basis="same",
            samples=1,
        )

    def as_dict(self) -> dict[str, float]:
        """For ``tunesmith plan --json``."""
        return dataclasses.asdict(self)


def probe(recipe: Recipe, folder: Path, data: PreparedData, machine: Machine, tell: Listener) -> Probed:
    """Train a stage for three updates in a folder that is thrown away, by the same code as a run.

    Args:
        recipe: Resolved.
        folder: Of its model.
        data: Its rows.
        machine: This one.
        tell: Told what happens.

    Raises:
        UsageError: Nothing is trained in a loop, or in several stages.
    """
    from tunesmith.planning.forecast import UNTRAINED, StagePlanner
    from tunesmith.tasks import TASKS
    from tunesmith.training.stages import tune_stages

    stage = recipe.stages[0]
    if len(recipe.stages) > 1 or stage.parameters is None or stage.parameters.kind in UNTRAINED:
        raise UsageError(
            "a probe makes updates of a single stage, which this recipe has not",
            where="--probe",
            fix="leave it out: the plan goes by earlier runs and the model of costs",
        )
    task = TASKS[recipe.task]
    planner = StagePlanner.of(recipe, stage, data, folder, machine)
    settings = planner.filled_in()
    longest = max(1, int(planner.sample.lengths.max()))
    count = settings.batch_size or max(1, round((settings.batch_tokens or BATCH_TOKENS) / longest))
    size = sorted(
        range(len(data.train)), key=lambda n: -len(task.input_text(data.train[n]) + task.target_text(data.train[n]))
    )
    subset = dataclasses.replace(data, train=[data.train[n] for n in size[:count]], validation=[], test=[])
    tell(Phase(step="tune", message=f"probing: {UPDATES} updates on the {len(subset.train)} longest rows"))
    training = settings.model_copy(update={"max_steps": UPDATES, "compile": "off", "checkpoint_steps": None})
    stage = stage.model_copy(update={"training": training})
    recipe = recipe.model_copy(update={"stages": [stage]})
    planned = StagePlanner.of(recipe, stage, subset, folder, machine, Correction()).plan()
    steps: list[Step] = []
    ends: list[StageFinished] = []

    def listen(event: Event) -> None:
        if isinstance(event, Step):
            steps.append(event)
        if isinstance(event, StageFinished):
            ends.append(event)

    watch = Stopwatch(listen)
    with tempfile.TemporaryDirectory(prefix="tunesmith-probe-") as place:
        tune_stages(Path(place), recipe, folder, [subset], watch)
    seconds = sum(step.seconds for step in steps[1:])
    return Probed(
        seconds=seconds,
        own_seconds=seconds * watch.own_share(stage.name),
        planned_seconds=planned.update_seconds * (len(steps) - 1) / len(steps),
        memory_bytes=ends[-1].peak_memory_bytes,
        planned_bytes=planned.flexible_bytes,
        bytes=ends[-1].peak_memory_bytes - planned.fixed_bytes,
    )
