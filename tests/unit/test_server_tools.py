"""Calls of tools in the texts of models, whole and piece by piece."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tunesmith.data.tool_calls import read_turn
from tunesmith.server.tools import CallReader, call_schema, for_template

CALL = '{"name": "weather", "arguments": {"city": "paris"}}'
LLAMA = '{"name": "weather", "parameters": {"city": "paris"}}'
WRITTEN = {
    "hermes": f"Let me see.\n<tool_call>\n{CALL}\n</tool_call>",
    "two": f"<tool_call>{CALL}</tool_call>\n<tool_call>{CALL}</tool_call>",
    "smollm": f"<tool_call>[{CALL}, {CALL}]</tool_call>",
    "unclosed": f"<tool_call>\n{CALL}",
    "mistral": f"[TOOL_CALLS] [{CALL}]",
    "mistral of 2025": '[TOOL_CALLS]weather[ARGS]{"city": "paris"}',
    "mistral with numbers": '[TOOL_CALLS]weather[CALL_ID]a1B2c3D4e[ARGS]{"city": "paris"}' * 2,
    "llama": f"<|python_tag|>{LLAMA}",
    "bare": LLAMA,
    "nested": f'{{"type": "function", "function": {LLAMA}}}',
}


def read(text: str, size: int) -> tuple[str, list[dict[str, Any]]]:
    reader = CallReader()
    shown = "".join(reader.push(text[start : start + size]) for start in range(0, len(text), size))
    rest, calls = reader.finish()
    return shown + rest, calls


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize("form", list(WRITTEN))
def test_calls_are_read_and_not_shown(form: str, size: int) -> None:
    text, calls = read(WRITTEN[form], size)
    assert text.strip() == ("Let me see." if form == "hermes" else "")
    assert len(calls) == (2 if form in ("two", "smollm", "mistral with numbers") else 1)
    for call in calls:
        assert call["function"]["name"] == "weather" and call["id"].startswith("call_")
        assert json.loads(call["function"]["arguments"]) == {"city": "paris"}


@pytest.mark.parametrize(
    "text",
    [
        "It is sunny.",
        "a < b, and <tool",
        '{"city": "paris"}',
        "[1, 2]",
        "<tool_call>not json</tool_call>",
        "[TOOL_CALLS]weather[ARGS]paris",
        "",
        " [TOOL",
    ],
)
@pytest.mark.parametrize("size", [1, 1000])
def test_what_is_no_call_is_shown_as_it_is(text: str, size: int) -> None:
    assert read(text, size) == (text, [])


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_text_behind_a_call_is_shown_too(size: int) -> None:
    text, calls = read(f"Let me see. <tool_call>{CALL}</tool_call> It will rain.", size)
    assert text == "Let me see. \nIt will rain." and len(calls) == 1


def test_text_is_shown_as_soon_as_it_can_be_no_call() -> None:
    reader = CallReader()
    assert reader.push("It is <") == "It is "
    assert reader.push("b>sunny") == "<b>sunny"
    assert reader.push(" <tool_") == " "
    assert reader.push("call>" + CALL) == ""
    rest, calls = reader.finish()
    assert rest == "" and len(calls) == 1


def test_calls_go_back_into_the_template_as_objects() -> None:
    _, [call] = read(CALL, 1000)
    message = for_template({"role": "assistant", "content": "", "tool_calls": [call]})
    assert message["tool_calls"][0]["function"]["arguments"] == {"city": "paris"}
    assert isinstance(call["function"]["arguments"], str)  # the client's message is left alone


def test_the_schema_of_a_required_call() -> None:
    tools = [{"type": "function", "function": {"name": name}} for name in ("a", "b")]
    assert call_schema(tools[:1])["properties"]["name"] == {"const": "a"}
    assert [option["properties"]["name"]["const"] for option in call_schema(tools)["anyOf"]] == ["a", "b"]


@pytest.mark.parametrize(
    ("written", "content", "names"),
    [
        (f"<tool_call>{CALL}</tool_call> The weather is", "The weather is", ["weather"]),  # a result that it made up
        (f"<|python_tag|>{LLAMA}; {LLAMA}", "", ["weather", "weather"]),
        (f"{CALL} and so on", "and so on", ["weather"]),
        (f"Let me see. [TOOL_CALLS] [{CALL}]", "Let me see.", ["weather"]),
        ('<tool_call>{"name": "now"}</tool_call>', "", ["now"]),
        ('{"name": "now"}', '{"name": "now"}', []),  # without a mark this may be any answer in JSON
        (f"<tool_call>{CALL}</tool_call><tool_call>?</tool_call>", None, []),
    ],
)
def test_nothing_around_a_call_is_lost(written: str, content: str | None, names: list[str]) -> None:
    turn = read_turn(written)
    assert [call["function"]["name"] for call in turn.get("tool_calls", [])] == names
    assert turn["content"] == (written if content is None else content)
