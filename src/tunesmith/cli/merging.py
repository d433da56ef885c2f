"""The command that turns an adapter into a whole model: merge."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tunesmith.cli.output import Json, Run, print_json


def merge(
    run: Run,
    to: Annotated[
        Path | None, typer.Option("--to", metavar="DIR", help="Where to write it; default: `merged` in the run.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a run's adapter and its base as one whole model.

    A base that was kept in 8 or 4 bits is widened first: the result has the precision that the run computed in.
    """
    from tunesmith.models.merging import merge_artefact
    from tunesmith.runs import open_run

    opened = open_run(run)
    target = to or opened.path / "merged"
    merge_artefact(opened.model_folder, target)
    if as_json:
        print_json({"run": opened.path, "model": target})
    else:
        print(target)
