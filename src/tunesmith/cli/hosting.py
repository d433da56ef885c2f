"""Commands of ``tunesmith hosted``: what a provider asks, costs, does and did."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunesmith import words
from tunesmith.cli.hosting_flags import recipe_and_prices
from tunesmith.cli.output import Json, print_json, print_pairs, print_table, stdout
from tunesmith.hosted import clock

if TYPE_CHECKING:
    from tunesmith.hosted.client import Client, Job
    from tunesmith.hosted.compare import Way

app = typer.Typer(
    add_completion=False,
    rich_markup_mode="markdown",
    no_args_is_help=True,
    help="Tune at a provider with the OpenAI fine-tuning API: checks, costs, jobs, break-even.",
)

Files = Annotated[
    list[str], typer.Argument(metavar="FILE...", help="Training data of any shape, or one recipe (`.yaml`).")
]
Target = Annotated[str, typer.Argument(metavar="JOB", help="The id of a job, or the folder of its run.")]
ProviderName = Annotated[
    str | None,
    typer.Option("--provider", metavar="NAME", help="openai, azure, nebius, mistral, together, fireworks, tunesmith."),
]
Address = Annotated[str | None, typer.Option("--base-url", metavar="URL", help="Where the provider answers.")]
Prices = Annotated[
    Path | None, typer.Option("--prices", metavar="FILE", help="Your own prices and dates, laid over the table's.")
]
Model = Annotated[str | None, typer.Option("--model", metavar="MODEL", help="The model to tune, as the provider says.")]
TaskName = Annotated[
    str | None,
    typer.Option(
        "--task", metavar="TASK", help="Default: chat; preference if rows have two answers; prompts with --grader."
    ),
]
Validation = Annotated[str | None, typer.Option("--validation", metavar="FILE", help="Validation data.")]
Epochs = Annotated[int | None, typer.Option("--epochs", metavar="N", min=1, help="Default: as the provider decides.")]
Grader = Annotated[
    Path | None, typer.Option("--grader", metavar="FILE", help="Grader (JSON): the job is reinforcement fine-tuning.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set any key of the recipe, e.g. `data.columns.text=review`."),
]


@app.command("check")
def check(
    files: Files,
    model: Model = None,
    provider: ProviderName = None,
    task: TaskName = None,
    validation: Validation = None,
    grader: Grader = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write the good rows as the provider wants them.")
    ] = None,
    prices: Prices = None,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Report everything that a provider would not take, with file and line.

    Exit code 3 if there are errors. With --out any data that Tunesmith reads are written in the provider's format.
    """
    from tunesmith import progress
    from tunesmith.cli.checking import print_report
    from tunesmith.hosted import check as checking
    from tunesmith.hosted import formats
    from tunesmith.hosted.ready import refuse_closed

    recipe, table = recipe_and_prices(files, model, provider, task, validation, prices, overrides, grader=grader)
    refuse_closed(recipe, table, clock.today())
    with progress.shown() as on_event:
        checked = checking.check(recipe, table, announce=False, on_event=on_event)
    written = None
    if out is not None:
        written = formats.write(out, checked.lines(recipe, checked.data.train), checked.provider)
    if as_json:
        size = {"rows": checked.size.rows, "tokens": checked.size.tokens, "bytes": checked.size.bytes}
        found = {"provider": checked.provider.what, "method": checked.method, "warnings": checked.warnings, **size}
        print_json(checked.report.as_dict() | found | ({"out": str(out), "written_bytes": written} if out else {}))
    else:
        print_report(checked.report)
        for warning in checked.warnings:
            print(f"note: {warning}")
        text = f"{checked.size.rows:,} rows, {checked.size.tokens:,} tokens, {checked.size.bytes:,} bytes"
        print(f"{checked.provider.what}, {checked.method}: {text}" + (f", written to {out}" if out else ""))
    if checked.report.errors:
        raise typer.Exit(3)


