"""What a provider asks of a row in its own format, beyond what the checks of the data find in any conversation.

The rules are those of OpenAI's cookbook ("Data preparation and analysis for chat model fine-tuning") and of its guides
to supervised, vision, preference and reinforcement fine-tuning. Only rows that already have the provider's shape are
looked at: of others Tunesmith writes that shape itself. What that heals, another shape included, is a warning.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tunesmith.data.problems import Fault
from tunesmith.data.readers import Record
from tunesmith.data.rows import Origin, content_key
from tunesmith.hosted.table import Method, Provider
from tunesmith.rewards.graders import SLOT

REWRITTEN = "`--out FILE` writes the file as the provider wants it; `tunesmith hosted tune` does so by itself"
MESSAGE_KEYS = ("role", "content", "name", "weight", "tool_calls", "tool_call_id", "function_call", "refusal", "audio")
ROW_KEYS = ("messages", "tools", "functions", "parallel_tool_calls")
PREFERENCE_KEYS = ("input", "preferred_output", "non_preferred_output")

ROLES = ("system", "developer", "user", "assistant", "tool", "function")

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_PICTURE = re.compile(r"https?://|data:image/(png|jpe?g|webp);base64,")

Found = Iterator[tuple[str, str, str | None]]
"""Code, message, remedy; a code that ends in ``?`` is a warning."""


@dataclass
class ProviderRules:
    """The rules of one provider for one kind of job, as the survey of the data applies them.

    Attributes:
        provider: Whose rules.
        method: ``supervised``, ``dpo`` or ``reinforcement``.
        images: Whether the model reads pictures.
        grader: Of reinforcement: its variables must be fields of every row.
        as_file: Whether the file as it stands is judged too, not only what is made of it and sent.
        notes: What could not be checked, once each.
        as_they_are: Rows with pictures, which the task cannot hold: they are sent as their files have them.
    """

    provider: Provider
    method: Method = "supervised"
    images: bool = False
    grader: Mapping[str, Any] | None = None
    as_file: bool = False
    notes: list[str] = field(default_factory=list)
    as_they_are: set[Origin] = field(default_factory=set)
    _answers: dict[str, tuple[str, Origin]] = field(default_factory=dict)

    def __call__(self, record: Record) -> tuple[Record, list[Fault]]:
        """The record as the task shall read it, and the faults that these rules find in it."""
        values = record.values
        if not has_provider_shape(values):
            message = "rows are not in the provider's shape: as it stands, the file would be refused"
            return record, [_fault("other-shape?", message, REWRITTEN, record.origin)] if self.as_file else []
        faults = [_fault(code, message, fix, record.origin) for code, message, fix in self._problems(values)]
        faults += self._contradiction(values, record.origin)
        return Record(self._readable(values, record.origin), record.origin), faults

    def _problems(self, values: Mapping[str, Any]) -> Found:
        if "preferred_output" in values:
            yield from _preference_shape(values)
            turns = _turns(values["input"])
            given: Mapping[str, Any] = values["input"] if isinstance(values["input"], dict) else {}
            outputs = {name: _turns(values[name]) for name in PREFERENCE_KEYS[1:]}
            for name, answer in outputs.items():
                yield from self._turn_problems(answer, name)
        else:
            turns, given, outputs = _turns(values["messages"]), values, {}
            if self.method != "reinforcement":
                extra = [key for key in values if key not in ROW_KEYS]
                if extra:
                    yield "extra-key?", f"the row has `{extra[0]}`, which the provider does not know", REWRITTEN
                yield from _weights(turns)
        yield from self._turn_problems(turns, "messages")
        flag = given.get("parallel_tool_calls")
        if flag is not None and not isinstance(flag, bool):
            fix = "write true or false, without quotes"
            yield "parallel-tool-calls", f"`parallel_tool_calls` is {flag!r}: it must be true or false", fix
        yield from self._tools(given.get("tools") or [], {"messages": turns, **outputs})
        if self.method == "reinforcement":
            yield from _unread(values, self.grader)

    def _turn_problems(self, turns: Sequence[Mapping[str, Any]], where: str) -> Found:
        pictures = 0
        for number, turn in enumerate(turns, 1):
            at = _at(number, where)
            role = turn.get("role")
            if role in ROLES and role not in self.provider.roles:  # others the task finds
                yield "role-not-known?", f"{at} has the role {role!r}, which this provider does not know", REWRITTEN
            for key in turn:
                if key not in MESSAGE_KEYS:
                    yield "extra-key?", f"{at} has the key {key!r}, which the provider does not know", REWRITTEN
            name = turn.get("name")
            if name is not None and not (isinstance(name, str) and _NAME.fullmatch(name)):
                yield "bad-name", f"{at}: the name {name!r} is not 1 to 64 letters, digits, `_` or `-`", "rename it"
            if role == "tool" and not isinstance(turn.get("tool_call_id"), str):
                yield "no-call-id?", f"{at} is a tool's result without `tool_call_id`", REWRITTEN
            yield from _calls(turn.get("tool_calls") or [], at)
            found = list(_images(turn))
            pictures += len(found)
            for url in found:
                yield from self._picture(url, role, at)
        most = self.provider.limits.row_images
        if most is not None and pictures > most:
            yield "many-images", f"the row has {pictures} pictures; the provider takes {most}", "split the row"

    def _picture(self, url: Any, role: Any, at: str) -> Found:
        if not self.images:
            yield "image-content", f"{at} holds a picture, and this model is not tuned on pictures", "leave it out"
        elif role != "user":
            yield "image-turn", f"{at} ({role}) holds a picture: only users' turns may", "move it to the user's turn"
        elif not (isinstance(url, str) and _PICTURE.match(url)):
            yield "image-form", f"{at}: a picture is no address and no base64 of PNG, JPEG or WebP", "convert it"

    def _tools(self, tools: Any, parts: Mapping[str, Sequence[Mapping[str, Any]]]) -> Found:
        if not isinstance(tools, list):
            return  # the task says so
        if not tools and any(turn.get("tool_calls") for turns in parts.values() for turn in turns):
            fix = "add `tools`, which describes them: the model is asked with it later"
            yield "no-tools?", "the row calls tools, and has no `tools`", fix
        validators: dict[str, Any] = {}
        for number, tool in enumerate(tools, 1):
            function = tool.get("function", tool) if isinstance(tool, dict) else {}
            name = function.get("name")
            if not isinstance(name, str):
                continue  # likewise
            if not _NAME.fullmatch(name):
                yield "bad-name", f"tool {number}: the name {name!r} is not 1 to 64 letters, digits, `_` or `-`", None
            if name in validators:
                yield "double-tool", f"two tools have the name {name!r}", "rename one"
            try:
                validators[name] = self._validator(function.get("parameters"))
            except ValueError as error:
                yield "tool-schema", f"the parameters of {name!r} are no JSON schema: {error}", "mend the schema"
                validators[name] = None
        for where, turns in parts.items():
            for number, turn in enumerate(turns, 1):
                yield from _unfitting(turn.get("tool_calls") or [], validators, _at(number, where))

    def _validator(self, schema: Any) -> Any:
        """Of a tool's parameters; ``None`` if there are none, or nothing to check them with."""
        if schema is None:
            return None
        try:
            schemas: Any = importlib.import_module("jsonschema_rs")
        except ImportError:
            note = "arguments were not held against their schemas: pip install 'tunesmith[hosted]'"
            self.notes += [note] if note not in self.notes else []
            return None
        if not isinstance(schema, dict | bool):
            raise ValueError("an object is wanted")
        return schemas.validator_for(schema)

    def _contradiction(self, values: Mapping[str, Any], origin: Origin) -> list[Fault]:
        """The same question with another answer than before: both cannot be learned."""
        if self.method != "supervised" or not isinstance(values.get("messages"), list) or not values["messages"]:
            return []
        question, answer = content_key(values["messages"][:-1]), content_key(values["messages"][-1:])
        known = self._answers.setdefault(question, (answer, origin))
        if known[0] == answer:
            return []
        message = "rows have the conversation of an earlier row, but another answer"
        fix = f"decide which answer is wanted (first: {origin} and {known[1]})"
        return [Fault("contradiction", message, origin, severity="warning", fix=fix)]

    def _readable(self, values: dict[str, Any], origin: Origin) -> dict[str, Any]:
        """The row for the task's own checks: the same picture is the same text."""
        seen = [url for name in ("messages", "input") for turn in _turns(values.get(name)) for url in _images(turn)]
        if seen:
            self.as_they_are |= {origin} if self.images else set()
            values = {key: _without_pictures(value) for key, value in values.items()}
        return values


