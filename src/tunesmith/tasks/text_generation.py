"""Text generation: a prompt and its completion, or a conversation with its last answer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tunesmith.data.rows import Row
from tunesmith.tasks.base import Answer, Field, Message

ROLES = ("system", "developer", "user", "assistant", "tool")


class TextGeneration:
    """Write the text that follows a prompt or a conversation."""

    name = "text-generation"
    what = "write an answer to a prompt or a conversation"
    forms: tuple[tuple[Field, ...], ...] = (
        (Field("messages", "the conversation", ("messages", "conversation", "conversations"), "messages"),),
        (
            Field("prompt", "what the model is given", ("prompt", "instruction", "input", "question", "source")),
            Field("completion", "what it shall write", ("completion", "response", "output", "answer", "target")),
        ),
    )
    answer: Answer = "text"

    def input_text(self, row: Row) -> str:
        """Everything up to the last answer."""
        if "messages" in row.fields:
            return "\n".join(f"{m.get('role')}: {m.get('content')}" for m in self._turns(row)[:-1])
        return str(row.fields["prompt"])

    def target_text(self, row: Row) -> str:
        """The (last) answer."""
        if "messages" in row.fields:
            turns = self._turns(row)
            return str(turns[-1].get("content") or "") if turns else ""
        return str(row.fields["completion"])

    def reference(self, row: Row) -> Any:
        """The (last) answer."""
        return self.target_text(row)

    def labels(self, row: Row) -> Sequence[str]:
        """None."""
        return ()

    def conversation(self, row: Row, labels: Sequence[str] | None, system_prompt: str | None) -> list[Message]:
        """The messages themselves, or the pair as a user's and an assistant's turn."""
        if "messages" in row.fields:
            turns = self._turns(row)
        else:
            turns = [
                {"role": "user", "content": str(row.fields["prompt"])},
                {"role": "assistant", "content": str(row.fields["completion"])},
            ]
        if system_prompt and not (turns and turns[0].get("role") == "system"):
            turns = [{"role": "system", "content": system_prompt}, *turns]
        return turns

    def problems(self, row: Row) -> Iterable[tuple[str, str]]:
        """Roles and order of turns."""
        if "messages" not in row.fields:
            return
        turns = row.fields["messages"]
        if not isinstance(turns, list) or not turns:
            yield "messages-shape", "`messages` must be a list with at least one message"
            return
        for number, turn in enumerate(turns, 1):
            if not isinstance(turn, dict) or "role" not in turn:
                yield "messages-shape", f"message {number} must be an object with `role` and `content`"
                return
            if turn["role"] not in ROLES:
                known = ", ".join(ROLES)
                yield "unknown-role", f"message {number} has the unknown role {turn['role']!r}; known: {known}"
                return
            if turn.get("content") is not None and not isinstance(turn["content"], str):
                yield "messages-shape", f"the content of message {number} must be text"
                return
            if turn["role"] in ("system", "user", "developer") and not str(turn.get("content") or "").strip():
                yield "empty-field", f"message {number} ({turn['role']}) is empty"
        if turns[-1]["role"] != "assistant":
            yield "last-role", "the last message must be the assistant's: it is what the model learns"

    @staticmethod
    def _turns(row: Row) -> list[Message]:
        turns = row.fields["messages"]
        return list(turns) if isinstance(turns, list) else []


class Chat(TextGeneration):
    """Text generation from conversations only."""

    name = "chat"
    what = "answer in a conversation"
    forms = (TextGeneration.forms[0],)
