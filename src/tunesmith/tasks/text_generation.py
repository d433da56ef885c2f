"""Text generation: a prompt and its completion, or a conversation with its last answer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from tunesmith.data import conversations, tool_calls
from tunesmith.data.rows import Row
from tunesmith.tasks.base import Answer, Field, Message, Reading

if TYPE_CHECKING:
    from tunesmith.recipe import Data

_ANSWER_NAMES = ("completion", "response", "output", "answer", "target")
_SYSTEM = Field("system", "the system message", ("system_prompt",), required=False)
_TOOLS = Field("tools", "functions that may be called", ("functions",), "tools", required=False)
_IMAGES = Field("images", "pictures, which these models cannot read", ("image",), "images", required=False)


class TextGeneration:
    """Write the text that follows a prompt or a conversation."""

    name = "text-generation"
    what = "write an answer to a prompt or a conversation"
    forms: tuple[tuple[Field, ...], ...] = (
        (
            Field("messages", "the conversation", ("messages", "conversation", "conversations"), "messages"),
            _SYSTEM,
            _TOOLS,
            Field("parallel_tool_calls", "whether one turn may make several calls", kind="switch", required=False),
            _IMAGES,
        ),
        (
            Field("instruction", "what is asked", ("instruction",)),
            Field("input", "what it is asked about", ("input", "context"), required=False),
            Field("output", "the answer", _ANSWER_NAMES),
            _SYSTEM,
            Field("history", "earlier questions and answers", kind="history", required=False),
            _TOOLS,
            _IMAGES,
        ),
        (
            Field(
                "prompt", "what the model is given", ("prompt", "instruction", "input", "question", "source"), "turns"
            ),
            Field("completion", "what it shall write", _ANSWER_NAMES, "turns"),
            _SYSTEM,
            _TOOLS,
            _IMAGES,
        ),
    )
    answer: Answer = "text"

    def reading(self, sample: Sequence[Row], data: Data) -> Reading:
        """Bring every shape of conversation into one."""
        shape = conversations.shape_name(sample[0].fields) if sample else None
        return Reading(conversations.convert, f"{shape}: read as messages with roles" if shape else "")

    def input_text(self, row: Row) -> str:
        """Everything up to the last answer; roles are named where there is more than one question."""
        turns = conversations.of_row(row.fields)[:-1]
        if len(turns) == 1:
            return conversations.text_of(turns[0])
        return "\n".join(f"{turn['role']}: {conversations.text_of(turn)}" for turn in turns)

    def target_text(self, row: Row) -> str:
        """The (last) answer."""
        return conversations.text_of(conversations.of_row(row.fields)[-1])

    def reference(self, row: Row) -> Any:
        """The (last) answer."""
        return self.target_text(row)

    def read_answer(self, row: Row, written: str, marked: str) -> str:
        """Calls of tools as the data have them, whatever the chat template makes of them; other text as it is."""
        may_call = row.fields.get("tools") or conversations.of_row(row.fields)[-1].get("tool_calls")
        turn = tool_calls.read_turn(marked) if may_call else {}
        return conversations.text_of(turn) if turn.get("tool_calls") else written

    def labels(self, row: Row) -> Sequence[str]:
        """None."""
        return ()

    def conversation(self, row: Row, labels: Sequence[str] | None, system_prompt: str | None) -> list[Message]:
        """The messages, behind the recipe's system prompt unless the row brings its own."""
        turns = conversations.of_row(row.fields)
        if system_prompt and turns[0]["role"] != "system":
            turns = [{"role": "system", "content": system_prompt}, *turns]
        return turns

    def problems(self, row: Row) -> Iterable[tuple[str, str]]:
        """The order of turns, and calls of tools with their results."""
        parallel = row.fields.get("parallel_tool_calls") is not False
        return conversations.problems(conversations.of_row(row.fields), row.fields.get("tools"), parallel=parallel)


class Chat(TextGeneration):
    """Text generation under the name that users of conversations look for."""

    name = "chat"
    what = "answer in a conversation"