def has_provider_shape(values: Mapping[str, Any]) -> bool:
    """Whether a row is written as OpenAI wants it: messages with roles, or two outputs to one input."""
    if all(key in values for key in PREFERENCE_KEYS):
        return True
    turns = values.get("messages")
    return isinstance(turns, list) and all(isinstance(turn, dict) and "from" not in turn for turn in turns)


def _fault(code: str, message: str, fix: str | None, origin: Origin) -> Fault:
    severity: Any = "warning" if code.endswith("?") else "error"
    return Fault(code.rstrip("?"), message, origin, severity=severity, fix=fix, group=message)


def _turns(value: Any) -> list[Mapping[str, Any]]:
    value = value.get("messages") if isinstance(value, dict) else value
    return [turn for turn in value if isinstance(turn, dict)] if isinstance(value, list) else []


def _images(turn: Mapping[str, Any]) -> Iterator[Any]:
    """Addresses of the pictures in a turn."""
    content = turn.get("content")
    for part in content if isinstance(content, list) else []:
        if isinstance(part, dict) and part.get("type") in ("image_url", "input_image", "image"):
            found = part.get("image_url")
            yield found.get("url") if isinstance(found, dict) else found


def _without_pictures(value: Any) -> Any:
    """Messages with a text in place of each picture: the same picture, the same text."""
    if isinstance(value, dict) and "messages" in value:
        return {**value, "messages": _without_pictures(value["messages"])}
    if not isinstance(value, list):
        return value
    return [
        {**turn, "content": [_spelled(part) for part in turn["content"]]}
        if isinstance(turn, dict) and isinstance(turn.get("content"), list)
        else turn
        for turn in value
    ]


