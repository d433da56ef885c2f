"""From rows of any shape that Tunesmith reads to the lines of a provider's file."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from tunesmith import disk
from tunesmith.data.readers import Record, read
from tunesmith.data.rows import Origin, Row
from tunesmith.data.sources import find_sources
from tunesmith.hosted.rules import MESSAGE_KEYS, PREFERENCE_KEYS
from tunesmith.hosted.table import Provider
from tunesmith.recipe import Recipe
from tunesmith.tasks import TASKS
from tunesmith.tasks.preference import turns_of

Line = dict[str, Any]


def lines(
    recipe: Recipe,
    rows: Iterable[Row],
    labels: Sequence[str] | None,
    provider: Provider,
    *,
    as_they_are: Set[Origin] = frozenset(),
) -> Iterator[Line]:
    """The lines of a file for a provider.

    Args:
        recipe: Its task says how a row becomes a conversation; its system prompt is put before each.
        rows: Checked ones.
        labels: Of a task that has some.
        provider: What it knows.
        as_they_are: Rows that hold what the task cannot (pictures): taken from their files again.
    """
    raw = {record.origin: record for record in _records(recipe, as_they_are)} if as_they_are else {}
    for row in rows:
        if row.origin in raw:
            yield tidy(raw[row.origin].values, provider)
        elif recipe.task == "preference":
            yield tidy(_preference(row, recipe.system_prompt), provider)
        elif recipe.task == "prompts":
            turns = TASKS[recipe.task].conversation(row, None, recipe.system_prompt)[:-1]
            tools = {"tools": row.fields["tools"]} if "tools" in row.fields else {}
            yield tidy({"messages": turns, **tools, **row.fields["item"]}, provider)
        else:
            messages = TASKS[recipe.task].conversation(row, labels, recipe.system_prompt)
            kept: Line = {name: row.fields[name] for name in ("tools", "parallel_tool_calls") if name in row.fields}
            yield tidy({"messages": messages, **kept}, provider)


def tidy(values: Mapping[str, Any], provider: Provider) -> Line:
    """A row with messages as a provider wants it: known roles and keys only, arguments as text, ids for all calls."""
    if "preferred_output" in values:
        given = values["input"] if isinstance(values["input"], dict) else {"messages": _said(values["input"], "user")}
        outputs = {name: _messages(_said(values[name], "assistant"), provider) for name in PREFERENCE_KEYS[1:]}
        return {"input": {**given, "messages": _messages(given["messages"], provider)}, **outputs}
    return {**values, "messages": _messages(values["messages"], provider)}


def write(path: Path, content: Iterable[Line], provider: Provider) -> int:
    """Write a file whole or not at all, with the byte-order mark where the provider wants one; returns its bytes."""
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in content)
    encoded = (codecs.BOM_UTF8 if provider.byte_order_mark else b"") + text.encode("utf-8")
    disk.write_bytes(path, encoded)
    return len(encoded)


def _said(value: Any, role: str) -> Any:
    """A text as a turn; turns as they are."""
    return [{"role": role, "content": value}] if isinstance(value, str) else value


def _messages(turns: Sequence[Mapping[str, Any]], provider: Provider) -> list[Line]:
    waiting: list[str] = []  # ids given to the calls of the turn before, for results that name none
    found = []
    for number, turn in enumerate(turns):
        message = {key: turn[key] for key in MESSAGE_KEYS if turn.get(key) is not None}
        if message.get("role") == "developer" and "developer" not in provider.roles:
            message["role"] = "system"
        if calls := message.get("tool_calls"):
            message["tool_calls"] = [_call(call, f"call_{number}_{n}") for n, call in enumerate(calls)]
            waiting = [call["id"] for call in message["tool_calls"]]
            if not message.get("content"):
                message.pop("content", None)
        if message.get("role") == "tool":
            name = message.setdefault("tool_call_id", waiting[0] if waiting else "call_0_0")
            waiting = [other for other in waiting if other != name]
        found.append(message)
    return found


def _call(call: Mapping[str, Any], name: str) -> Line:
    function = call["function"]
    arguments = function.get("arguments") or {}
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {
        "id": call.get("id") or name,
        "type": "function",
        "function": {"name": function["name"], "arguments": text},
    }


def _preference(row: Row, system_prompt: str | None) -> Line:
    prompt, better, worse = turns_of(row)
    if system_prompt and not (prompt and prompt[0].get("role") in ("system", "developer")):
        prompt = [{"role": "system", "content": system_prompt}, *prompt]
    given = row.fields.get("input")
    kept = {key: given[key] for key in ("tools", "parallel_tool_calls") if isinstance(given, dict) and key in given}
    return {"input": {"messages": prompt, **kept}, "preferred_output": better, "non_preferred_output": worse}


def _records(recipe: Recipe, wanted: Set[Origin]) -> Iterator[Record]:
    data = recipe.data
    for part in (data.train, data.validation, data.test):
        specs = part if isinstance(part, list) else []
        for source in find_sources(specs, file_format=data.format, key="data", text_task=recipe.task):
            for item in read(source, data.encoding, data.read_rows):
                if isinstance(item, Record) and item.origin in wanted:
                    yield item
