"""Feedback: single answers with a thumb up or down."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tunesmith.data import conversations
from tunesmith.data.problems import Fault
from tunesmith.data.rows import Row
from tunesmith.tasks.base import Answer, Field, Reading
from tunesmith.tasks.text_generation import TextGeneration

if TYPE_CHECKING:
    from tunesmith.recipe import Data

_LABEL = Field("label", "whether the answer was liked", ("label", "liked", "thumb", "thumbs_up"), "any")
_SAID: dict[Any, bool] = {
    **dict.fromkeys((True, 1, "true", "1", "yes", "up"), True),
    **dict.fromkeys((False, 0, "false", "0", "no", "down"), False),
}


class Feedback(TextGeneration):
    """Come to write what is liked and not what is disliked, from answers that were each judged alone."""

    name = "feedback"
    what = "learn from answers that were liked or disliked, each by itself"
    forms = (
        (
            Field("messages", "the conversation with the answer", ("conversation", "conversations"), "messages"),
            _LABEL,
        ),
        (
            Field("prompt", "what was asked", ("prompt", "question", "instruction", "input"), "turns"),
            Field("completion", "what was answered", ("completion", "response", "output", "answer"), "turns"),
            _LABEL,
        ),
    )
    answer: Answer = "thumb"

    def reading(self, sample: Sequence[Row], data: Data) -> Reading:
        """Bring conversations into one shape, and the thumb to true or false."""
        return Reading(_convert)

    def reference(self, row: Row) -> bool:
        """Whether the answer was liked."""
        return bool(row.fields["label"])


def _convert(row: Row) -> tuple[Row, list[Fault]]:
    given = row.fields["label"]
    known = isinstance(given, str | int | float)  # a list cannot be looked up
    liked = _SAID.get(given.strip().lower() if isinstance(given, str) else given) if known else None
    if liked is None:
        what = f"`label` is {given!r}, where true or false (liked or not) is wanted"
        return row, [Fault("wrong-type", what, row.origin, fix="write true or false", group="label")]
    return conversations.convert(Row({**row.fields, "label": liked}, row.origin))
