"""Conversations in the shapes that people have become messages with roles; what is wrong with them is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from conftest import write_jsonl
from tiny import Events
from tunesmith.data.conversations import MalformedError, as_messages, as_tools, problems
from tunesmith.data.prepare import prepare
from tunesmith.data.problems import CheckReport
from tunesmith.data.rows import Row
from tunesmith.events import Notice
from tunesmith.recipe_file import parse
from tunesmith.tasks import TASKS

RATE = {"name": "rate", "description": "rate a film", "parameters": {"type": "object", "properties": {}}}
TOOL = {"type": "function", "function": RATE}


def read(path: Path, **data: Any) -> tuple[list[Row], CheckReport, Events]:
    events = Events()
    recipe = parse({"task": "chat", "model": "none", "data": {"train": str(path), "validation": 0, "test": 0, **data}})
    found = prepare(recipe, on_event=events, stop_on_errors=False)
    return list(found.train), found.report, events


def conversation(row: Row) -> list[dict[str, Any]]:
    return TASKS["chat"].conversation(row, None, None)


def asked(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


SHAPES: dict[str, tuple[dict[str, Any], str | None]] = {
    "openai": ({"messages": asked("hi {}", "ho")}, None),
    "content parts": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "hi {}"}]},
                {"role": "assistant", "content": ["ho"]},
            ]
        },
        None,
    ),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "hi {}"}, {"from": "gpt", "value": "ho"}]},
        "ShareGPT's form",
    ),
    "alpaca": ({"instruction": "hi {}", "input": "", "output": "ho"}, "Alpaca's form"),
    "pair": ({"prompt": "hi {}", "completion": "ho"}, None),
    "question": ({"question": "hi {}", "answer": "ho"}, None),
    "pair of lists": ({"prompt": asked("hi {}", "ho")[:1], "completion": asked("", "ho")[1:]}, "lists of messages"),
    "json text": ({"messages": '[{{"role": "user", "content": "hi {}"}}, {{"role": "assistant", "content": "ho"}}]'},
                  "written as JSON text"),
}  # fmt: skip


def filled(value: Any, number: int) -> Any:
    """The value with the number in its texts, so that no two rows are equal."""
    if isinstance(value, str):
        return value.format(number) if "{}" in value else value
    if isinstance(value, list):
        return [filled(item, number) for item in value]
    return {key: filled(item, number) for key, item in value.items()} if isinstance(value, dict) else value


@pytest.mark.parametrize("name", SHAPES)
def test_each_shape_is_read_and_said_aloud(name: str, tmp_path: Path) -> None:
    value, said = SHAPES[name]
    rows, report, events = read(write_jsonl(tmp_path / "a.jsonl", [filled(value, n) for n in range(25)]))
    assert not report.errors and len(rows) == 25
    assert sorted(conversation(row)[0]["content"] for row in rows) == sorted(f"hi {n}" for n in range(25))
    assert all(conversation(row)[1] == {"role": "assistant", "content": "ho"} for row in rows)
    notices = [n for n in events.of(Notice) if "read as messages with roles" in n.message]
    assert [said in n.message for n in notices] == ([True] if said else [])


@pytest.mark.parametrize("odd_at", [0, 20, 120])
@pytest.mark.parametrize(
    ("usual", "odd"),
    [
        ("openai", "sharegpt"),
        ("sharegpt", "openai"),
        ("openai", "alpaca"),
        ("openai", "pair"),
        ("pair", "alpaca"),
        ("alpaca", "pair"),
        ("pair", "openai"),
        ("question", "pair"),
        ("pair", "question"),
    ],
)
def test_each_row_of_a_mixed_file_is_read_by_its_own_shape(usual: str, odd: str, odd_at: int, tmp_path: Path) -> None:
    """The odd row also comes first, and behind the rows from which it is settled how the file is read."""
    count = max(41, odd_at + 10)
    content = [filled(SHAPES[odd if n == odd_at else usual][0], n) for n in range(count)]
    rows, report, _ = read(write_jsonl(tmp_path / "a.jsonl", content))
    assert not report.errors
    assert [conversation(row) for row in rows] == [asked(f"hi {n}", "ho") for n in range(count)]
    [said] = [problem for problem in report.problems if problem.code == "mixed-shapes"]
    assert said.severity == "warning" and [place.line for place in said.where] == [odd_at + 1]
    assert f"{count - 1} rows of the file have `{next(iter(SHAPES[usual][0]))}`" in said.message
    assert len(report.columns) == 2 and "late-column" not in {problem.code for problem in report.problems}


def test_the_rarer_shape_is_counted_and_the_others_are_not_called_by_its_name(tmp_path: Path) -> None:
    content = [filled(SHAPES["sharegpt" if n % 4 == 1 else "openai"][0], n) for n in range(40)]
    rows, report, _ = read(write_jsonl(tmp_path / "a.jsonl", content))
    assert len(rows) == 40
    [said] = [problem for problem in report.problems if problem.code == "mixed-shapes"]
    assert said.count == 10 and [place.line for place in said.where] == list(range(2, 42, 4))
    assert [choice["ignored"] for choice in report.columns] == [[], []]


@pytest.mark.parametrize("pairs", [240, 120, 20])
def test_a_table_whose_unused_columns_hold_nothing_is_read_without_a_warning(pairs: int, tmp_path: Path) -> None:
    """As Parquet has it: each row has all columns, and what only a later row fills is taken there."""
    nothing = {"messages": None, "prompt": None, "completion": None, "system": None}
    content = [nothing | filled(SHAPES["pair" if n < pairs else "openai"][0], n) for n in range(240)]
    content[pairs - 1]["system"] = "be kind"
    rows, report, _ = read(write_jsonl(tmp_path / "a.jsonl", content))
    assert len(rows) == 240 and conversation(rows[pairs - 1])[0] == {"role": "system", "content": "be kind"}
    assert {problem.code for problem in report.problems} <= {"mixed-shapes", "few-rows"}
    chosen = [["prompt", "completion", "system"], ["messages", "system"]]
    assert [list(choice["fields"]) for choice in report.columns] == chosen[: 1 if pairs == 240 else 2]


def test_a_column_that_held_nothing_and_would_change_the_shape_is_named_where_it_is_filled(tmp_path: Path) -> None:
    content = [{"conversation": asked(f"hi {n}", "ho"), "messages": None} for n in range(240)]
    content[150]["messages"] = asked("other", "ho")
    _, report, _ = read(write_jsonl(tmp_path / "a.jsonl", content))
    [said] = [problem for problem in report.problems if problem.code == "late-column"]
    assert said.message.startswith("`messages`: ") and [place.line for place in said.where] == [151]


def test_a_row_of_the_rarer_shape_keeps_what_the_first_of_them_lacks(tmp_path: Path) -> None:
    content = [filled(SHAPES["openai"][0], n) for n in range(40)]
    content[5] = filled(SHAPES["sharegpt"][0], 5)
    content[9] = filled(SHAPES["sharegpt"][0], 9) | {"system": "be kind"}
    rows, report, _ = read(write_jsonl(tmp_path / "a.jsonl", content))
    assert conversation(rows[9])[0] == {"role": "system", "content": "be kind"}
    assert [list(choice["fields"]) for choice in report.columns] == [["messages"], ["messages", "system"]]


def test_only_a_row_that_is_whole_in_no_shape_is_at_fault(tmp_path: Path) -> None:
    content = [filled(SHAPES["openai"][0], n) for n in range(40)]
    content[7], content[9] = {"instruction": "hi", "output": None}, {"remark": "no conversation"}
    rows, report, _ = read(write_jsonl(tmp_path / "a.jsonl", content))
    assert len(rows) == 38
    found = {place.line: problem.message for problem in report.errors for place in problem.where}
    assert found == {8: "`output` is missing", 10: "`messages` is missing"}


def test_alpaca_with_system_and_history(tmp_path: Path) -> None:
    row = {"instruction": "rate", "input": "rome", "output": "great", "system": "be kind", "history": [["hi", "ho"]]}
    [read_row], report, _ = read(write_jsonl(tmp_path / "a.jsonl", [row]))
    assert not report.errors or {p.code for p in report.errors} == {"no-rows"}
    assert conversation(read_row) == [
        {"role": "system", "content": "be kind"},
        *asked("hi", "ho"),
        *asked("rate\n\nrome", "great"),
    ]


def test_a_rows_own_system_message_goes_before_the_recipes() -> None:
    task = TASKS["chat"]
    own = Row({"messages": asked("hi", "ho"), "system": "be kind"}, None)  # type: ignore[arg-type]
    bare = Row({"messages": asked("hi", "ho")}, None)  # type: ignore[arg-type]
    assert task.conversation(own, None, "be brief")[0] == {"role": "system", "content": "be kind"}
    assert task.conversation(bare, None, "be brief")[0] == {"role": "system", "content": "be brief"}


def test_tool_calls_old_and_new_become_one_shape() -> None:
    call = {"type": "function", "function": {"name": "rate", "arguments": {"film": "rome"}}}
    new = as_messages(
        [
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "c1", "type": "function", "function": {"name": "rate", "arguments": '{"film": "rome"}'}}
                ],
            }
        ]
    )
    old = as_messages(
        [
            {
                "role": "assistant",
                "content": None,
                "tool_calls": None,
                "function_call": {"name": "rate", "arguments": '{"film": "rome"}'},
            }
        ]
    )
    share = as_messages([{"from": "function_call", "value": '{"name": "rate", "arguments": {"film": "rome"}}'}])
    assert new == [{"role": "assistant", "content": "", "tool_calls": [{"id": "c1", **call}]}]
    assert old == share == [{"role": "assistant", "content": "", "tool_calls": [call]}]
    assert as_tools([RATE]) == as_tools([TOOL]) == as_tools(json.dumps([TOOL])) == [TOOL]


def test_developer_and_function_are_old_friends_and_other_keys_are_kept() -> None:
    turns = [{"role": "developer", "content": "be kind"}, {"role": "function", "name": "rate", "content": "5"}]
    assert as_messages(turns) == [
        {"role": "system", "content": "be kind"},
        {"role": "tool", "content": "5", "name": "rate"},
    ]
    assert as_messages([{"role": "assistant", "content": "ho", "weight": 0.5}])[0]["weight"] == 0.5


MALFORMED: dict[str, tuple[list[Any], str]] = {
    "image": ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], "image-content"),
    "sound": ([{"role": "user", "content": [{"type": "input_audio"}]}], "content-part"),
    "number": ([{"role": "user", "content": 5}], "messages-shape"),
    "misspelt": ([{"role": "user", "contents": "hi"}], "messages-shape"),
    "narrator": ([{"from": "narrator", "value": "once"}], "unknown-role"),
    "arguments": ([{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{a"}}]}],
                  "tool-arguments"),
    "list of arguments": ([{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}],
                          "tool-arguments"),
    "nameless call": ([{"role": "assistant", "tool_calls": [{"function": {"arguments": "{}"}}]}], "tool-call-shape"),
}  # fmt: skip


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_no_conversation_is_named(name: str, tmp_path: Path) -> None:
    turns, code = MALFORMED[name]
    with pytest.raises(MalformedError) as caught:
        as_messages(turns)
    assert caught.value.code == code
    good = [{"messages": asked(f"hi {n}", "ho")} for n in range(30)]
    _, report, _ = read(write_jsonl(tmp_path / "a.jsonl", [*good[:4], {"messages": turns}, *good[4:]]))
    [problem] = [p for p in report.errors if p.code == code]
    assert [origin.line for origin in problem.where] == [5]


def calls(*ids: str | None, name: str = "rate") -> dict[str, Any]:
    made = [{"type": "function", "function": {"name": name, "arguments": {}}} | ({"id": i} if i else {}) for i in ids]
    return {"role": "assistant", "content": "", "tool_calls": made}


def result(name: str | None = None) -> dict[str, Any]:
    return {"role": "tool", "content": "5"} | ({"tool_call_id": name} if name else {})


USER, ANSWER = asked("hi", "ho")
SYSTEM = {"role": "system", "content": "be kind"}
ORDERS: dict[str, tuple[list[dict[str, Any]], list[str]]] = {
    "a pair": ([USER, ANSWER], []),
    "rounds": ([SYSTEM, USER, ANSWER, USER, ANSWER], []),
    "two questions": ([USER, USER, ANSWER], []),  # some templates take them; those that do not say so
    "a call": ([USER, calls("a"), result("a"), ANSWER], []),
    "two calls": ([USER, calls("a", "b"), result("b"), result("a"), ANSWER], []),
    "a call without names": ([USER, calls(None), result(), ANSWER], []),
    "a call at the end": ([USER, calls("a")], []),
    "a greeting of weight 0": ([{**ANSWER, "weight": 0}, USER, ANSWER], []),
    "a greeting": ([SYSTEM, ANSWER, USER, ANSWER], ["wrong-order"]),
    "two answers": ([USER, ANSWER, ANSWER], ["wrong-order"]),
    "an empty answer": ([USER, {**ANSWER, "content": " "}], ["empty-field"]),
    "a question at the end": ([USER, ANSWER, USER], ["last-role"]),
    "a result out of nowhere": ([USER, result("a"), ANSWER], ["result-without-call"]),
    "a result of another call": ([USER, calls("a"), result("b"), result("a"), ANSWER], ["result-without-call"]),
    "no result": ([USER, calls("a"), USER, ANSWER], ["call-without-result"]),
    "one of two results": ([USER, calls("a", "b"), result("a"), ANSWER], ["call-without-result"]),
    "an unknown tool": ([USER, calls("a", name="rte"), result("a"), ANSWER], ["unknown-tool"]),
}


@pytest.mark.parametrize("name", ORDERS)
def test_the_order_of_turns(name: str) -> None:
    turns, codes = ORDERS[name]
    assert [code for code, _ in problems(turns, [TOOL])] == codes


def test_parallel_calls_where_they_are_forbidden() -> None:
    turns = [USER, calls("a", "b")]
    assert [code for code, _ in problems(turns, [TOOL], parallel=False)] == ["parallel-calls"]


def test_pictures_beside_a_conversation_are_an_error(tmp_path: Path) -> None:
    rows = [{"messages": asked(f"hi {n}", "ho"), "images": ["a.png"] if n == 3 else []} for n in range(30)]
    _, report, _ = read(write_jsonl(tmp_path / "a.jsonl", rows))
    [problem] = report.errors
    assert (problem.code, [o.line for o in problem.where]) == ("image-content", [4])


def test_a_text_with_marks_for_roles_is_not_guessed(tmp_path: Path) -> None:
    rows = [{"text": f"### Human: hi {n} ### Assistant: ho"} for n in range(30)]
    _, report, _ = read(write_jsonl(tmp_path / "a.jsonl", rows))
    assert report.errors[0].code == "columns"


def test_only_the_last_answer_is_learned(tiny_decoder: Path) -> None:
    from tunesmith.data.renderers import row_renderer
    from tunesmith.data.rows import Origin
    from tunesmith.models.load import load_tokenizer

    tokenizer = load_tokenizer(tiny_decoder)
    turns = [*asked("the film", "good"), *asked("the plot", "bad")]

    def learned(loss_on: Any, messages: list[dict[str, Any]]) -> str:
        render = row_renderer(
            tokenizer, TASKS["chat"], form="generate", labels=None, max_length=200, loss_on=loss_on
        )  # fmt: skip
        found = render(Row({"messages": messages}, Origin("a.jsonl", 1)))
        return tokenizer.decode([t for t, w in zip(found.input_ids, found.loss_weights or [], strict=True) if w])

    assert learned("every-answer", turns) == "good<|im_end|>bad<|im_end|>"
    assert learned("last-answer", turns) == "bad<|im_end|>"
    weighted = [turns[0], {**turns[1], "weight": 1}, *turns[2:]]
    assert learned("last-answer", weighted) == "good<|im_end|>bad<|im_end|>"  # its own weight goes before
