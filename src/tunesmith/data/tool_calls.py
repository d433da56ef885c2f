"""Calls of tools as models write them, each family in the form of its chat template, read back from the text.

Known are: ``<tool_call>{...}</tool_call>`` (Hermes, Qwen, SmolLM), ``[TOOL_CALLS][...]`` (Mistral),
``<|python_tag|>{...}`` and a bare ``{"name": ..., "parameters": {...}}`` (Llama).
"""

from __future__ import annotations

import json
import re
from typing import Any

MARKS = ("<tool_call>", "[TOOL_CALLS]", "<|python_tag|>")
"""What stands before a call; the whole text may be one too."""
_BLOCK = re.compile(r"<tool_call>(.*?)(?:</tool_call>|$)", re.DOTALL)


def read_calls(text: str) -> list[dict[str, Any]]:
    """The calls in an answer: ``{"name": ..., "arguments": ...}``; none if what looks like a call cannot be read."""
    if MARKS[0] in text:
        values = [parsed(block) for block in _BLOCK.findall(text)]
    else:
        mark = next((mark for mark in MARKS if mark in text), None)
        values = [parsed(text.split(mark, 1)[1] if mark else text)]
    found = [call for value in values for call in (value if isinstance(value, list) else [value])]
    calls = [_call(value) for value in found]
    return [call for call in calls if call] if all(calls) else []


def read_turn(text: str) -> dict[str, Any]:
    """An answer as a message of the one shape: the text before the calls, and the calls."""
    calls = read_calls(text)
    if not calls:
        return {"role": "assistant", "content": text}
    before = min((text.find(mark) for mark in MARKS if mark in text), default=0)
    made = [{"type": "function", "function": _as_object(call)} for call in calls]
    return {"role": "assistant", "content": text[:before].strip(), "tool_calls": made}


def parsed(text: str) -> Any:
    """The JSON value with which a text begins; ``None`` if it begins with none."""
    try:
        return json.JSONDecoder().raw_decode(text.strip())[0]
    except (ValueError, RecursionError):
        return None


def _call(value: Any) -> dict[str, Any] | None:
    if not isinstance(value, dict):
        return None
    value = value.get("function", value) if isinstance(value.get("function"), dict) else value
    arguments = value.get("arguments", value.get("parameters"))
    if not isinstance(value.get("name"), str) or not isinstance(arguments, dict | str):
        return None
    return {"name": value["name"], "arguments": arguments}


def _as_object(call: dict[str, Any]) -> dict[str, Any]:
    """The call with arguments that are text read, where they can be."""
    if not isinstance(call["arguments"], str):
        return call
    arguments = parsed(call["arguments"])
    return call | {"arguments": arguments} if isinstance(arguments, dict) else call
