"""Commands that measure: eval and compare."""

from __future__ import annotations

from typing import Annotated

import typer

from tunesmith.cli.output import Json, Run, interval_text, print_json, print_table, stdout
from tunesmith.cli.tuning import print_run


def evaluate(
    run: Run,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data", metavar="FILE", help="Measure on these files instead of the run's own test rows. Repeatable."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure a run again, on its own or on other data."""
    from tunesmith import pipeline, progress
    from tunesmith.runs import open_run

    with progress.shown(verdict=False) as on_event:
        measured = pipeline.evaluate(open_run(run), data=data, on_event=on_event)
    print_run(measured, as_json=as_json)


def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Two or more runs, by folder or by name.")],
    as_json: Json = False,
) -> None:
    """Compare runs on the same test rows.

    Differences are taken row by row, so runs that were measured on other rows are refused. Each difference has an
    interval and a p-value, corrected for the number of comparisons.
    """
    import tunesmith

    comparison = tunesmith.compare(*runs).as_dict()
    if as_json:
        print_json(comparison)
        return
    print_table(
        ("run", comparison["metric"], "difference to the first", "p", ""),
        (
            (
                row["name"],
                interval_text(row["value"]),
                interval_text(row["difference"]) if row.get("difference") else "",
                f"{row['p']:.2g}" if row.get("p") is not None else "",
                row.get("outcome"),
            )
            for row in comparison["runs"]
        ),
    )
    stdout().print(comparison["verdict"], style="bold", markup=False, soft_wrap=True)
