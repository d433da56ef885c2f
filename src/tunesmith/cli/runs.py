"""Commands about runs on disk: list, show, rm."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunesmith import words
from tunesmith.cli.asking import require_yes
from tunesmith.cli.output import Json, Run, print_json, print_table
from tunesmith.cli.tuning import print_run
from tunesmith.errors import RecipeError

if TYPE_CHECKING:
    from tunesmith.runs import Run as StoredRun

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")
Root = Annotated[Path, typer.Option("--root", metavar="DIR", help="The folder that holds the runs.")]


@app.callback(invoke_without_command=True)
def list_unless_told_otherwise(context: typer.Context, root: Root = Path("runs"), as_json: Json = False) -> None:
    """List, show and remove runs. Without a command: list."""
    if context.invoked_subcommand is None:
        list_them(root, as_json)


@app.command("list")
def list_them(root: Root = Path("runs"), as_json: Json = False) -> None:
    """List the runs of a folder, newest first."""
    from tunesmith.runs import list_runs

    rows = [_row(run) for run in list_runs(root)]
    if as_json:
        print_json(rows)
        return
    print_table(
        ("run", "status", "task", "model", "method", "result"),
        (
            (
                *(row[name] for name in ("run", "status", "task", "model", "method")),
                next((f"{name} {words.interval(value)}" for name, value in row["metrics"].items()), row.get("problem")),
            )
            for row in rows
        ),
    )


def _row(run: StoredRun) -> dict[str, Any]:
    """A run's line, with what it failed of; one whose recipe cannot be read (of another version, say) is listed too."""
    from tunesmith.runs import described

    row: dict[str, Any] = {"run": run.id, "path": str(run.path), "status": run.status}
    try:
        recipe = run.recipe
    except RecipeError as error:
        return row | {"task": None, "model": None, "method": None, "metrics": {}, "problem": error.what}
    metrics = {name: interval.as_dict() for name, interval in run.metrics.items()}
    row |= {"task": recipe.task, "model": recipe.model, "method": recipe.method, "metrics": metrics}
    failure = run.failure
    return row | ({"problem": described(failure)} if failure else {})


@app.command("show")
def show(run: Run, as_json: Json = False) -> None:
    """Show what came out of a run, and where its parts are."""
    from tunesmith.runs import open_run

    print_run(open_run(run), as_json=as_json)


@app.command("rm")
def remove_it(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Runs, by folder or by name.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Remove runs for good, with their checkpoints and models."""
    from tunesmith.runs import open_run, remove

    opened = [open_run(run) for run in runs]
    if not yes:
        require_yes(f"Remove {', '.join(str(run.path) for run in opened)}?")
    for run in opened:
        remove(run)
    if as_json:
        print_json({"removed": [run.path for run in opened]})
    else:
        for run in opened:
            print(f"removed {run.path}")
