"""Prompts: questions without an answer, for a model that learns from what a reward thinks of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from tunesmith.data import conversations
from tunesmith.data.problems import Fault
from tunesmith.data.rows import Row
from tunesmith.tasks.base import Answer, Field, Reading
from tunesmith.tasks.text_generation import TextGeneration

if TYPE_CHECKING:
    from tunesmith.recipe import Data

_ITEM = Field("item", "what rewards may look at: all other columns", kind="rest", required=False)
_SYSTEM = Field("system", "the system message", ("system_prompt",), required=False)
_TOOLS = Field("tools", "functions that may be called", ("functions",), "tools", required=False)


class Prompts(TextGeneration):
    """Answer a prompt; the data do not say how, as in OpenAI's format for reinforcement fine-tuning.

    A row is kept as a ``prompt`` (messages), an empty ``completion``, and the ``item``.
    """

    name = "prompts"
    what = "answer prompts that come without answers: a reward says what is good"
    forms = (
        (
            Field("messages", "the conversation up to the answer", ("conversation", "conversations"), "messages"),
            _SYSTEM,
            _TOOLS,
            _ITEM,
        ),
        (Field("prompt", "what the model is given", ("question", "input"), "turns"), _SYSTEM, _TOOLS, _ITEM),
    )
    answer: Answer = "open"

    def reading(self, sample: Sequence[Row], data: Data) -> Reading:
        """Bring both forms into one."""
        return Reading(_convert)

    def problems(self, row: Row) -> Iterable[tuple[str, str]]:
        """The order of turns, and that there is something to answer."""
        turns = conversations.of_row(row.fields)[:-1]
        yield from (
            found for found in conversations.problems(turns, row.fields.get("tools")) if found[0] != "last-role"
        )
        if not turns or turns[-1]["role"] not in ("user", "tool"):
            yield "last-role", "the last message must be the user's: it is what the model answers"


def _convert(row: Row) -> tuple[Row, list[Fault]]:
    read, faults = conversations.convert(row)
    if faults:
        return read, faults
    fields = dict(read.fields)
    prompt = fields.pop("messages") if "messages" in fields else fields.pop("prompt")
    item = {name: value for name, value in (fields.pop("item", None) or {}).items() if value is not None}
    return replace(read, fields={"prompt": prompt, "completion": "", **fields, "item": item}), []
