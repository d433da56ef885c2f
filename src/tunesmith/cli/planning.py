"""Commands before a run: what it will take, and which way to go."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunesmith import display, words
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
    print_table(*display.of_parts(made))
    print_pairs(display.of_plan(made))
    if devices := display.of_devices(made):
        print_table(*devices, title=display.DEVICES)
    for line in made.advice:
        print(f"advice: {line}")
