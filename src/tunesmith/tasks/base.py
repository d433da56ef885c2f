"""What a task is: its fields, its conversation form, and its metrics. One file of this folder a task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from tunesmith.data.problems import Fault
from tunesmith.data.rows import Row

if TYPE_CHECKING:
    from tunesmith.recipe import Data

Message = dict[str, Any]
"""One turn of a conversation: ``{"role": "system"|"user"|"assistant"|"tool", "content": str, ...}``."""


Answer = Literal["label", "labels", "score", "spans", "text", "pair", "thumb", "likelihood", "open"]
"""Kinds of answers: which metrics, tables and charts there are. ``open`` is text to which no right answer is known."""


@dataclass(frozen=True)
class Field:
    """A field of the task's schema.

    Attributes:
        name: The task's name for it.
        what: For help texts and errors.
        aliases: Column names that are taken for it when no column is named (lower case).
        kind: ``text``, ``label`` and ``picture`` (the path of one) are checked as such, ``turns`` unless it is a list
            (of messages); ``rest`` takes all columns that no other field takes; values of other kinds are the task's
            business.
        required: Whether every row must have it.
        unasked: What stands for it in a row whose answer is still to be found.
    """

    name: str
    what: str
    aliases: tuple[str, ...] = ()
    kind: str = "text"
    required: bool = True
    unasked: Any = ""


@dataclass(frozen=True)
class Reading:
    """How the rows of one source become rows of the task: settled once, from the source's first rows.

    Attributes:
        convert: From a row as the source has it to a row as the task wants it, and all that is wrong with it: a row
            with a fault of severity ``error`` is not used. ``None``: rows are taken as they are.
        said: What a user should know of it, e.g. that the tags are of the scheme IOB1; empty if there is nothing.
    """

    convert: Callable[[Row], tuple[Row, list[Fault]]] | None = None
    said: str = ""


class Task(Protocol):
    """Step 1 of the walk. Tasks hold no state about data: what they need is passed in."""

    name: str
    what: str
    forms: tuple[tuple[Field, ...], ...]
    """Alternative sets of fields a row may have; the first that fits the columns is taken."""
    answer: Answer

    def reading(self, sample: Sequence[Row], data: Data) -> Reading:
        """How to read a source whose first rows are ``sample`` (not checked yet, under the names of the fields)."""
        ...

    def input_text(self, row: Row) -> str:
        """What goes in, as one text: duplicates, contradictions and leakage are judged by it."""
        ...

    def target_text(self, row: Row) -> str:
        """What shall come out, as one text."""
        ...

    def reference(self, row: Row) -> Any:
        """The right answer in the form that the metrics of this kind of answer read; mostly the target text."""
        ...

    def labels(self, row: Row) -> Sequence[str]:
        """The labels that occur in the row; empty for tasks without labels."""
        ...

    def conversation(self, row: Row, labels: Sequence[str] | None, system_prompt: str | None) -> list[Message]:
        """The row as messages that end with the wanted answer, for models that generate."""
        ...

    def problems(self, row: Row) -> Iterable[tuple[str, str]]:
        """Errors that only this task knows (a role, an order of turns): pairs of (code, message)."""
        ...


@runtime_checkable
class Shortens(Protocol):
    """A task whose rows may lose the end of what goes in where a model has no room for it."""

    def shortened(self, row: Row, characters: int) -> Row:
        """The row with at most so many characters of :meth:`Task.input_text`."""
        ...


@runtime_checkable
class ReadsAnswers(Protocol):
    """A task whose answers a model may write in another form than the data have them."""

    def read_answer(self, row: Row, written: str, marked: str) -> str:
        """What the model has written, in the form of :meth:`Task.target_text`.

        Args:
            row: That was answered.
            written: Without special tokens.
            marked: With those that are no end.
        """
        ...
