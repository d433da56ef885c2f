"""Conversations in the shapes that people have, brought into one: messages with roles.

Read are OpenAI's chat format (content parts, ``tool_calls``, the older ``function_call`` and ``functions``,
``weight``), ShareGPT's (``from`` and ``value``), Alpaca's (``instruction``, ``input``, ``output``, ``system``,
``history``) and pairs of a prompt and a completion, each a text or a list of messages. A single ``text`` in which marks
stand for roles is not taken apart: which marks are meant is a guess, and a wrong one teaches a model to write them.

In the one shape a message has a ``role`` out of :data:`ROLES` and a ``content`` that is text; arguments of tool calls
are objects, as chat templates want them, and everything else a message carries is kept.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tunesmith.data.problems import Fault, kind_of
from tunesmith.data.rows import Origin, Row
from tunesmith.data.thoughts import without_empty_thought

Message = dict[str, Any]

ROLES = ("system", "user", "assistant", "tool")

ROLE_OF = {
    **{role: role for role in ROLES},
    "developer": "system",  # OpenAI's newer name; templates of open models know the old one
    "function": "tool",  # and its older one for the result of a call
}
"""A role as OpenAI's formats have it -> the role in the one shape."""
_ROLE_FROM = {
    **ROLE_OF,
    "human": "user",
    **dict.fromkeys(("gpt", "chatgpt", "model", "bot", "bing", "bard"), "assistant"),
    **dict.fromkeys(("observation", "function_response", "tool_response"), "tool"),
    **dict.fromkeys(("function_call", "tool_call"), "assistant"),
}
_CALL_ROLES = ("function_call", "tool_call")  # ShareGPT's turn that is nothing but a call, written as JSON
_TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
A_MESSAGE = '{"role": "user", "content": "What is it?"}'
A_LIST = f"e.g. [{A_MESSAGE}, ...]"
A_TOOL = 'e.g. [{"type": "function", "function": {"name": "search", "parameters": {...}}}]'
NO_IMAGES = "the models of this task read text: leave the pictures out, or the rows that need them"


class MalformedError(ValueError):
    """A value is no conversation: the stable name of the fault, what it is, and how to mend it."""

    def __init__(self, code: str, what: str, fix: str | None = None, *, group: str = "") -> None:
        super().__init__(what)
        self.code = code
        self.fix = fix
        self.group = group

    def fault(self, origin: Origin) -> Fault:
        """The fault of a row that holds the value."""
        return Fault(self.code, str(self), origin, fix=self.fix, group=self.group or kind_of(str(self)))


def as_messages(value: Any, name: str = "messages") -> list[Message]:
    """A list of messages in any known shape, also written as JSON text (in a CSV file), in the one shape.

    Raises:
        MalformedError: It is no list of messages, a role is unknown, a content is no text, or arguments do not parse.
    """
    turns = _parsed(value, f"`{name}`") if isinstance(value, str) else value
    if not isinstance(turns, list | tuple) or not turns:
        raise MalformedError("messages-shape", f"`{name}` must be a list with at least one message", A_LIST)
    where = "" if name == "messages" else f" of `{name}`"
    return [_message(turn, f"message {number}{where}") for number, turn in enumerate(turns, 1)]


def as_turns(value: Any, role: str, name: str) -> list[Message]:
    """A text as one message of this role, or a list of messages as they are."""
    return as_messages(value, name) if not isinstance(value, str) else [{"role": role, "content": value}]


def as_tools(value: Any) -> list[dict[str, Any]]:
    """Descriptions of tools; bare functions, the older shape, are wrapped, and JSON text is read.

    Raises:
        MalformedError: It is no list of functions with names.
    """
    found = _parsed(value, "`tools`") if isinstance(value, str) else value
    if not isinstance(found, list | tuple):
        raise MalformedError("tools-shape", "`tools` must be a list of functions", A_TOOL)
    tools = []
    for number, item in enumerate(found, 1):
        given = _filled(item) if isinstance(item, Mapping) else {}
        wrapped = given.get("function")
        function = wrapped if isinstance(wrapped, Mapping) else given
        if not isinstance(function.get("name"), str):
            raise MalformedError("tools-shape", f"tool {number} must be a function with a `name`", A_TOOL)
        tools.append({"type": "function", "function": dict(function)})
    return tools


def of_row(fields: Mapping[str, Any]) -> list[Message]:
    """The conversation of a row under the field names of a task that generates; see the module's beginning."""
    system = str(fields.get("system") or "").strip()
    if "messages" in fields:
        turns = list(fields["messages"])
    elif "instruction" in fields:
        turns = _alpaca(fields)
    else:
        prompt, completion = fields["prompt"], fields["completion"]
        turns = [*as_turns(prompt, "user", "prompt"), *as_turns(completion, "assistant", "completion")]
    if system and turns[0]["role"] != "system":
        turns = [{"role": "system", "content": system}, *turns]
    return turns


