"""What a task is: its fields, its conversation form, and its metrics. One file of this folder a task."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from tunesmith.data.rows import Row

Message = dict[str, Any]
"""One turn of a conversation: ``{"role": "system"|"user"|"assistant"|"tool", "content": str, ...}``."""


Answer = Literal["label", "text", "pair"]
"""Kinds of answers. The kind decides which metrics, tables and charts there are."""


@dataclass(frozen=True)
class Field:
    """A field of the task's schema.

    Attributes:
        name: The task's name for it.
        what: For help texts and errors.
        aliases: Column names that are taken for it when no column is named (lower case).
        kind: ``text``, ``label`` or ``messages``.
        required: Whether every row must have it.
    """

    name: str
    what: str
    aliases: tuple[str, ...] = ()
    kind: str = "text"
    required: bool = True


class Task(Protocol):
    """Step 1 of the walk. Tasks hold no state about data: what they need is passed in."""

    name: str
    what: str
    forms: tuple[tuple[Field, ...], ...]
    """Alternative sets of fields a row may have; the first that fits the columns is taken."""
    answer: Answer

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
