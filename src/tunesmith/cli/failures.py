"""Every failure in one form: what is wrong, where, and how to mend it."""

from __future__ import annotations

import sys

import typer

from tunesmith.cli.output import print_json, stderr
from tunesmith.errors import InterruptedRun, ResourceError, TunesmithError, UsageError, of_os


def as_tunesmith_error(error: BaseException) -> TunesmithError:
    """Give any exception the family's form, and with it an exit code.

    What is not known here is a defect of Tunesmith, and says so.
    """
    if isinstance(error, TunesmithError):
        return error
    if isinstance(error, typer.TyperException):
        context = getattr(error, "ctx", None)
        path = getattr(context, "command_path", "tunesmith")
        return UsageError(error.format_message(), fix=f"see `{path} --help`")
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return InterruptedRun("stopped before anything had to be saved")
    if isinstance(error, MemoryError) or _is_torch_out_of_memory(error):
        return ResourceError(
            f"out of memory: {str(error).splitlines()[0] if str(error) else 'no more could be allocated'}",
            fix="lower `training.micro_tokens`, or use `method: peft` or a smaller model; see `tunesmith plan`",
        )
    if isinstance(error, OSError):
        return of_os(error)
    return TunesmithError(
        f"unexpected {type(error).__name__}: {error}",
        fix="this is a defect of Tunesmith: run it again as `tunesmith --debug ...` and report the traceback",
    )


def _is_torch_out_of_memory(error: BaseException) -> bool:
    torch = sys.modules.get("torch")  # no import: an error before torch was needed is no error of torch
    return torch is not None and isinstance(error, torch.OutOfMemoryError)


def print_error(error: TunesmithError, *, as_json: bool) -> None:
    """Print an error: for people on stderr, or as one JSON object on stdout."""
    if as_json:
        print_json({"error": error.as_dict()})
        return
    from rich.text import Text

    lines = Text.assemble(("Error: ", "bold red"), error.what)
    if error.where:
        lines.append(f"\n  where: {error.where}")
    if error.fix:
        lines.append("\n  how to mend it: ", "bold")
        lines.append(error.fix)
    stderr().print(lines, soft_wrap=True)