@app.command("estimate")
def estimate(
    files: Files,
    model: Model = None,
    provider: ProviderName = None,
    epochs: Epochs = None,
    task: TaskName = None,
    validation: Validation = None,
    grader: Grader = None,
    prices: Prices = None,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Say what tuning will cost, by exact tokens and without a network."""
    from tunesmith import progress
    from tunesmith.hosted import check as checking
    from tunesmith.hosted import estimate as estimating
    from tunesmith.hosted.ready import refuse_closed

    recipe, table = recipe_and_prices(
        files, model, provider, task, validation, prices, overrides, epochs=epochs, grader=grader
    )
    refuse_closed(recipe, table, clock.today())
    with progress.shown() as on_event:
        checked = checking.check(recipe, table, on_event=on_event)
    found = estimating.estimate(checked, recipe, table)
    if as_json:
        print_json(found.as_dict())
        return
    print_pairs(
        (
            ("rows", f"{found.rows:,}"),
            ("tokens", f"{found.tokens:,}"),
            ("epochs", found.epochs),
            ("billed tokens", None if found.billed_tokens is None else f"{found.billed_tokens:,}"),
            ("training", _dollars(found.training_cost_usd)),
            ("1,000 calls, tuned", _dollars(found.tuned_usd_per_1000_calls)),
            ("1,000 calls, base", _dollars(found.base_usd_per_1000_calls)),
            ("prices seen", found.price_date),
        )
    )
    for warning in found.warnings:
        print(f"note: {warning}")


@app.command("tune")
def tune(
    files: Files,
    model: Model = None,
    provider: ProviderName = None,
    base_url: Address = None,
    suffix: Annotated[str | None, typer.Option(help="Becomes part of the tuned model's name.")] = None,
    epochs: Epochs = None,
    task: TaskName = None,
    validation: Validation = None,
    test: Annotated[str | None, typer.Option("--test", metavar="FILE", help="Rows to measure on.")] = None,
    grader: Grader = None,
    again: Annotated[bool, typer.Option("--again", help="Make another job even if this very one is there.")] = False,
    prices: Prices = None,
    run_dir: Annotated[
        Path | None, typer.Option("--run-dir", metavar="DIR", help="The folder of the run; default: a new one.")
    ] = None,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Send the data, make the job, follow it, and measure the tuned model like a local run.

    Ctrl-C stops the watching, not the job: `tunesmith resume RUN` goes on with it. The same data and settings never
    make a second job, whatever was cut off, unless --again says so.
    """
    from tunesmith import pipeline, progress
    from tunesmith.cli.tuning import print_run

    more = {"suffix": suffix, "again": again or None, "base_url": base_url}
    named = (files, model, provider, task, validation, prices, overrides)
    recipe, _ = recipe_and_prices(*named, epochs=epochs, grader=grader, more=more, test=test, shares=True)
    with progress.shown(verdict=False) as on_event:
        run = pipeline.run(recipe, run_dir=run_dir, on_event=on_event)
    print_run(run, as_json=as_json)


@app.command("status")
def status(
    target: Target,
    provider: ProviderName = None,
    base_url: Address = None,
    prices: Prices = None,
    as_json: Json = False,
) -> None:
    """Say how far a job is."""
    client, job_id = _client_of(target, provider, base_url, prices)
    _print_job(client.job(job_id), as_json=as_json)


@app.command("events")
def events(
    target: Target,
    provider: ProviderName = None,
    base_url: Address = None,
    prices: Prices = None,
    as_json: Json = False,
) -> None:
    """Print what happened to a job, oldest first."""
    import time
    from dataclasses import asdict

    client, job_id = _client_of(target, provider, base_url, prices)
    found = client.events(job_id)
    if as_json:
        print_json([asdict(event) for event in found])
        return
    for event in found:
        moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.created_at))
        print(f"{moment}  {event.level:5}  {event.message}")


