"""Calls of tools: from messages to the chat template, and from the model's text, piece by piece, back to calls."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tunesmith.data import tool_calls
from tunesmith.data.tool_calls import MARKS, parsed
from tunesmith.server.bodies import NamedFunction
from tunesmith.server.errors import ApiError

if TYPE_CHECKING:
    from tunesmith.generation.batch import Token


def call_schema(tools: list[dict[str, Any]]) -> dict[str, Any]:
    """The JSON schema of a call of one of these functions, for a client that requires one."""
    options = [
        {
            "type": "object",
            "properties": {
                "name": {"const": tool["function"]["name"]},
                "arguments": tool["function"].get("parameters") or {"type": "object"},
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for tool in tools
    ]
    return options[0] if len(options) == 1 else {"anyOf": options}


def required(tools: list[dict[str, Any]], choice: str | NamedFunction | None) -> list[dict[str, Any]]:
    """The tools one of which must be called; none if the model may choose.

    Args:
        tools: Those that were given, in the form of chat completions.
        choice: ``none``, ``auto``, ``required``, or one by its name.

    Raises:
        ApiError: 400: none of that name was given.
    """
    if choice == "required":
        named = tools
    elif isinstance(choice, NamedFunction):
        named = [tool for tool in tools if tool["function"]["name"] == choice.name]
    else:
        return []
    if not named:
        raise ApiError(400, "'tool_choice' asks for a tool that 'tools' does not have.", param="tool_choice")
    return named


class CallReader:
    """Separates an answer, piece by piece, into text for the user and calls of tools."""

    def __init__(self) -> None:
        self._text = ""
        self._sent = 0

    def push(self, piece: str) -> str:
        """The text that is surely none of a call."""
        self._text += piece
        start = self._text.lstrip()
        if not start or start[0] in "{[":  # the whole answer may be one call
            return ""
        marks = [self._text.find(mark) for mark in MARKS if mark in self._text]
        settled = min(marks) if marks else len(self._text) - self._open_end()
        out, self._sent = self._text[self._sent : settled], max(self._sent, settled)
        return out

    def finish(self) -> tuple[str, list[dict[str, Any]]]:
        """The rest of the text, with what stands behind calls, and the calls in OpenAI's form."""
        shown, kept = self._text[: self._sent], self._text[self._sent :]
        self._sent = len(self._text)
        calls, around = tool_calls.split(kept)
        if not calls:
            return kept, []
        return ("\n" if around and shown.strip() else "") + around, [_numbered(call) for call in calls]

    def _open_end(self) -> int:
        longest = max(len(mark) for mark in MARKS) - 1
        for length in range(min(longest, len(self._text)), 0, -1):
            if any(mark.startswith(self._text[-length:]) for mark in MARKS):
                return length
        return 0


@dataclass
class Written:
    """An answer as far as it is written.

    Attributes:
        reader: Tells calls of tools from text; ``None`` where no tool was offered.
        text: For the user.
        calls: In OpenAI's form, once the answer has ended.
        finish_reason: ``stop``, ``length`` or ``tool_calls``, likewise.
    """

    reader: CallReader | None
    text: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    finish_reason: str | None = None

    def take(self, token: Token) -> str:
        """The text that one more token settles."""
        piece = self.reader.push(token.text) if self.reader else token.text
        if token.finish_reason is not None:
            self.finish_reason = token.finish_reason
            if self.reader:
                rest, self.calls = self.reader.finish()
                piece += rest
            if self.calls and token.finish_reason == "stop":
                self.finish_reason = "tool_calls"
        self.text += piece
        return piece


def _numbered(call: dict[str, Any]) -> dict[str, Any]:
    given = call["arguments"]
    written = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
    function = {"name": call["name"], "arguments": written}
    return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}


def for_template(message: dict[str, Any]) -> dict[str, Any]:
    """A message as templates want it: the arguments of calls as objects, not as the text that OpenAI's API has."""
    calls = message.get("tool_calls")
    if not calls:
        return message
    return {**message, "tool_calls": [_with_parsed_arguments(call) for call in calls]}


def _with_parsed_arguments(call: dict[str, Any]) -> dict[str, Any]:
    function = dict(call.get("function") or {})
    if isinstance(function.get("arguments"), str):
        found = parsed(function["arguments"])
        function["arguments"] = found if isinstance(found, dict) else function["arguments"]
    return {**call, "function": function}
