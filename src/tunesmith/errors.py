"""One family of exceptions: what is wrong, where it is, and how to mend it.

Each class also subclasses the standard exception that a reader expects, so ``except ValueError`` keeps working.
"""

from __future__ import annotations

import errno


class TunesmithError(Exception):
    """Base of every error that Tunesmith raises on purpose.

    Args:
        what: One sentence that says what is wrong.
        where: The place, as ``reviews.csv:17``, ``recipe.yaml:4`` or ``training.epochs``.
        fix: What to do about it.
    """

    code = "error"
    exit_code = 1

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.fix = fix

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        mend = f"\n  How to mend it: {self.fix}" if self.fix else ""
        return f"{place}{self.what}{mend}"

    def as_dict(self) -> dict[str, str | None]:
        """The error as the CLI prints it under ``--json``."""
        return {"code": self.code, "what": self.what, "where": self.where, "fix": self.fix}


class UsageError(TunesmithError, ValueError):
    """A command or a call was used wrongly."""

    code = "usage"
    exit_code = 2


class RecipeError(UsageError):
    """A recipe is malformed or asks for an impossible pair."""

    code = "recipe"


class DataError(TunesmithError, ValueError):
    """The data cannot be used as it is."""

    code = "data"
    exit_code = 3


class NoDataError(DataError):
    """A name leads to no data: there is no such file, folder or set of the catalog."""


class ResourceError(TunesmithError, RuntimeError):
    """Memory, disk, network, hub or a missing package stands in the way."""

    code = "resource"
    exit_code = 4


def of_os(error: OSError, doing: str = "", where: str | None = None) -> TunesmithError:
    """What the system refused, as one of the family: what is wrong with a path, or with the machine.

    Args:
        error: Of the system.
        doing: What was tried, e.g. ``cannot write model.json``.
        where: The path; default: the error's own.
    """
    where = where or (str(error.filename) if error.filename else None)
    what = ": ".join(filter(None, [doing, error.strerror or str(error)]))
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceError(
            what if doing else "the disk is full", where=where, fix="free some space, then `tunesmith resume RUN`"
        )
    paths = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)
    if isinstance(error, paths) or error.errno == errno.EROFS:
        return UsageError(what, where=where, fix="check the path and its permissions")
    return ResourceError(what, where=where)


class MissingExtraError(ResourceError, ImportError):
    """An optional dependency is not installed."""

    code = "missing-extra"

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed",
            fix=f"pip install 'tunesmith[{extra}]'",
        )


class NotFoundError(ResourceError, LookupError):
    """A named model, data set or run does not exist here."""

    code = "not-found"


class CheckpointError(ResourceError):
    """A checkpoint is damaged or belongs to another run."""

    code = "checkpoint"


class NonFiniteError(TunesmithError, ArithmeticError):
    """The loss or a gradient became NaN or infinite; the weights were not updated."""

    code = "non-finite"
    exit_code = 1


class InterruptedRun(TunesmithError):
    """The run was asked to stop; it saved itself first."""

    code = "interrupted"
    exit_code = 130


class RewardError(TunesmithError, ValueError):
    """A reward failed, or is not a number for every answer."""

    code = "reward"
    exit_code = 3
