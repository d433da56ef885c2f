"""Commands before a run: what it will take, and which way to go."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunesmith import words
from tunesmith.cli.output import Json, print_json, print_pairs, print_table
from tunesmith.cli.recipe_flags import RecipeChoices, takes_recipe
from tunesmith.errors import UsageError

if TYPE_CHECKING:
    from tunesmith.advice import Advice
    from tunesmith.planning import Plan


@takes_recipe
def plan(
    choices: RecipeChoices,
    *,
    machine: Annotated[
        str | None,
        typer.Option("--machine", metavar="NAME", help="Plan for a machine of the table, e.g. `h100`; default: here."),
    ] = None,
    machines: Annotated[
        Path | None, typer.Option("--machines", metavar="FILE", help="A table of your own: machines and prices.")
    ] = None,
    devices: Annotated[
        int, typer.Option("--devices", min=1, help="Say too what DDP and FSDP2 on so many devices would take.")
    ] = 1,
    probe: Annotated[
        bool, typer.Option("--probe", help="Make three real updates on the longest rows, and correct the plan by them.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Say what a run will take: memory, time, money, disk."""
    recipe = choices.recipe()
    if probe and machine is not None:
        raise UsageError(
            "`--probe` makes updates on this machine", where="--probe", fix="leave out --machine, or --probe"
        )
    from tunesmith import planning, progress

    with progress.shown() as on_event:
        made = planning.plan(
            recipe, on_event, machine=planning.machine_of(machine, machines), devices=devices, probe=probe
        )
    if as_json:
        print_json(made.as_dict())
        return
    _print_plan(made)


