"""The command ``tunesmith``: finds the command, runs it, and prints whatever went wrong in one form.

Commands are imported when they are called, so that ``tunesmith --help`` answers without reading the whole package.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from tunesmith.cli.asking import asked_for_terms


@dataclass(frozen=True)
class Command:
    """Where a command lives.

    Attributes:
        target: ``module:attribute`` of a function, or of a :class:`typer.Typer` with sub-commands.
        what: Its line in ``tunesmith --help``; also the first line of its own help.
        panel: The heading it is listed under.
    """

    target: str
    what: str
    panel: str


TUNE, USE, LOOK = "Fine-tune", "Use and compare", "Look up"
COMMANDS = {
    "init": Command("tunesmith.cli.recipes:init", "Ask five questions and write a recipe.", TUNE),
    "check": Command(
        "tunesmith.cli.checking:check", "Report every problem of the data of all stages, with file and line.", TUNE
    ),
    "pairs": Command("tunesmith.cli.pairing:pairs", "Turn ratings into pairs of a better and a worse text.", TUNE),
    "plan": Command("tunesmith.cli.planning:plan", "Say what a run will take: memory, time, money, disk.", TUNE),
    "advise": Command("tunesmith.cli.planning:advise", "Say which ways suit data, task and limits, best first.", TUNE),
    "tune": Command("tunesmith.cli.tuning:tune", "Walk the five steps and leave a tuned model and a report.", TUNE),
    "resume": Command("tunesmith.cli.tuning:resume", "Go on with an interrupted run, bit for bit.", TUNE),
    "eval": Command("tunesmith.cli.evaluating:evaluate", "Measure a run again, on its own or on other data.", USE),
    "compare": Command(
        "tunesmith.cli.evaluating:compare",
        "Compare runs on the same test rows; or, with --shots, ways to learn from few examples.",
        USE,
    ),
    "predict": Command("tunesmith.cli.predicting:predict", "Apply a tuned model to a file or to stdin.", USE),
    "chat": Command("tunesmith.cli.predicting:chat", "Talk to a tuned model.", USE),
    "merge": Command("tunesmith.cli.merging:merge", "Write a run's adapter and its base as one whole model.", USE),
    "quantize": Command(
        "tunesmith.cli.compressing:quantize", "Make a run's model smaller and faster, and measure what that costs.", USE
    ),
    "export": Command(
        "tunesmith.cli.compressing:export", "Write a run's model for other programs, and verify it with theirs.", USE
    ),
    "push": Command(
        "tunesmith.cli.compressing:push", "Upload a run's model or an export to the hub, with its model card.", USE
    ),
    "serve": Command(
        "tunesmith.cli.serving:app",
        "Serve the OpenAI API: files, fine-tuning jobs, and the models that they make.",
        USE,
    ),
    "hosted": Command(
        "tunesmith.cli.hosting:app",
        "Tune at a provider with the OpenAI fine-tuning API: checks, costs, jobs, break-even.",
        TUNE,
    ),
    "runs": Command("tunesmith.cli.runs:app", "List, show and remove runs. Without a command: list.", USE),
    "methods": Command("tunesmith.cli.lookup:methods", "List the ways to fine-tune, and when each is right.", LOOK),
    "catalog": Command(
        "tunesmith.cli.lookup:catalog",
        "List, fetch and remove models and data that need no hub. Without a command: list.",
        LOOK,
    ),
    "recipe": Command("tunesmith.cli.recipes:app", "Show a recipe with every default, or the recipe's schema.", LOOK),
    "doctor": Command("tunesmith.cli.lookup:doctor", "Say what this machine can do, what is slow and why.", LOOK),
}


def load_command(name: str) -> Any:
    """Import a command and give its click object."""
    from tunesmith.quiet import hush_imports

    hush_imports()
    module, _, attribute = COMMANDS[name].target.partition(":")
    target = getattr(importlib.import_module(module), attribute)
    if not isinstance(target, typer.Typer):
        function, target = target, typer.Typer(rich_markup_mode="markdown", add_completion=False)
        target.command(name)(function)
    command = typer.main.get_command(target)
    command.name = name
    return command


class LazyGroup(TyperGroup):
    """A group whose commands are lines of :data:`COMMANDS` until one of them is called."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Find the command as usual (with its "did you mean"), then import the real one."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, load_command(name) if name in COMMANDS else command, rest


app = typer.Typer(
    cls=LazyGroup,
    rich_markup_mode="markdown",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"tunesmith {version('tunesmith')}")
        raise typer.Exit()


@app.callback()
def _start(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error.", envvar="TUNESMITH_DEBUG")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Every way to fine-tune a model: one recipe, your own hardware, and proof that it paid off.

    Start with `tunesmith init`, or `tunesmith tune RECIPE`. Data goes to stdout and progress to stderr. Every command
    takes `--json`. Exit codes: 0 done, 2 wrong usage or recipe, 3 bad data, 4 memory, disk or hub, 130 interrupted.
    """


def _placeholder() -> Callable[[], None]:
    def not_imported_yet() -> None: ...

    return not_imported_yet


for _name, _command in COMMANDS.items():
    app.command(_name, help=_command.what, rich_help_panel=_command.panel)(_placeholder())


def run(arguments: Sequence[str]) -> int:
    """Run one command line and give its exit code; errors are printed, never raised.

    With ``--debug`` before the command (or ``TUNESMITH_DEBUG=1``) the traceback is printed too.
    """
    os.environ.setdefault("TQDM_DISABLE", "1")  # libraries draw bars of their own, over ours and into logs
    command = typer.main.get_command(app)
    try:
        with asked_for_terms(as_json="--json" in arguments):
            code = command.main(list(arguments), prog_name="tunesmith", standalone_mode=False)
    except SystemExit as stop:  # the other end of a pipe was closed
        return stop.code if isinstance(stop.code, int) else 1
    except BaseException as error:
        from tunesmith.cli.failures import as_tunesmith_error, print_error

        if arguments[:1] == ["--debug"] or os.environ.get("TUNESMITH_DEBUG") == "1":
            import traceback

            traceback.print_exc()
        known = as_tunesmith_error(error)
        print_error(known, as_json="--json" in arguments)
        return known.exit_code
    if code == 130:  # Ctrl-C where nothing had to be saved
        from tunesmith.cli.failures import print_error
        from tunesmith.errors import InterruptedRun

        print_error(InterruptedRun("stopped before anything had to be saved"), as_json="--json" in arguments)
    return code if isinstance(code, int) else 0


def main() -> NoReturn:
    """Entry point of the console script."""
    sys.exit(run(sys.argv[1:]))
