"""The command that checks data: check."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunesmith.cli.output import Json, print_json, print_table, stdout
from tunesmith.cli.recipe_flags import RecipeChoices, takes_recipe

if TYPE_CHECKING:
    from tunesmith.data.problems import CheckReport, Problem

MOST_CLASSES = 30  # more than these are counted, not listed; --json has all


@takes_recipe
def check(
    choices: RecipeChoices,
    *,
    drop_bad: Annotated[
        Path | None,
        typer.Option(
            "--drop-bad",
            metavar="FILE",
            help="Leave out the rows that have errors, and write them to FILE with the reason.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Report every problem of the data, with file and line.

    Exit code 3 if there are errors, which stop a run. Warnings do not.
    """
    if drop_bad is not None:
        choices = RecipeChoices(choices.file, [*choices.overrides, "data.drop_bad=true"])
    recipe = choices.recipe()
    from tunesmith import checking, progress

    with progress.shown() as on_event:
        report = checking.check(recipe, dropped_to=drop_bad, on_event=on_event)
    if as_json:
        print_json(report.as_dict())
    else:
        _print_report(report)
    if report.errors:
        raise typer.Exit(3)


def _print_report(report: CheckReport) -> None:
    _print_problems(report.problems)
    print_table(
        ("split", "rows", "length: median", "95 %", "longest", "unit"),
        (
            (split, f"{rows:,}", *(f"{numbers[name]:,.0f}" for name in ("p50", "p95", "max")), unit)
            for split, rows in report.rows.items()
            for unit, numbers in report.lengths.get(split, {}).items()
        ),
    )
    _print_classes(report.classes)
    for columns in report.columns:
        taken = ", ".join(f"{field} from {how['column']} ({how['how']})" for field, how in columns["fields"].items())
        print(f"columns of {columns['file']}: {taken}")
    for reason, rows in report.rows_left_out.items():
        print(f"{rows:,} rows are not used: {reason}")
    for note in report.notes:
        print(note)
    print(f"{_kinds(len(report.errors), 'error')}, {_kinds(len(report.warnings), 'warning')}")
    if report.errors:
        print("errors stop a run: mend them, or leave such rows out with `--set data.drop_bad=true`")


def _kinds(number: int, what: str) -> str:
    return f"{number} kind{'' if number == 1 else 's'} of {what}"


def _print_problems(problems: Iterable[Problem]) -> None:
    from rich.text import Text

    screen = stdout()
    for problem in problems:
        color = "bold red" if problem.severity == "error" else "yellow"
        times = f"{problem.count:,} " if problem.count > 1 else ""
        text = Text.assemble((f"{problem.severity} {problem.code}: ", color), times, problem.message)
        if problem.where:
            more = f" and {problem.count - len(problem.where):,} more" if problem.count > len(problem.where) else ""
            text.append(f"\n  where: {', '.join(str(place) for place in problem.where)}{more}")
        if problem.fix:
            text.append(f"\n  how to mend it: {problem.fix}")
        screen.print(text, soft_wrap=True)


def _print_classes(classes: dict[str, dict[str, int]]) -> None:
    labels = list(classes.get("train", {}))
    if not labels:
        return
    if len(labels) > MOST_CLASSES:
        counts = classes["train"].values()
        print(f"{len(labels)} classes, with {min(counts):,} to {max(counts):,} training rows each")
        return
    splits = list(classes)
    print_table(("class", *splits), ((label, *(f"{classes[s].get(label, 0):,}" for s in splits)) for label in labels))
