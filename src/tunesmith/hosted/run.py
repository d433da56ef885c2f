"""``method: hosted``: a run whose fourth step is done by a provider, and measured like any other."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

from tunesmith import disk, rewards
from tunesmith.data.prepare import PreparedData
from tunesmith.data.rows import Row
from tunesmith.errors import TunesmithError, UsageError
from tunesmith.evaluation import comparison, pair_metrics, report
from tunesmith.evaluation.baselines import shot_counts
from tunesmith.evaluation.comparison import System
from tunesmith.evaluation.held_out import rows_to_measure
from tunesmith.evaluation.metrics import evaluated, measure, truth
from tunesmith.evaluation.results import Results, summarise, time_taken, write_results
from tunesmith.events import Listener, Notice, Phase
from tunesmith.hosted import check, clock, estimate, jobs, table
from tunesmith.hosted.answers import Asker, Usage, as_outputs, questions_of, usage_of
from tunesmith.hosted.client import Client, Job, ProviderError, connect
from tunesmith.hosted.ready import refuse_closed, refuse_in_vain
from tunesmith.hosted.rules import ProviderRules
from tunesmith.hosted.settings import Hosted
from tunesmith.hosted.table import Rate, Table, find_model
from tunesmith.prediction import answering, in_context
from tunesmith.prediction.outputs import Outputs, Truth
from tunesmith.prediction.rewarded import Judges
from tunesmith.prediction.setting import Setting
from tunesmith.recipe import Recipe, RewardSource
from tunesmith.tasks import TASKS
from tunesmith.tasks.preference import tools_of, turns_of
from tunesmith.training.outcome import Tuning


@dataclass(frozen=True)
class Asked:
    """A system at the provider on the test rows.

    Attributes:
        model: Its name there.
        usage: What its calls took.
        rate: What its tokens cost; ``None`` if nobody knows.
    """

    system: System
    model: str
    usage: Usage
    rate: Rate | None


def tune_and_measure(
    folder: Path, recipe: Recipe, data: PreparedData, rules: ProviderRules, known: Table, tell: Listener
) -> str:
    """Send the data, have the model tuned, bring home what there is, and measure.

    Args:
        folder: The run's; what is in it already is gone on from.
        recipe: Resolved.
        data: Read by ``rules``.
        rules: The provider's.
        known: The table of prices.
        tell: Told everything.

    Returns:
        The verdict.

    Raises:
        DataError: The provider would not take the data.
        UsageError: The model is past its last day, or no jobs are taken any more.
        ProviderError: It refuses, or stays out of reach.
        JobFailed: It could not tune the model.
    """
    settings = recipe.hosted or Hosted()
    checked = check.of_data(recipe, known, data, rules, check.of_model(recipe, known, clock.today()))
    checked.report.raise_errors()
    cost = estimate.estimate(checked, recipe, known)
    for warning in cost.warnings:
        tell(Notice(level="warning", message=warning))
    disk.write_json(folder / "plan.json", {"planned": cost.as_dict(), "measured": None})
    client = connect(settings, known)
    files = check.write_files(checked, recipe, folder / "sent")
    seed = recipe.training.seed
    intent = jobs.Intent.begin(folder, client, recipe.model, checked.method, settings, seed, files)
    with jobs.telling_how_far(intent):
        if not jobs.may_be_made(intent.state):
            live = shutdown_told_by(client, recipe.model)
            refuse_closed(recipe, known, clock.today(), live=live)
            intent.keep(shutdown=live.isoformat() if live else None)
        tell(
            Phase(step="tune", message=f"{recipe.model} at {client.provider.what} ({_dollars(cost.training_cost_usd)})")
        )
        job = jobs.make(intent, client, settings, seed, files, tell)
        job = jobs.follow(client, job, folder, settings, tell)
        jobs.fetch(client, job, folder, tell)
        trained = _tuning(job)
        paid = paid_for(job, recipe, known, cost.training_cost_usd)
        disk.write_json(
            folder / "plan.json",
            {"planned": cost.as_dict(), "measured": {"trained_tokens": job.trained_tokens, "training_cost_usd": paid}},
        )
        hosted = {
            "provider": settings.provider,
            "job": job.id,
            "model": job.tuned_model,
            "trained_tokens": job.trained_tokens,
            "training_cost_usd": paid,
            "price_date": cost.price_date,
            "shutdown": intent.state.get("shutdown"),
        }
        tell(Phase(step="evaluate", message=f"{job.tuned_model} at {client.provider.what}"))
        if not (len(data.test) or len(data.validation)):
            return _leave_unmeasured(folder, recipe, trained, hosted, "the recipe keeps no rows for it", tell)
        try:
            judges = grader_of(recipe)
        except TunesmithError as error:  # one that asks a model, say
            return _leave_unmeasured(folder, recipe, trained, hosted, error.what, tell)
        if checked.method == "dpo":
            tell(Notice(level="info", message=WRITTEN_NOT_WEIGHED))
            recipe, data = as_conversations(recipe, data)
        return measure_hosted(folder, recipe, data, trained, job, client, hosted, tell, judges)


def _tuning(job: Job) -> Tuning:
    """What the job took, as far as the provider says."""
    seconds = max(0.0, (job.finished_at or time.time()) - job.created_at)  # the provider's clock may be ahead
    tokens = job.trained_tokens or 0
    facts = {
        "tokens": tokens,
        "tokens_per_second": tokens / seconds if seconds else 0.0,
        "peak_memory_bytes": 0,
        "trainable_parameters": 0,
        "total_parameters": 0,
    }
    return Tuning(facts, seconds)


WRITTEN_NOT_WEIGHED = (
    "providers do not say how likely a given answer is, so what the models write is compared with the preferred answers"
)


def grader_of(recipe: Recipe) -> Judges | None:
    """The grader of a job of reinforcement fine-tuning as the judge of held-out answers; ``None`` for other jobs.

    Raises:
        TunesmithError: The grader cannot run on this machine.
    """
    grader = recipe.hosted.grader if recipe.hosted is not None else None
    return None if grader is None else Judges(rewards.make([RewardSource(kind="grader", grader=grader)]), None)


def as_conversations(recipe: Recipe, data: PreparedData) -> tuple[Recipe, PreparedData]:
    """Pairs as conversations that end with the preferred answer, and the recipe of learning these."""

    def conversation(row: Row) -> Row:
        prompt, better, _ = turns_of(row)
        tools = {"tools": tools_of(row)} if tools_of(row) else {}
        return replace(row, fields={"messages": [*prompt, *better], **tools})

    train, validation, test = ([conversation(row) for row in part] for part in (data.train, data.validation, data.test))
    measured_by = recipe.evaluate
    if measured_by.metric in pair_metrics.PRIMARY:
        measured_by = measured_by.model_copy(update={"metric": None})
    view = recipe.model_copy(update={"task": "chat", "evaluate": measured_by})
    return view, replace(data, train=train, validation=validation, test=test)


def shutdown_told_by(client: Client, model: str) -> date | None:
    """The last day of a model as the provider itself says it; ``None`` where it says none, or cannot be asked."""
    if client.provider.protocol != "openai":
        return None
    try:
        named = {found["id"]: found.get("shutdown_date") for found in client.models()}
        return date.fromisoformat(str(named.get(model))[:10])
    except (ProviderError, ValueError, KeyError):
        return None


def paid_for(job: Job, recipe: Recipe, known: Table, estimated: float | None) -> float | None:
    """What the job cost by the tokens that the provider counted; without them, what was estimated."""
    provider = known.provider((recipe.hosted or Hosted()).provider)
    found = find_model(provider, recipe.model)
    if job.trained_tokens is None or found is None or found[1].training is None:
        return estimated
    return job.trained_tokens * found[1].training / 1e6


def measure_hosted(
    folder: Path,
    recipe: Recipe,
    data: PreparedData,
    trained: Tuning,
    job: Job,
    client: Client,
    hosted: dict[str, Any],
    tell: Listener,
    judges: Judges | None = None,
) -> str:
    """The same measurement and report as of a local run, of the tuned model and its rivals at the provider."""
    started = time.time()
    task, settings = TASKS[recipe.task], recipe.evaluate
    rows = rows_to_measure(recipe, data, tell)
    right = truth(task, [task.reference(row) for row in rows], data.labels, settings)
    setting = Setting(task, data.labels, recipe.system_prompt, settings.generation, settings.seed, tell, judges)
    asker = Asker(client, folder / "answers.jsonl", tell)
    tuned, *others = _systems(recipe, data, rows, right, setting, job, asker, trained)
    rivals = [other.system for other in others]
    if task.answer == "label" and any(baseline.kind == "majority" for baseline in settings.baselines):
        rivals.append(_majority(data, rows, right, setting, recipe))
    comparisons = comparison.compare(tuned.system, rivals, right, settings)
    verdict = comparison.verdict(tuned.system, rivals, comparisons, right)
    usage = {asked.system.name: asked_as_dict(asked) for asked in (tuned, *others)}
    section = _section(hosted | {"usage": usage})
    seconds = time_taken(folder, None, time.time() - started)
    results = Results(rows, right, tuned.system, rivals, comparisons, verdict, seconds, job_seconds=trained.seconds)
    summary = write_results(folder, recipe, data, trained, results, [section])
    disk.write_json(folder / "summary.json", summary)
    return verdict


def _systems(
    recipe: Recipe,
    data: PreparedData,
    rows: Sequence[Row],
    right: Truth,
    setting: Setting,
    job: Job,
    asker: Asker,
    trained: Tuning,
) -> Iterator[Asked]:
    """The tuned model, then each baseline of the recipe that can be asked there."""
    settings, provider = recipe.evaluate, asker.client.provider
    base = find_model(provider, recipe.model)
    tuned_rate, base_rate = (base[1].tuned, base[1].base) if base else (None, None)
    kinds = {baseline.kind for baseline in settings.baselines}
    most = setting.generation.max_new_tokens

    def asked(name: str, title: str, what: str, model: str, rate: Rate | None, shots: Any = None) -> Asked:
        questions = questions_of(rows, setting, shots, asker.client)
        answers = asker.ask(name, model, questions, most)
        outputs = as_outputs(answers, rows, setting)
        metrics = measure(outputs, right, settings)
        setting.on_event(evaluated(name, outputs, metrics))
        seconds = trained.seconds if name == "tuned" else 0.0
        return Asked(
            System(name, title, what, outputs, metrics, training_seconds=seconds), model, usage_of(answers), rate
        )

    model = job.tuned_model
    if model is None:
        raise UsageError(f"the job {job.id} names no tuned model", fix="look at it where it was made")
    yield asked("tuned", f"{recipe.model}, tuned at {provider.what}", "the model that this run made", model, tuned_rate)
    if "base" in kinds:
        what = "the untuned model, asked without examples"
        yield asked("base", f"{recipe.model}, 0 shots", what, recipe.model, base_rate)
    for k in shot_counts(settings.baselines) if len(data.train) else ():
        fixed = in_context.random_shots(data.train, k, setting.task, setting.labels, setting.seed)
        what = f"the untuned model with the same {len(fixed)} examples in each prompt"
        name, title = f"few-shot-{k}", f"{recipe.model}, {k} shots"
        yield asked(name, title, what, recipe.model, base_rate, lambda row, shown=fixed: shown)
    for baseline in settings.baselines:
        if baseline.kind == "larger" and baseline.model:
            other = find_model(provider, baseline.model)
            what = "another model of the provider, untuned, asked without examples"
            rate = other[1].base if other else None
            yield asked(baseline.model, f"{baseline.model}, 0 shots", what, baseline.model, rate)


def _majority(data: PreparedData, rows: Sequence[Row], right: Truth, setting: Setting, recipe: Recipe) -> System:
    outputs: Outputs = answering.majority(data.train, rows, setting)
    what = "always gives the commonest label of the training data"
    return System("majority", "Majority class", what, outputs, measure(outputs, right, recipe.evaluate))


def asked_as_dict(asked: Asked) -> dict[str, Any]:
    """What a system is and took, for ``summary.json``."""
    usage = asked.usage
    cost = None
    if asked.rate is not None and usage.calls:
        whole = asked.rate.cost(usage.prompt_tokens, usage.written_tokens, usage.cached_tokens)
        cost = 1000 * whole / usage.calls
    return {"model": asked.model, **usage.as_dict(), "usd_per_1000_calls": cost}


def _section(facts: dict[str, Any]) -> report.Section:
    """The table of tokens, seconds and money of the report."""
    rows = [
        [
            name,
            str(found["model"]),
            f"{found['prompt_tokens'] / max(1, found['calls']):,.0f}",
            f"{found['cached_tokens'] / max(1, found['calls']):,.0f}",
            f"{found['written_tokens'] / max(1, found['calls']):,.0f}",
            f"{found['latency']:.2f} s",
            _dollars(found["usd_per_1000_calls"]),
        ]
        for name, found in facts["usage"].items()
    ]
    lead = "Tokens as the provider counted them. `tunesmith hosted compare` says after how many calls tuning pays."
    columns = [
        "System",
        "Model",
        "Prompt tokens a call",
        "of them cached",
        "Written a call",
        "Median time",
        "1,000 calls",
    ]
    return report.Section("hosted", "What a call takes", lead, columns, rows, facts)


def _dollars(value: float | None) -> str:
    return "price not known" if value is None else f"${value:,.4g}"


def _leave_unmeasured(
    folder: Path, recipe: Recipe, trained: Tuning, hosted: dict[str, Any], reason: str, tell: Listener
) -> str:
    verdict = f"Not measured: {reason}."
    tell(Notice(level="info", message=verdict))
    seconds = sum(time_taken(folder, None, 0.0).values())
    summary = summarise(folder, recipe, trained, verdict, seconds, {}, {})
    disk.write_json(folder / "summary.json", summary | {"hosted": hosted | {"usage": {}}})
    return verdict


def rules_and_table(recipe: Recipe, folder: Path | None = None) -> tuple[ProviderRules, Table]:
    """What reading the data of a hosted recipe needs, if there is a point in reading them.

    Args:
        recipe: Resolved.
        folder: Of a run that has begun.

    Raises:
        UsageError: The table of prices is malformed, or :func:`~tunesmith.hosted.ready.refuse_in_vain` knows why not.
        NotFoundError: The provider or the model is not in it.
        ResourceError: There is no key.
    """
    known = table.load((recipe.hosted or Hosted()).prices)
    refuse_in_vain(recipe, known, jobs.read_state(folder) if folder and (folder / jobs.STATE).is_file() else None)
    return check.rules_of(recipe, known), known
