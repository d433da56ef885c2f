"""What learning from rewards gave, and what it cost: rewards, wins, divergence, and answers side by side."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tunesmith.arrays import FloatArray
from tunesmith.data.batches import write_tokens
from tunesmith.data.render import ConversationRenderer, prompt_renderer
from tunesmith.data.rows import Row
from tunesmith.data.shown import shortened
from tunesmith.evaluation.comparison import System
from tunesmith.evaluation.intervals import Interval, bootstrap, mean
from tunesmith.evaluation.metrics import evaluated, measure
from tunesmith.evaluation.report import Section
from tunesmith.events import Phase
from tunesmith.models.load import load_model
from tunesmith.models.model import Model
from tunesmith.models.saving import load_artefact
from tunesmith.objectives.rollouts import log_likelihoods, to_examples, write
from tunesmith.prediction import answering
from tunesmith.prediction.outputs import Outputs, Truth
from tunesmith.prediction.setting import Setting
from tunesmith.recipe import Evaluate, Recipe
from tunesmith.tasks import TASKS

SAMPLES = 8
"""Prompts whose answers are shown."""


@dataclass(frozen=True)
class Origin:
    """What the last stage began from.

    Attributes:
        what: In words.
        system: It as a system to compare with; ``None`` if it is the base model, which the baselines have.
        nats: (N,) how far the tuned model went from it: see :func:`divergence`.
    """

    what: str
    system: System | None
    nats: FloatArray


def measure_origin(
    recipe: Recipe,
    base: Path,
    made: Mapping[str, Path],
    tuned: Model,
    rows: Sequence[Row],
    right: Truth,
    setting: Setting,
) -> Origin:
    """Measure what the last stage began from on the same rows.

    Args:
        recipe: Resolved.
        base: Folder of the base model.
        made: Name of each stage -> the folder of the model that it left.
        tuned: The model that came out.
        rows: The test rows.
        right: What would have been right.
        setting: What all systems share.
    """
    stage = next((stage for stage in reversed(recipe.stages[:-1]) if stage.model is None), None)
    if stage is None:  # the others made judges
        first = load_model(
            base,
            name=recipe.model,
            form="generate",
            dtype=tuned.dtype,
            device=tuned.device,
            max_length=tuned.max_length,
        )
        return Origin(recipe.model, None, divergence(tuned, first, rows, recipe))
    setting.on_event(Phase(step="evaluate", message=f"the model after the stage {stage.name}"))
    first, _ = load_artefact(made[stage.name], device=tuned.device)
    outputs = answering.answer(first, rows, setting)
    metrics = measure(outputs, right, recipe.evaluate)
    setting.on_event(evaluated(stage.name, outputs, metrics))
    title, what = f"{recipe.model}, after {stage.name}", "what the last stage began from"
    system = System(stage.name, title, what, outputs, metrics, parameters=first.total_parameters)
    return Origin(f"what the stage {stage.name} left", system, divergence(tuned, first, rows, recipe))


def divergence(tuned: Model, first: Model, rows: Sequence[Row], recipe: Recipe) -> FloatArray:
    """How much likelier than the first model the tuned one finds an answer that it drew, for each prompt; (N,) nats.

    The mean estimates the divergence of whole answers without bias (``k1``). Prompts that leave no room are left out.
    """
    training = recipe.stages[-1].training
    assert training is not None, "the recipe is resolved"
    task, drawn = TASKS[recipe.task], training.rollouts
    renderer = ConversationRenderer(tuned.tokenizer, tuned.max_length, tuned.eos_ids)
    turns = [(row, task.conversation(row, None, recipe.system_prompt)[:-1]) for row in rows]
    fitting = [row for row, asked in turns if len(renderer.prompt(asked)) < tuned.max_length]
    with tempfile.TemporaryDirectory() as scratch:
        prompts = write_tokens(
            fitting, prompt_renderer(renderer, task, recipe.system_prompt), Path(scratch) / "prompts"
        )
        samples = write(
            tuned,
            prompts,
            range(len(fitting)),
            group=1,
            max_new_tokens=drawn.max_new_tokens,
            temperature=drawn.temperature,
            seed="divergence",
        )
        examples = to_examples(samples, Path(scratch) / "answers", [{} for _ in samples])
        ours, theirs = (log_likelihoods(model, examples, drawn.temperature) for model in (tuned, first))
    return np.asarray([float((a - b).sum()) for a, b in zip(ours, theirs, strict=True)])


@dataclass(frozen=True)
class Standing:
    """A system beside the tuned one.

    Attributes:
        title: For tables.
        reward: Mean over the test prompts.
        spread: Standard deviation of the reward over the prompts.
        judge: The mean by the second judge; ``None`` without.
        gain: Mean reward of the tuned model's answers minus that of these, paired by prompt; ``None`` for itself.
        beaten: Share of the prompts on which the tuned model's answer is worth more, ties half; ``None`` for itself.
        beaten_by_judge: The same by the second judge.
    """

    title: str
    reward: Interval
    spread: float
    judge: Interval | None
    gain: Interval | None
    beaten: Interval | None
    beaten_by_judge: Interval | None

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        values = {name: getattr(self, name) for name in ("reward", "judge", "gain", "beaten", "beaten_by_judge")}
        return {"title": self.title, "spread": self.spread} | {
            name: i.as_dict() for name, i in values.items() if i is not None
        }


@dataclass(frozen=True)
class Reinforcement:
    """What the report says of it.

    Attributes:
        since: What the last stage began from.
        kl: Divergence from that, in nats an answer.
        standings: Name -> the system, the tuned one last.
        samples: For each prompt shown the prompt, and each system's answer with its reward.
    """

    since: str
    kl: Interval
    standings: dict[str, Standing]
    samples: list[list[str]]

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        standings = {name: standing.as_dict() for name, standing in self.standings.items()}
        return {"kl": self.kl.as_dict(), "since": self.since, "systems": standings}


def summarised(
    tuned: System, others: Sequence[System], rows: Sequence[Row], origin: Origin, settings: Evaluate
) -> Reinforcement:
    """Put together what was measured; systems that wrote nothing are left out."""
    systems = [system for system in others if system.outputs.rewards is not None] + [tuned]
    standings = {system.name: _standing(system, tuned.outputs, settings) for system in systems}
    task, samples = TASKS["text-generation"], []
    for number in np.unique(np.linspace(0, len(rows) - 1, min(SAMPLES, len(rows))).astype(int)).tolist():
        answers = [_shown(system.outputs, number) for system in systems]
        samples.append([shortened(task.input_text(rows[number]), 300), *answers])
    return Reinforcement(origin.what, _interval(origin.nats, settings), standings, samples)


def _standing(system: System, tuned: Outputs, settings: Evaluate) -> Standing:
    def beaten(ours: FloatArray | None, theirs: FloatArray | None) -> Interval | None:
        if ours is None or theirs is None or ours is theirs:
            return None
        return _interval((ours > theirs) + 0.5 * (ours == theirs), settings)

    theirs = system.outputs.rewards
    assert tuned.rewards is not None and theirs is not None
    return Standing(
        system.title,
        system.metrics["reward"],
        float(theirs.std()),
        system.metrics.get("judge"),
        None if theirs is tuned.rewards else _interval(tuned.rewards - theirs, settings),
        beaten(tuned.rewards, theirs),
        beaten(tuned.judged, system.outputs.judged),
    )


def _interval(values: FloatArray, settings: Evaluate) -> Interval:
    return bootstrap(mean(values), resamples=settings.resamples, confidence=settings.confidence, seed=settings.seed)


def _shown(outputs: Outputs, row: int) -> str:
    assert outputs.texts is not None and outputs.rewards is not None
    return f"{shortened(outputs.texts[row], 300)} ({outputs.rewards[row]:.2f})"


def sections(found: Reinforcement, chart: str = "") -> list[Section]:
    """For the report: the figures, with a chart of how it went, and answers side by side."""
    judged = any(standing.judge is not None for standing in found.standings.values())
    columns = ["System", "Reward", "Spread", "Tuned model gains", "Tuned answer is worth more"]
    columns += ["Second judge", "Tuned answer is better by it"] if judged else []
    table = []
    for one in found.standings.values():
        gain = "–" if one.gain is None else one.gain.format(signed=True)
        cells = [one.beaten] + ([one.judge, one.beaten_by_judge] if judged else [])
        shown = ["–" if cell is None else cell.format() for cell in cells]
        table.append([one.title, one.reward.format(), f"{one.spread:.2f}", gain, *shown])
    doubt = "" if judged else " Whether it was earned, a second judge could say (`evaluate.judge`)."
    lead = (
        "Mean reward of answers to the test prompts, its standard deviation over them, and on which share of them the "
        f"tuned model's answer is worth more. The price: a divergence of {found.kl} nats an answer from {found.since}."
    )
    titles = [standing.title for standing in found.standings.values()]
    return [
        Section(
            "reinforcement", "What learning from rewards gave", lead + doubt, columns, table, found.as_dict(), chart
        ),
        Section(
            "side_by_side",
            "Answers side by side",
            "The same prompts, answered by each system; in brackets what the answer is worth by the reward.",
            ["Prompt", *titles],
            found.samples,
            found.samples,
            is_prose=True,
        ),
    ]