def _spelled(part: Any) -> Any:
    if isinstance(part, dict) and "image" in str(part.get("type")):
        return {"type": "text", "text": f"[picture {content_key(part.get('image_url'))}]"}
    return part


def _weights(turns: Sequence[Mapping[str, Any]]) -> Found:
    answers = [turn for turn in turns if turn.get("role") == "assistant"]
    for number, turn in enumerate(turns, 1):
        weight = turn.get("weight")
        if weight is None:
            continue
        if turn.get("role") != "assistant":
            yield "weight-role", f"message {number} ({turn.get('role')}) has a `weight`: only answers may", "remove it"
        elif isinstance(weight, bool) or weight not in (0, 1):
            yield "bad-weight", f"message {number} has the weight {weight!r}: it must be 0 or 1", "write 0 or 1"
    if answers and all(turn.get("weight") == 0 for turn in answers):
        yield "all-weights-zero", "every answer has the weight 0: there is nothing to learn", "give one the weight 1"


def _calls(calls: Any, at: str) -> Found:
    seen: set[str] = set()
    for call in calls if isinstance(calls, list) else []:
        if not isinstance(call, dict) or not isinstance(call.get("function"), dict):
            continue  # the task says so
        name = call.get("id")
        if not isinstance(name, str) or not name:
            yield "no-call-id?", f"{at} has a tool call without `id`", REWRITTEN
        elif name in seen:
            yield "double-call-id", f"{at} has two tool calls with the id {name!r}", "give each its own"
        else:
            seen.add(name)
        if call.get("type", "function") != "function":
            yield "call-type", f"{at} has a tool call of the type {call['type']!r}", 'only "function" is known'
        if not isinstance(call["function"].get("arguments", ""), str):
            yield "arguments-form?", f"{at} has the arguments of a call as an object, where text is wanted", REWRITTEN


def _unfitting(calls: Any, validators: Mapping[str, Any], at: str) -> Found:
    for call in calls if isinstance(calls, list) else []:
        function = call.get("function", {}) if isinstance(call, dict) else {}
        validator = validators.get(str(function.get("name")))
        arguments = _parsed(function.get("arguments"))
        if validator is not None and arguments is not None and not validator.is_valid(arguments):
            why = next(iter(validator.iter_errors(arguments))).message
            yield (
                "arguments-schema",
                f"{at} calls {function['name']!r} with arguments that do not fit its schema: {why}",
                "correct the arguments or the schema",
            )


def _at(number: int, where: str) -> str:
    return f"message {number}" if where == "messages" else f"message {number} of `{where}`"


def _parsed(arguments: Any) -> Any:
    if not isinstance(arguments, str):
        return arguments
    try:
        return json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        return None  # the task says so


def _preference_shape(values: Mapping[str, Any]) -> Found:
    prompt = _turns(values["input"])
    if isinstance(values["input"], list | str):
        kind = "a list" if isinstance(values["input"], list) else "a text"
        yield "input-shape?", f"`input` is {kind}: the provider wants an object with `messages`", REWRITTEN
    if prompt and prompt[-1].get("role") == "assistant":
        yield "input-role", "`input` ends with the assistant's turn: there is nothing to answer", "end with the user's"
    for name in PREFERENCE_KEYS[1:]:
        if isinstance(values[name], str):
            yield "output-shape?", f"`{name}` is a text: the provider wants a list with the assistant's turn", REWRITTEN
        roles = [turn.get("role") for turn in _turns(values[name])]
        if any(role not in ("assistant", "tool") for role in roles):
            yield "output-role", f"`{name}` holds a turn that is not the assistant's", "put the rest into `input`"


def _unread(values: Mapping[str, Any], grader: Mapping[str, Any] | None) -> Found:
    for path in sorted(grader_variables(grader)):
        value: Any = values
        for step in path.split("."):
            value = value.get(step) if isinstance(value, Mapping) else None
        if value is None:
            yield "grader-variable", f"the grader reads `item.{path}`, which the row has not", f"add `{path}` to it"


def grader_variables(grader: Any) -> set[str]:
    """The fields of a row that the templates of a grader name, as ``answer`` or ``answer.unit``."""
    if isinstance(grader, str):
        return {path for kind, path in SLOT.findall(grader) if kind == "item"}
    if isinstance(grader, Mapping):
        grader = list(grader.values())
    return set().union(*map(grader_variables, grader)) if isinstance(grader, list) and grader else set()