@takes_recipe
def advise(
    choices: RecipeChoices,
    *,
    budget: Annotated[
        float | None, typer.Option("--budget", min=0, metavar="USD", help="What the tuning may cost, in US dollars.")
    ] = None,
    latency: Annotated[
        float | None, typer.Option("--latency", min=0, metavar="MS", help="What an answer may take, in milliseconds.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="The data must not leave your machines.")] = False,
    teacher: Annotated[
        bool, typer.Option("--teacher", help="There is a larger model that this one could learn from.")
    ] = False,
    machine: Annotated[
        str | None, typer.Option("--machine", metavar="NAME", help="A machine of the table; default: here.")
    ] = None,
    machines: Annotated[
        Path | None, typer.Option("--machines", metavar="FILE", help="A table of your own: machines and prices.")
    ] = None,
    trials: Annotated[
        str | None,
        typer.Option("--trials", metavar="TIME", help="Try the ways for so long, e.g. `10m`, and measure them."),
    ] = None,
    rules: Annotated[
        Path | None, typer.Option("--rules", metavar="FILE", help="A table of rules in place of the usual one.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say which ways suit data, task and limits, best first."""
    from tunesmith.advice.trials import seconds_of

    seconds = seconds_of(trials) if trials is not None else None
    if seconds is not None and machine is not None:
        raise UsageError("`--trials` runs on this machine", where="--trials", fix="leave out --machine, or --trials")
    recipe = choices.recipe()
    from tunesmith import advice, planning, progress

    limits = advice.Limits(budget, latency / 1000 if latency is not None else None, private, teacher)
    with progress.shown() as on_event:
        found = advice.advise(
            recipe,
            planning.machine_of(machine, machines),
            limits,
            own_rules=rules,
            trial_seconds=seconds,
            on_event=on_event,
        )
    if as_json:
        print_json(found.as_dict())
        return
    _print_advice(found)


def _print_advice(found: Advice) -> None:
    possible = [way for way in found.ways if way.ruled_out is None]
    print_table(
        ("", "way", "quality", "in", "tuning here", "cost", "an answer", "why"),
        (
            (
                number,
                way.way,
                f"{way.quality.low:.2f} to {way.quality.high:.2f}" + (" measured" if way.measured_rows else ""),
                way.metric,
                words.duration_span(way.seconds.low, way.seconds.high) if way.seconds else "–",
                f"{way.cost.low:.2f} to {way.cost.high:.2f} $" if way.cost else "–",
                f"{way.latency * 1000:,.0f} ms" if way.latency is not None else "–",
                "; ".join(way.reasons),
            )
            for number, way in enumerate(possible, 1)
        ),
    )
    for way in found.ways:
        if way.ruled_out is not None:
            print(f"not {way.way}: {way.ruled_out}")
    if any(way.measured_rows is None for way in possible):
        print("Qualities that are not measured are rough guesses from the table of rules: `--trials 10m` measures.")


def _print_plan(made: Plan) -> None:
    found = made.as_dict()
    print_table(
        ("stage", "part", "parameters", "trainable"),
        ((p["stage"], p["module"], f"{p['total']:,}", f"{p['trainable']:,}") for p in found["parts"]),
    )
    low, high = made.memory_bytes.low, made.memory_bytes.high
    print_pairs(
        (
            ("machine", made.machine),
            ("trainable parameters", f"{made.trainable_parameters:,}"),
            ("total parameters", f"{made.total_parameters:,}"),
            ("tokens", _tokens(made)),
            ("steps", f"{made.steps:,}"),
            ("memory", f"{words.size_span(low, high)} of {words.size(made.free_bytes)}: {_parts(found)}"),
            ("time", words.duration_span(made.seconds.low, made.seconds.high)),
            ("cost", _cost(found)),
            ("disk", f"up to {words.size(made.disk_bytes)}: checkpoints, model, rendered data"),
            ("fits", "yes" if made.fits else "no"),
            ("basis", _basis(found)),
        )
    )
    _print_devices(made)
    for line in made.advice:
        print(f"advice: {line}")


def _print_devices(made: Plan) -> None:
    if made.devices:
        print_table(
            ("strategy", "devices", "memory each", "fits", "talking", "time", "cost"),
            (
                (
                    row["strategy"],
                    row["devices"],
                    words.size(row["memory_bytes_each"]),
                    "yes" if row["fits"] else "no",
                    words.duration_span(row["communication_seconds"], row["communication_seconds"]),
                    words.duration_span(row["seconds"], row["seconds"]),
                    "–" if row["cost_usd"] is None else f"{row['cost_usd']:.2f} $",
                )
                for row in made.devices
            ),
            title="Several devices (this version trains on one: a forecast, checked against no measurement)",
        )


def _tokens(made: Plan) -> str:
    """All tokens, those of an epoch, and what is cut."""
    epochs = ", ".join(f"{stage.epoch_tokens:,} an epoch" for stage in made.stages)
    cut = max((stage.cut_share for stage in made.stages), default=0.0)
    return f"{made.tokens:,}" + (f" ({epochs}; {cut:.1%} of the examples are cut)" if epochs else "")


def _parts(found: Mapping[str, Any]) -> str:
    sizes = sorted(found["memory_parts"].items(), key=lambda part: -part[1])
    return ", ".join(f"{name} {words.size(size)}" for name, size in sizes if size > 5e6)


def _cost(found: Mapping[str, Any]) -> str:
    if found["cost_usd"] is None:
        return "unknown: no price for this machine (`--machines FILE`)"
    low, high = found["cost_usd"]["low"], found["cost_usd"]["high"]
    return ("under 0.01 $" if high < 0.01 else f"{low:.2f} to {high:.2f} $") + f" ({found['price_note']})"


def _basis(found: Mapping[str, Any]) -> str | None:
    """What the ranges rest on."""
    trained = [stage for stage in found["stages"] if stage["kind"]]
    if found.get("probed"):
        return "three updates made now"
    if not trained:
        return None
    runs = min(stage["earlier_runs"] for stage in trained)
    basis = {"same": "{} earlier runs of this kind here", "other": "{} earlier runs of other kinds here"}
    worst = max(trained, key=lambda stage: ("same", "other", "none").index(stage["basis"]))["basis"]
    return basis.get(worst, "the model of costs alone, which no run on this machine has corrected").format(runs)