@app.command("cancel")
def cancel(
    target: Target,
    provider: ProviderName = None,
    base_url: Address = None,
    prices: Prices = None,
    as_json: Json = False,
) -> None:
    """Stop a job for good."""
    client, job_id = _client_of(target, provider, base_url, prices)
    _print_job(client.cancel(job_id), as_json=as_json)


@app.command("list")
def list_jobs(
    provider: ProviderName = None,
    base_url: Address = None,
    limit: Annotated[int, typer.Option(min=1, help="The newest so many.")] = 20,
    prices: Prices = None,
    as_json: Json = False,
) -> None:
    """List the newest jobs."""
    found = _client(provider, base_url, prices).jobs(limit)
    if as_json:
        print_json([job.as_dict() for job in found])
        return
    columns = ("job", "status", "model", "tuned model", "trained tokens")
    print_table(columns, ((j.id, j.status, j.model, j.tuned_model, j.trained_tokens) for j in found))


@app.command("models")
def models(
    provider: ProviderName = None,
    live: Annotated[bool, typer.Option("--live", help="Ask the provider which models the key may use.")] = False,
    base_url: Address = None,
    prices: Prices = None,
    as_json: Json = False,
) -> None:
    """List providers and models with prices, last days, and when they were seen; or what a provider says itself."""
    from tunesmith.hosted import table as tables

    if live:
        told = _client(provider, base_url, prices).models()
        if as_json:
            print_json(told)
        else:
            print_table(("model", "shut down"), ((m["id"], m.get("shutdown_date")) for m in told))
        return
    table = tables.load(prices)
    wanted = {provider: table.provider(provider)} if provider else table.providers
    old = {name: list(tables.stale_warnings(table, one, clock.today())) for name, one in wanted.items()}
    if as_json:
        found = {name: one.model_dump(mode="json", exclude_none=True) for name, one in wanted.items()}
        print_json({name: line | {"warnings": old[name]} for name, line in found.items()})
        return
    for name, one in wanted.items():
        print(f"{name}: {one.what} ({', '.join(one.methods)}); seen {one.seen}, {one.source}")
        if one.note:
            print(f"  {one.note}")
        if one.jobs_until:
            print(f"  no new jobs from {one.jobs_until} on")
        if one.models:
            columns = ("model", "training", "tuned: in, out", "base: in, out", "shut down", "seen")
            print_table(columns, (_model_row(model, line) for model, line in one.models.items()))
        for warning in old[name]:
            print(f"note: {warning}")
    print("Dollars for a million tokens. Lay your own file over these: `--prices FILE` or TUNESMITH_PRICES.")


