"""The command that checks data: check."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunesmith import words
from tunesmith.cli.output import Json, print_json, print_table, stdout
from tunesmith.cli.recipe_flags import RecipeChoices, takes_recipe

if TYPE_CHECKING:
    from tunesmith.data.problems import CheckReport, Problem
    from tunesmith.data.shown import ShownExample

MOST_READ = 1_500  # characters of a stretch that is only read; the middle of a longer one is left out
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
    show: Annotated[
        int,
        typer.Option("--show", metavar="N", min=0, help="Also print N training rows as the model will see them."),
    ] = 0,
    as_json: Json = False,
) -> None:
    """Report every problem of the data of all stages, with file and line.

    Exit code 3 if there are errors, which stop a run. Warnings do not.
    """
    recipe = choices.recipe()
    from tunesmith import checking, progress

    with progress.shown() as on_event:
        if show:
            report, examples = checking.check_and_show(recipe, show, dropped_to=drop_bad, on_event=on_event)
        else:
            report, examples = checking.check(recipe, dropped_to=drop_bad, on_event=on_event), []
    if as_json:
        print_json(report.as_dict() | ({"examples": [example.as_dict() for example in examples]} if show else {}))
    else:
        _print_examples(examples)
        print_report(report)
    if report.errors:
        raise typer.Exit(3)


def _print_examples(examples: Sequence[ShownExample]) -> None:
    """Each example on its own: what is learned is green, what is only read is plain, special tokens are dim.

    Where there is no colour, ``[[...]]`` stands around what is learned.
    """
    from rich.text import Text

    from tunesmith.data.shown import shortened

    screen = stdout()
    colored = screen.color_system is not None and not screen.no_color
    for number, example in enumerate(examples, 1):
        screen.print(Text(f"example {number}, {example.where}: {example.summary}", style="bold"), soft_wrap=True)
        text = Text()
        for learned, run in itertools.groupby(example.pieces, key=lambda piece: piece.weight):
            pieces = list(run)
            weight = f"{learned:g}: " if learned not in (0.0, 1.0) else ""
            text.append(f"[[{weight}" if learned and not colored else "", "dim")
            for piece in pieces:
                shown = piece.text if learned else shortened(piece.text, MOST_READ)
                text.append(shown, ("green" if learned else "") + (" dim" if piece.special else ""))
            text.append("]]" if learned and not colored else f"({learned:g})" if weight else "", "dim")
        text.append(f" … ({example.cut_tokens:,} tokens cut off)" if example.cut_tokens else "", "yellow")
        if example.answer is not None:
            text.append(" → ", "dim").append(example.answer if colored else f"[[{example.answer}]]", "green")
        screen.print(text, soft_wrap=True)
        screen.print()


def print_report(report: CheckReport) -> None:
    """Print problems, lengths, classes and columns."""
    _print_problems(report.problems)
    for name, own in report.stages.items():
        print(f"stage {name}")
        _print_facts(own)
    if not report.stages:
        _print_facts(report)
    print(f"{_kinds(len(report.errors), 'error')}, {_kinds(len(report.warnings), 'warning')}")
    if report.errors:
        rows = any(problem.in_rows for problem in report.errors)
        or_drop = ", or leave out rows that are at fault with `--set data.drop_bad=true`" if rows else ""
        print(f"errors stop a run: mend them{or_drop}")


def _print_facts(report: CheckReport) -> None:
    """All that is no problem."""
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
        print(f"{words.not_used(rows)}: {reason}")
    for note in report.notes:
        print(note)


def _kinds(number: int, what: str) -> str:
    return f"{number} kind{'' if number == 1 else 's'} of {what}"


def _print_problems(problems: Iterable[Problem]) -> None:
    from rich.text import Text

    screen = stdout()
    for problem in problems:
        color = "bold red" if problem.severity == "error" else "yellow"
        times = f"{problem.count:,} " if problem.count > 1 else ""
        stage = f"stage {problem.stage}: " if problem.stage else ""
        text = Text.assemble((f"{problem.severity} {problem.code}: ", color), stage, times, problem.message)
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
    names = [label if label == label.strip() else repr(label) for label in labels]  # else two would look alike
    print_table(
        ("class", *splits),
        ((name, *(f"{classes[s].get(label, 0):,}" for s in splits)) for name, label in zip(names, labels, strict=True)),
    )