def _alpaca(fields: Mapping[str, Any]) -> list[Message]:
    asked = [str(fields[name]) for name in ("instruction", "input") if str(fields.get(name) or "").strip()]
    history = [
        {"role": role, "content": str(text)}
        for pair in fields.get("history") or []
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    answer = {"role": "assistant", "content": str(fields["output"])}
    return [*history, {"role": "user", "content": "\n\n".join(asked)}, answer]


def as_history(value: Any) -> list[list[str]]:
    """Alpaca's earlier rounds: a list of pairs of a question and an answer.

    Raises:
        MalformedError: It is something else.
    """
    pairs = _parsed(value, "`history`") if isinstance(value, str) and value.strip() else value or []
    if not isinstance(pairs, list | tuple) or any(
        not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(text, str) for text in pair)
        for pair in pairs
    ):
        raise MalformedError(
            "history-shape",
            "`history` must be a list of pairs of a question and an answer",
            'e.g. [["What is it?", "A cat."]]',
        )
    return [list(pair) for pair in pairs]


def text_of(message: Message) -> str:
    """What a message says, for readers, metrics and the search of duplicates: its content and its calls.

    An empty thought, which some data write out, says nothing.
    """
    calls = [_call_text(call["function"]) for call in message.get("tool_calls") or []]
    content = without_empty_thought(str(message.get("content") or ""))
    return "\n".join([content] * bool(content) + calls)


def _call_text(function: Mapping[str, Any]) -> str:
    """A call in JSON, its arguments in alphabetical order: equal calls are equal texts."""
    ordered = json.loads(json.dumps(function.get("arguments", {}), sort_keys=True))
    return json.dumps({**function, "arguments": ordered}, ensure_ascii=False)


def shape_name(fields: Mapping[str, Any]) -> str | None:
    """How a user would call the shape of a row that has to be converted; ``None`` for the one shape itself."""
    turns = fields.get("messages", fields.get("prompt"))
    if "instruction" in fields:
        return "Alpaca's form (instruction, input, output)"
    if "prompt" in fields and isinstance(turns, list):
        return "prompts and completions that are lists of messages"
    if "messages" in fields and isinstance(turns, str):
        return "conversations written as JSON text"
    first = turns[0] if isinstance(turns, list) and turns and isinstance(turns[0], Mapping) else {}
    return "ShareGPT's form (from, value)" if "from" in first and "role" not in first else None


def convert(row: Row) -> tuple[Row, list[Fault]]:
    """A row whose messages, tools and history are in the one shape, or why they cannot be."""
    fields = dict(row.fields)
    try:
        for name, reader in _READERS.items():
            if name in fields:
                fields[name] = reader(fields[name])
        for name in ("prompt", "completion"):
            if not isinstance(fields.get(name, ""), str):
                fields[name] = as_messages(fields[name], name)
    except MalformedError as error:
        return row, [error.fault(row.origin)]
    return Row(fields, row.origin), []


# --- one message ---------------------------------------------------------------------------------------------------


def _message(turn: Any, at: str) -> Message:
    """A message in the one shape; ``at`` is how errors call it."""
    if not isinstance(turn, Mapping) or not ({"role", "from"} & turn.keys()):
        what = f"{at} must be an object with `role` and `content`"
        raise MalformedError("messages-shape", what, f"e.g. {A_MESSAGE}")
    given = _filled(turn)
    key, known = ("role", ROLE_OF) if "role" in given else ("from", _ROLE_FROM)
    name = given.pop(key)
    if not isinstance(name, str) or name not in known:
        what = f"{at} has the unknown role {name!r}; known: {', '.join(known)}"
        near = difflib.get_close_matches(str(name).lower(), known, n=1)
        remedy = f"did you mean `{near[0]}`?" if near else f"write it as one of {', '.join(ROLES)}"
        raise MalformedError("unknown-role", what, remedy, group=str(name))
    value = given.pop("value", None)
    text = _text(given.pop("content", value), at)
    calls = given.pop("tool_calls", None) or given.pop("function_call", None) or []
    if "content" not in turn and "value" not in turn and not calls:
        near = difflib.get_close_matches("content", given, n=1)
        fix = f"did you mean `content` by `{near[0]}`?" if near else "add it, or `tool_calls`"
        raise MalformedError("messages-shape", f"{at} has no `content`", fix)
    if key == "from" and name in _CALL_ROLES:
        calls, text = _parsed(text, f"the call in {at}", "tool-arguments"), ""
    message = {"role": known[name], "content": text, **given}
    if calls:
        message["tool_calls"] = [_call(c, at) for c in (calls if isinstance(calls, list | tuple) else [calls])]
    return message


