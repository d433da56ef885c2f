"""Commands that train: tune and resume."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunesmith import display
from tunesmith.cli.output import Json, print_json, print_pairs, print_table, stdout
from tunesmith.cli.recipe_flags import RecipeChoices, takes_recipe

if TYPE_CHECKING:
    from tunesmith.runs import Run


@takes_recipe
def tune(
    choices: RecipeChoices,
    *,
    run_dir: Annotated[
        Path | None,
        typer.Option("--run-dir", metavar="DIR", help="The folder of the run; default: a new one under `runs/`."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Walk the five steps and leave a tuned model and a report.

    Give a recipe file, or --task, --model and --train, or a file and flags that change it. Ctrl-C saves the run and
    prints the command that goes on with it.
    """
    recipe = choices.recipe()  # before the heavy imports: a mistyped key answers at once
    from tunesmith import pipeline, progress

    with progress.shown(verdict=False) as on_event:
        run = pipeline.run(recipe, run_dir=run_dir, on_event=on_event)
    print_run(run, as_json=as_json)


def resume(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of the run.")], as_json: Json = False
) -> None:
    """Go on with an interrupted run, bit for bit.

    The newest checkpoint that is whole is taken; damaged ones are named. Data or recipe that changed since are refused.
    """
    from tunesmith import pipeline, progress

    with progress.shown(verdict=False) as on_event:
        finished = pipeline.resume(run, on_event=on_event)
    print_run(finished, as_json=as_json)


def print_run(run: Run, *, as_json: bool) -> None:
    """Print what came out of a run: metrics beside its baselines', what stages gave, the verdict, where the rest is."""
    from tunesmith.lineage import as_text

    summary = run.summary()
    if as_json:
        print_json(summary)
        return
    for table in (display.of_run(summary), *display.of_stages(summary)):
        print_table(*table)
    stdout().print(summary["verdict"], style="bold", markup=False, soft_wrap=True)
    if behind := summary.get("lineage"):
        print_pairs((("began from", as_text(behind, "this run")),))
    there = summary.get("hosted", {}).get("model")  # at a provider
    print_pairs((("run", run.path), ("model", there or run.model_folder), ("report", run.report())))