@app.command("import")
def bring_home(
    job: Annotated[str, typer.Argument(metavar="JOB", help="The id of the job.")],
    model: Annotated[str, typer.Option("--model", metavar="MODEL", help="What to tune here: see `tunesmith catalog`.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="A new folder for recipe and data.")],
    provider: ProviderName = None,
    base_url: Address = None,
    train: Annotated[
        Path | None, typer.Option("--train", metavar="FILE", help="Your copy, where the provider's is gone.")
    ] = None,
    ask: Annotated[
        int, typer.Option("--ask", metavar="N", min=0, help="Ask the old model so many validation rows, while it can.")
    ] = 0,
    stored: Annotated[
        int, typer.Option("--stored", metavar="N", min=0, help="Take so many answers that the provider has stored.")
    ] = 0,
    prices: Prices = None,
    as_json: Json = False,
) -> None:
    """Take a tuned model home: its data and settings become a recipe, its answers the test of the new one."""
    from tunesmith import progress
    from tunesmith.hosted.importing import bring_home

    client = _client(provider, base_url, prices)
    with progress.shown() as on_event:
        _, facts = bring_home(client, job, model, out, on_event, train=train, ask=ask, stored=stored)
    if as_json:
        print_json({"folder": str(out), "recipe": str(out / "recipe.yaml"), **facts})
        return
    names = ("training_rows", "validation_rows", "old_answers")
    print_pairs((("recipe", out / "recipe.yaml"), *((name.replace("_", " "), facts[name]) for name in names)))
    print(f"Now: tunesmith tune {out / 'recipe.yaml'}")


@app.command("compare")
def compare(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="A hosted run, then others on the same test rows.")
    ],
    machine_usd_per_hour: Annotated[
        float | None, typer.Option(min=0, help="What an hour of this machine costs, for the local runs.")
    ] = None,
    calls_per_month: Annotated[
        float | None, typer.Option(min=1, help="Expected calls: does tuning pay before the model is shut down?")
    ] = None,
    prices: Prices = None,
    as_json: Json = False,
) -> None:
    """Say when tuning pays: quality, cost, latency and tokens of each way on the same test rows, and the break-even."""
    from tunesmith.hosted import compare as comparing
    from tunesmith.hosted import table as tables
    from tunesmith.runs import open_run

    first, *others = [open_run(run) for run in runs]
    found = comparing.compare(
        first,
        others,
        tables.load(prices),
        usd_per_hour=machine_usd_per_hour,
        calls_a_month=calls_per_month,
    )
    if as_json:
        print_json(found.as_dict())
        return
    columns = (
        "way",
        found.ways[0].metric,
        "training",
        "1,000 calls",
        "seconds a call",
        "which are",
        "tokens in",
        "tokens out",
    )
    print_table(columns, (_way_row(way) for way in found.ways))
    if found.tokens_saved_a_call is not None:
        print(f"The tuned model's prompt has {found.tokens_saved_a_call:,.0f} tokens fewer a call.")
    for point in found.break_even:
        stdout().print(f"{point.verdict}.", style="bold", markup=False, soft_wrap=True)
    if found.quality is not None:
        print(found.quality["verdict"])
    for note in dict.fromkeys(found.notes):
        print(f"note: {note}")
    print_pairs((("picture", found.picture), ("figures", first.path / "compare.json")))


# --- what the commands share ------------------------------------------------------------------------------------------


def _client(provider: str | None, base_url: str | None, prices: Path | None) -> Client:
    from tunesmith.hosted import table as tables
    from tunesmith.hosted.client import connect
    from tunesmith.hosted.settings import Hosted

    named = {"provider": provider} if provider else {}
    return connect(Hosted(base_url=base_url, **named), tables.load(prices))


def _client_of(target: str, provider: str | None, base_url: str | None, prices: Path | None) -> tuple[Client, str]:
    """The client and the job that a run's folder names; else the target is the job."""
    from tunesmith.hosted.jobs import job_of

    found = job_of(Path(target))
    if found is not None:
        return _client(provider or found[0], base_url or found[1], prices), found[2]
    return _client(provider, base_url, prices), target


def _print_job(job: Job, *, as_json: bool) -> None:
    if as_json:
        print_json(job.as_dict())
    else:
        shown = ((key.replace("_", " "), value) for key, value in job.as_dict().items() if value not in ([], {}))
        print_pairs(shown)


def _model_row(name: str, line: Any) -> tuple[object, ...]:
    def rate(found: Any) -> str | None:
        return None if found is None else f"{found.input:g}, {found.output:g}"

    training = f"{line.training_hour:g} an hour" if line.training_hour is not None else line.training
    return (name, training, rate(line.tuned), rate(line.base), line.shutdown, line.seen)


def _way_row(way: Way) -> tuple[object, ...]:
    return (
        way.name,
        words.interval(way.quality),
        _dollars(way.fixed_usd),
        _dollars(way.usd_per_1000_calls),
        _number(way.latency, "{:.3g}"),
        way.latency_of if way.latency is not None else None,
        _number(way.prompt_tokens, "{:,.0f}"),
        _number(way.written_tokens, "{:,.0f}"),
    )


def _dollars(value: float | None) -> str:
    return "not known" if value is None else f"${value:,.4g}"


def _number(value: float | None, form: str) -> str | None:
    return None if value is None else form.format(value)
