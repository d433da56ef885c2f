"""Step 5: measure the tuned model and its rivals on the same rows, and write down what came out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith import catalog, disk, lineage, runs
from tunesmith.data.prepare import PreparedData
from tunesmith.data.renderers import model_renderer
from tunesmith.data.rows import Row
from tunesmith.data.shown import ShownExample, show_rows
from tunesmith.evaluation import charts, comparison, distillation, judge_stages, pairs, reinforcement, report
from tunesmith.evaluation.baselines import Conditions, run_baselines
from tunesmith.evaluation.comparison import Comparison, System
from tunesmith.evaluation.general import measure_general, measure_general_after
from tunesmith.evaluation.held_out import rows_to_measure
from tunesmith.evaluation.intervals import Interval
from tunesmith.evaluation.metrics import METRICS, evaluated, measure, truth
from tunesmith.evaluation.model_card import write_model_card
from tunesmith.evaluation.results import Results, curves, summarise, time_taken, write_results
from tunesmith.evaluation.sequence import measure_sequence, models_in_turn
from tunesmith.evaluation.sequence import section as sequence_section
from tunesmith.evaluation.stage_gains import WITHOUT_DOMAIN, gains_section, stage_gains, without_domain
from tunesmith.events import Listener, Notice, Phase
from tunesmith.planning.measured import section as planned_section
from tunesmith.prediction import answering
from tunesmith.prediction.outputs import Truth
from tunesmith.prediction.rewarded import judges_of
from tunesmith.prediction.setting import Setting
from tunesmith.recipe import Recipe
from tunesmith.tasks import TASKS

if TYPE_CHECKING:
    from tunesmith.models.model import Model
    from tunesmith.training.outcome import Trained

TRAINING_ROWS_SHOWN = 3


@dataclass(frozen=True)
class Remade:
    """A model that was made from a tuned one (quantized, say) and is compared with it.

    Attributes:
        title: Of the new model, in tables.
        original: The one that it was made from, which has answered the same rows.
        judge: The verdict in a sentence, from the comparison with the original.
        sections: Of the report.
        facts: For ``summary.json``.
    """

    title: str
    original: System
    judge: Callable[[Comparison], str]
    sections: Sequence[report.Section]
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class _Trial:
    """What the parts of an evaluation have in common.

    Attributes:
        folder: The run's.
        recipe: Resolved.
        data: What the last stage learned from, with the rows to measure on.
        trained: The tuned model.
        stages: Data of every stage, if it is also wanted what each gave.
        remade: If the model was made from another one.
        base: The folder of the base model.
        made: Name of each stage -> the folder of the model that it left.
        rows: The rows that all systems answer.
        right: Their right answers.
        setting: What all systems share.
    """

    folder: Path
    recipe: Recipe
    data: PreparedData
    trained: Trained
    stages: Sequence[PreparedData]
    remade: Remade | None
    base: Path
    made: Mapping[str, Path]
    rows: Sequence[Row]
    right: Truth
    setting: Setting

    @property
    def tell(self) -> Listener:
        """Who is told everything that is measured."""
        return self.setting.on_event


@dataclass(frozen=True)
class _Others:
    """What the tuned model stands beside: all systems, and those that some sections tell more of."""

    systems: list[System]
    origin: reinforcement.Origin | None
    lesson: distillation.Lesson | None


def evaluate_run(
    folder: Path,
    recipe: Recipe,
    data: PreparedData,
    trained: Trained,
    tell: Listener,
    *,
    stages: Sequence[PreparedData] = (),
    remade: Remade | None = None,
    before: Mapping[str, float] | None = None,
) -> str:
    """Measure, compare, and write ``summary.json``, ``predictions.jsonl``, ``report.json`` and ``report.html``.

    Args:
        folder: The run's.
        recipe: Resolved.
        data: What the last stage learned from, with the rows to measure on.
        trained: The tuned model.
        tell: Told everything that is measured.
        stages: Data of every stage, if it is also wanted what each gave.
        remade: If the model was made from another one: what it is compared with.
        before: If the run is measured again: part -> what it took without its evaluation.

    Returns:
        The verdict.
    """
    from tunesmith.models.cutting import base_folder

    if not (len(data.test) or len(data.validation)):  # as the recipe wants it: else the checks of the data stopped it
        return _leave_unmeasured(folder, recipe, trained, tell, before)
    started = time.time()
    task, settings = TASKS[recipe.task], recipe.evaluate
    rows = rows_to_measure(recipe, data, tell)
    right = truth(task, [task.reference(row) for row in rows], data.labels, settings)
    made = runs.stage_models(folder, recipe)
    setting = Setting(
        task, data.labels, recipe.system_prompt, settings.generation, settings.seed, tell, judges_of(recipe, made)
    )
    base = base_folder(recipe, tell)
    trial = _Trial(folder, recipe, data, trained, stages, remade, base, made, rows, right, setting)
    tuned = _tuned(trial)
    others = _others(trial)
    rivals = [other for other in others.systems if not other.is_ceiling]
    comparisons = comparison.compare(tuned, rivals, right, settings)
    verdict = remade.judge(comparisons[-1]) if remade else comparison.verdict(tuned, rivals, comparisons, right)
    sections = _sections(trial, tuned, others)
    training = 0.0 if remade else trained.seconds  # a remade model was trained in the run that it was made from
    evaluation = time.time() - started
    seconds = {**before, "evaluate": evaluation} if before is not None else time_taken(folder, training, evaluation)
    results = Results(rows, right, tuned, others.systems, comparisons, verdict, seconds)
    learned_from = _learned_from(recipe, data, trained.model)
    summary = write_results(folder, recipe, data, trained, results, sections, learned_from)
    summary |= remade.facts if remade else {}
    if (folder / "model").is_dir():
        write_model_card(folder / "model", summary, licence_of(recipe))
    disk.write_json(folder / "summary.json", summary)
    return verdict


def _tuned(trial: _Trial) -> System:
    """The tuned model, measured."""
    recipe, trained = trial.recipe, trial.trained
    trial.tell(Phase(step="evaluate", message=f"the tuned model on {len(trial.rows)} test rows"))
    outputs = answering.answer(trained.model, trial.rows, trial.setting)
    metrics = measure(outputs, trial.right, recipe.evaluate)
    trial.tell(evaluated("tuned", outputs, metrics))
    return System(
        "tuned",
        trial.remade.title if trial.remade else f"{recipe.model}, tuned ({recipe.method})",
        "the model that this run made",
        outputs,
        metrics,
        parameters=trained.facts["total_parameters"],
        trainable_parameters=trained.facts["trainable_parameters"],
        training_seconds=trained.seconds,
    )


def _others(trial: _Trial) -> _Others:
    """The baselines that the recipe wants, and what the method of itself is to be compared with; measured."""
    from tunesmith.models.cutting import base_title
    from tunesmith.models.precision import choose_dtype, default_device

    recipe, rows, right, setting = trial.recipe, trial.rows, trial.right, trial.setting
    device = default_device()
    # A fit on frozen features needs no comparison with itself.
    wanted = [b for b in recipe.evaluate.baselines if (b.kind, recipe.method) != ("features", "features")]
    larger = [
        (b.model, catalog.model_folder(b.model, on_event=trial.tell)) for b in wanted if b.kind == "larger" and b.model
    ]
    dtype = choose_dtype(recipe.precision, device)
    conditions = Conditions(wanted, trial.data, rows, setting, recipe.evaluate, dtype, device)
    systems = list(run_baselines(conditions, (base_title(recipe), trial.base), larger))
    origin = lesson = None
    if setting.judges is not None:
        origin = reinforcement.measure_origin(recipe, trial.base, trial.made, trial.trained.model, rows, right, setting)
        systems += [origin.system] if origin.system is not None else []
    if trial.stages and any(b.kind == "without-domain" for b in wanted):
        systems.append(without_domain(trial.folder, recipe, trial.data, rows, right, setting, trial.tell))
    if trial.remade is None:
        lesson = distillation.measure_lesson(
            trial.folder, recipe, trial.trained.model, trial.stages, rows, right, setting, trial.tell
        )
    systems += lesson.systems if lesson else []
    systems += [trial.remade.original] if trial.remade else []
    return _Others(systems, origin, lesson)


def _sections(trial: _Trial, tuned: System, others: _Others) -> list[report.Section]:
    """What the report tells of this task and this method besides."""
    recipe, settings, right, stages, tell = trial.recipe, trial.recipe.evaluate, trial.right, trial.stages, trial.tell
    task, model = TASKS[recipe.task], trial.trained.model
    sections = list(trial.remade.sections) if trial.remade else []
    if others.origin is not None:
        found = reinforcement.summarised(tuned, others.systems, trial.rows, others.origin, settings)
        curve = [{"step": s.step, **s.metrics} for s in curves(trial.folder)[0] if "reward" in s.metrics]
        sections += reinforcement.sections(found, charts.policy_chart(curve))
    sections += [judge_stages.section(one) for one in judge_stages.stage_judges(recipe, trial.made, stages, tell)]
    if task.answer == "pair":
        sections.append(judge_stages.length_section(pairs.by_length(trial.rows, tuned.outputs, settings)))
    general = None
    if recipe.method == "sequential" and stages:
        if known := measure_sequence(trial.folder, recipe, stages, tell):
            sections.append(sequence_section(known))
        models = models_in_turn(trial.folder, recipe)
        kept = trial.folder / "sequence" / "general.json"
        general = measure_general_after(models, recipe, trial.base, kept, tell)
    elif task.answer == "likelihood":
        general = measure_general(recipe, trial.base, model, tell)
    if behind := lineage.ancestors(recipe.model):
        sections.append(_lineage_section(behind, recipe, tuned.metrics))
    if others.lesson:
        found_out = distillation.results(others.lesson, tuned, others.systems, right, settings)
        sections.append(distillation.section(found_out))
    if gains := stage_gains(trial.folder, recipe, trial.base, stages, tell):
        without = any(system.name == WITHOUT_DOMAIN for system in others.systems)
        sections.append(gains_section(gains, without=without))
    if general:
        sections.append(general)
    if compared := planned_section(trial.folder):
        sections.append(compared)
    return sections


def _lineage_section(behind: list[dict[str, Any]], recipe: Recipe, metrics: Mapping[str, Interval]) -> report.Section:
    """The runs that the base model came from."""
    rows = []
    for step in behind:
        name = next(iter(step["metrics"]), None)
        value = "–" if name is None else f"{METRICS[name].title} {Interval(**step['metrics'][name])}"
        rows.append([step["run"], step["task"], step["method"], step["model"], value])
    name = next(iter(metrics))
    rows.append(["this run", recipe.task, recipe.method, recipe.model, f"{METRICS[name].title} {metrics[name]}"])
    lead = "The base model was itself tuned: each line began where the one above it ended."
    return report.Section(
        "lineage", "Where it came from", lead, ["Run", "Task", "Method", "Began from", "Result"], rows, behind
    )


def _leave_unmeasured(
    folder: Path, recipe: Recipe, trained: Trained, tell: Listener, before: Mapping[str, float] | None
) -> str:
    """All rows were for training: there is a model, and nothing to say about how good it is."""
    verdict = "Not measured: the recipe keeps no rows for it."
    tell(Notice(level="info", message=verdict, fix="give `data.test` a share or a file, or use `tunesmith eval`"))
    seconds = before if before is not None else time_taken(folder, trained.seconds, 0.0)
    summary = summarise(folder, recipe, trained, verdict, sum(seconds.values()), {}, {})
    write_model_card(folder / "model", summary, licence_of(recipe))
    disk.write_json(folder / "summary.json", summary)
    return verdict


def _learned_from(recipe: Recipe, data: PreparedData, model: Model) -> list[ShownExample]:
    """Training rows, rendered as they were for training."""
    if model.tokenizer is None:  # it learned from pictures
        return []
    render = model_renderer(recipe, model, data.labels)
    return show_rows(data.train, TRAINING_ROWS_SHOWN, render, model.tokenizer, TASKS[recipe.task])


def licence_of(recipe: Recipe) -> str | None:
    """Of the model that all began from."""
    behind = lineage.ancestors(recipe.model)
    model = behind[0]["model"] if behind else recipe.model
    return next((entry.licence for entry in catalog.entries() if entry.name == model), None)
