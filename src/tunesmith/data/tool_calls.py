"""Calls of tools as models write them, each family in the form of its chat template, read back from the text.

Known are: ``<tool_call>{...}</tool_call>`` (Hermes, Qwen, SmolLM), ``[TOOL_CALLS][...]`` and the newer
``[TOOL_CALLS]name[ARGS]{...}`` (Mistral), ``<|python_tag|>{...}`` and a bare ``{"name": ..., "parameters": {...}}``
(Llama).
"""

from __future__ import annotations

import json
import re
from typing import Any

MARKS = ("<tool_call>", "[TOOL_CALLS]", "<|python_tag|>")
"""What stands before a call; the whole text may be one too."""
_NAMED = re.compile(r"\s*([^\s\[\]{}]+)\s*(?:\[CALL_ID\][^\s\[\]]*\s*)?\[ARGS\]")
_BLOCK = re.compile(r"<tool_call>(.*?)(?:</tool_call>|$)", re.DOTALL)


def read_turn(text: str) -> dict[str, Any]:
    """An answer as a message of the one shape: the calls, and as its content all that stands around them."""
    calls, around = split(text)
    made = [{"type": "function", "function": _as_object(call)} for call in calls]
    return {"role": "assistant", "content": around, **({"tool_calls": made} if made else {})}


def split(text: str) -> tuple[list[dict[str, Any]], str]:
    """The calls of an answer, ``{"name": ..., "arguments": ...}``, and the text around them.

    No call and the text itself, if what looks like one cannot be read.
    """
    mark = next((mark for mark in MARKS if mark in text), None)
    if mark == MARKS[0]:
        blocks, around = _BLOCK.findall(text), [_BLOCK.sub("", text)]
    else:
        before, *blocks = text.split(mark) if mark else ("", text)
        around = [before]
    calls: list[dict[str, Any] | None] = []
    for block in blocks:
        named = _NAMED.match(block)
        values, rest = _values(block[named.end() :] if named else block)
        if named:
            values = [{"name": named[1], "arguments": value} for value in values]
        calls += [_call(call, marked=mark is not None) for value in values or [None] for call in _several(value)]
        around.append(rest)
    read = [call for call in calls if call]
    if not read or len(read) < len(calls):
        return [], text
    return read, "\n".join(part.strip() for part in around if part.strip())


def _values(block: str) -> tuple[list[Any], str]:
    """The JSON values with which a text begins (Llama parts several by a semicolon), and what follows."""
    values, rest = [], block.strip()
    while rest:
        try:
            value, end = json.JSONDecoder().raw_decode(rest)
        except (ValueError, RecursionError):
            break
        values.append(value)
        rest = rest[end:].strip()
        if not rest.startswith(";"):
            break
        rest = rest[1:].strip()
    return values, rest


def _several(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def parsed(text: str) -> Any:
    """The JSON value with which a text begins; ``None`` if it begins with none."""
    values, _ = _values(text)
    return values[0] if values else None


def _call(value: Any, *, marked: bool) -> dict[str, Any] | None:
    """A call in one form; without arguments it is one only where a mark says so."""
    if not isinstance(value, dict):
        return None
    value = value.get("function", value) if isinstance(value.get("function"), dict) else value
    arguments = value.get("arguments", value.get("parameters", {} if marked else None))
    if not isinstance(value.get("name"), str) or not isinstance(arguments, dict | str):
        return None
    return {"name": value["name"], "arguments": arguments}


def _as_object(call: dict[str, Any]) -> dict[str, Any]:
    """The call with arguments that are text read, where they can be."""
    if not isinstance(call["arguments"], str):
        return call
    arguments = parsed(call["arguments"])
    return call | {"arguments": arguments} if isinstance(arguments, dict) else call