def _text(content: Any, at: str) -> str:
    """The text of a content that is text, or a list of parts, which are set one under the other."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        what = f"the content of {at} must be text"
        raise MalformedError("messages-shape", what, f"e.g. {A_MESSAGE}")
    texts = []
    for part in content:
        part = {"type": "text", "text": part} if isinstance(part, str) else part
        kind = str(part.get("type")) if isinstance(part, Mapping) else type(part).__name__
        text = part.get(_TEXT_PARTS[kind]) if kind in _TEXT_PARTS else None
        if not isinstance(text, str):
            what = "an image" if "image" in kind else f"a part of the type {kind!r}"
            code = "image-content" if "image" in kind else "content-part"
            raise MalformedError(code, f"{at} holds {what} where text is due", NO_IMAGES)
        texts.append(text)
    return "\n".join(texts)


def _call(call: Any, at: str) -> dict[str, Any]:
    """One tool call with its arguments as an object."""
    call = _filled(call) if isinstance(call, Mapping) else {}
    function = _filled(call["function"]) if isinstance(call.get("function"), Mapping) else call
    if not isinstance(function.get("name"), str):
        what = f"a tool call of {at} has no `function.name`"
        raise MalformedError("tool-call-shape", what, 'e.g. {"function": {"name": "search", "arguments": "{}"}}')
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        arguments = _parsed(arguments or "{}", f"the arguments of a tool call in {at}", "tool-arguments")
    if not isinstance(arguments, Mapping):
        what = f"the arguments of a tool call in {at} are no JSON object"
        raise MalformedError("tool-arguments", what, 'write them as {"name": value, ...}')
    named = {"name": function["name"], "arguments": dict(arguments)}
    outside = {key: value for key, value in call.items() if key in ("id", "index")}
    return {**outside, "type": "function", "function": named}


def _filled(value: Mapping[str, Any]) -> dict[str, Any]:
    """Without the keys that columnar formats filled with None because another row has them."""
    return {key: item for key, item in value.items() if item is not None}


def _parsed(text: str, what: str, code: str = "messages-shape") -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        reason = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else "too deep"
        raise MalformedError(code, f"{what}: not valid JSON ({reason})", "write it as JSON") from error


def _no_images(value: Any) -> Any:
    if value:
        raise MalformedError("image-content", "the row holds an image where text is due", NO_IMAGES)
    return value


_READERS = {"messages": as_messages, "tools": as_tools, "history": as_history, "images": _no_images}

REMEDIES = {
    "last-role": "add that turn, or leave out those behind it",
    "wrong-order": "put the user's turn before it, or leave it out",
    "call-without-result": 'add the result behind the call: {"role": "tool", "content": ...}',
    "result-without-call": "add the assistant's turn that makes the call, or leave the result out",
    "unknown-tool": "add it to `tools`, or correct the name",
    "parallel-calls": "make one call a turn, or leave `parallel_tool_calls` out",
    "empty-field": "fill it in",
    "identical-answers": "correct one of them, or leave the row out",
}
"""What to do against what a task's ``problems`` finds, by its code."""

# --- the order of turns ---------------------------------------------------------------------------------------------


def problems(
    messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None = None, *, parallel: bool = True
) -> Iterator[tuple[str, str]]:
    """What is wrong with a whole conversation, as pairs of (code, message).

    Args:
        messages: In the one shape.
        tools: That may be called; ``None`` if the row names none.
        parallel: Whether one turn may make several calls (OpenAI's ``parallel_tool_calls``).
    """
    known = {tool["function"]["name"] for tool in tools or []}
    asked = False  # whether anything stands there to be answered
    waiting: list[str | None] | None = None  # ids of the calls made, while their results come in
    for number, turn in enumerate(messages, 1):
        role, calls = turn["role"], turn.get("tool_calls") or []
        if not turn["content"].strip() and not calls and role != "tool":
            yield "empty-field", f"message {number} ({role}) is empty"
        if role == "tool":
            yield from _result_problems(turn, number, waiting)
            waiting = _without(waiting, turn.get("tool_call_id"))
        elif waiting and role != "system":
            yield "call-without-result", f"message {number} ({role}) comes before the result of a tool call"
            waiting = None
        if role == "assistant":
            if not asked and turn.get("weight") != 0:
                yield "wrong-order", f"message {number} (assistant) has nothing before it that it answers"
            yield from _call_problems(calls, number, known if tools else None, parallel)
            waiting = [call.get("id") for call in calls] or None
        asked = role != "assistant" if role != "system" else asked
    if messages and messages[-1]["role"] != "assistant":
        yield "last-role", "the last message must be the assistant's: it is what the model learns"


def _result_problems(turn: Message, number: int, waiting: list[str | None] | None) -> Iterator[tuple[str, str]]:
    name = turn.get("tool_call_id")
    if waiting is None:
        yield "result-without-call", f"message {number} is the result of a tool that was not called"
    elif name is not None and name not in waiting and None not in waiting:
        yield "result-without-call", f"message {number} answers the call {name!r}, which was not made before it"


def _without(waiting: list[str | None] | None, name: str | None) -> list[str | None] | None:
    """The calls still without a result, once one came in; calls without ids may share one."""
    if waiting is None:
        return None
    return [] if None in waiting or name is None else [other for other in waiting if other != name]


def _call_problems(
    calls: Sequence[Mapping[str, Any]], number: int, known: set[str] | None, parallel: bool
) -> Iterator[tuple[str, str]]:
    for call in calls:
        name = call["function"]["name"]
        if known is not None and name not in known:
            yield "unknown-tool", f"message {number} calls {name!r}, which is none of the row's tools"
    if len(calls) > 1 and not parallel:
        yield "parallel-calls", f"message {number} makes {len(calls)} calls at once, against `parallel_tool_calls`"
