"""What a provider would refuse is found before it is sent, with file and line; other shapes are rewritten."""

from __future__ import annotations

import codecs
import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from conftest import labelled_rows, write_jsonl
from tunesmith import recipe_file
from tunesmith.errors import RecipeError
from tunesmith.hosted import check, formats, grading, table
from tunesmith.hosted.rules import grader_variables

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def turn(role: str, content: Any = "text", **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def good(number: int) -> dict[str, Any]:
    return {"messages": [turn("user", f"question number {number} " * 4), turn("assistant", f"answer {number}")]}


def call(arguments: Any = '{"city": "Rome"}', **more: Any) -> dict[str, Any]:
    return {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": arguments}, **more}


def called(*calls: dict[str, Any], result: str | None = "call_1") -> dict[str, Any]:
    answer = turn("tool", "sunny", **({"tool_call_id": result} if result else {}))
    turns = [turn("user"), {"role": "assistant", "tool_calls": list(calls)}, answer, turn("assistant", "sunny")]
    return {"messages": turns, "tools": [TOOL]}


def picture(role: str = "user", url: str = "https://example.org/a.png") -> dict[str, Any]:
    parts = [{"type": "text", "text": "what is this?"}, {"type": "image_url", "image_url": {"url": url}}]
    turns = [turn("user", "hello"), turn("assistant", "hello"), turn(role, parts), turn("assistant", "a cat")]
    return {"messages": turns}


def checked(
    folder: Path, rows: list[dict[str, Any]], *, bom: bool = False, task: str = "chat", **more: Any
) -> check.Checked:
    path = write_jsonl(folder / "train.jsonl", rows)
    if bom:
        path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
    data = {"train": [str(path)], "validation": 0.0, "test": 0.0}
    tree = recipe_file.merged({"task": task, "model": "gpt-4.1-mini", "method": "hosted", "data": data}, more)
    return check.check(recipe_file.parse(tree).resolved(), table.load(), today=date(2026, 11, 27))


@pytest.mark.parametrize(
    ("bad", "code", "severity"),
    [
        ({"messages": [turn("wizard"), turn("assistant")]}, "unknown-role", "error"),
        ({"messages": [turn("user"), turn("assistant"), turn("user")]}, "last-role", "error"),
        ({"messages": [turn("user"), turn("assistant", weight=0)]}, "all-weights-zero", "error"),
        ({"messages": [turn("user", weight=1), turn("assistant")]}, "weight-role", "error"),
        ({"messages": [turn("user"), turn("assistant", weight=0.5)]}, "bad-weight", "error"),
        ({"messages": [turn("user"), {"role": "assistant"}]}, "messages-shape", "error"),
        ({"messages": [turn("user", name="no spaces"), turn("assistant")]}, "bad-name", "error"),
        ({"messages": [turn("user", mood="good"), turn("assistant")]}, "extra-key", "warning"),
        ({**good(99), "topic": "x"}, "extra-key", "warning"),
        ({"messages": []}, "messages-shape", "error"),
        (called(call("{no json")), "tool-arguments", "error"),
        (called(call('{"town": "Rome"}')), "arguments-schema", "error"),
        (called(call({"city": "Rome"})), "arguments-form", "warning"),
        (called(call(id=None)), "no-call-id", "warning"),
        (called(call(), call()), "double-call-id", "error"),
        (called(call(), result="call_2"), "result-without-call", "error"),
        (called(call(), result=None), "no-call-id", "warning"),
        ({**called(call()), "tools": [{"type": "function", "function": {"name": "a"}}]}, "unknown-tool", "error"),
        ({**called(call()), "tools": [TOOL, TOOL]}, "double-tool", "error"),
        ({**good(99), "tools": [{"type": "function", "function": {"name": "a b"}}]}, "bad-name", "error"),
        (
            {**good(99), "tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "no"}}}]},
            "tool-schema",
            "error",
        ),
        ({**good(99), "parallel_tool_calls": "yes"}, "parallel-tool-calls", "error"),
        ({key: value for key, value in called(call()).items() if key != "tools"}, "no-tools", "warning"),
        (picture(), "image-content", "error"),
        ({"messages": [*good(3)["messages"][:1], turn("assistant", "another answer")]}, "contradiction", "warning"),
        (good(4), "duplicate", "warning"),
    ],
)
def test_each_fault_has_its_line(tmp_path: Path, bad: dict[str, Any], code: str, severity: str) -> None:
    found = checked(tmp_path, [*(good(n) for n in range(12)), bad])
    problems = {problem.code: problem for problem in found.report.problems}
    assert problems[code].severity == severity, problems
    assert str(problems[code].where[0]) == f"{tmp_path / 'train.jsonl'}:13"
    assert (code in [problem.code for problem in found.report.errors]) is (severity == "error")
    assert len(found.report.errors) <= 2  # the same fault is not told in many words
    assert found.size.rows == (12 if severity == "error" else 13)


def test_what_is_right_has_no_problem(tmp_path: Path) -> None:
    rows = [good(n) for n in range(10)]
    rows += [called(call()), {"messages": [turn("developer"), turn("user"), turn("assistant")]}]
    found = checked(tmp_path, rows)
    assert not found.report.errors and found.method == "supervised"
    assert {problem.code for problem in found.report.problems} <= {"few-rows", "near-duplicate", "small-train"}


@pytest.mark.parametrize(
    ("rows", "more", "code"),
    [
        ([good(n) for n in range(7)], {}, "too-few-rows"),
        ([good(n) for n in range(12)], {"hosted": {"suffix": "s" * 65}}, "suffix-too-long"),
        ([good(n) for n in range(12)], {"model": "gpt-6-luna"}, "method-not-there"),
        ([good(n) for n in range(12)], {"model": "o4-mini"}, "method-not-there"),  # by reinforcement alone
    ],
)
def test_the_providers_limits(tmp_path: Path, rows: list[dict[str, Any]], more: dict[str, Any], code: str) -> None:
    assert code in [problem.code for problem in checked(tmp_path, rows, **more).report.errors]


def test_rows_beyond_the_limit_are_named_and_counted_as_cut(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("providers: {openai: {limits: {row_tokens: 60, file_bytes: 100}}}\n")
    rows = [good(n) for n in range(12)]
    rows[4]["messages"][0]["content"] = "word " * 100
    path = write_jsonl(tmp_path / "train.jsonl", rows)
    data = {"train": [str(path)], "validation": 0.0, "test": 0.0}
    tree = {"task": "chat", "model": "gpt-4.1-mini", "method": "hosted", "data": data}
    found = check.check(recipe_file.parse(tree).resolved(), table.load(own))
    problems = {problem.code: problem for problem in found.report.problems}
    assert str(problems["row-too-long"].where[0]).endswith("train.jsonl:5")
    assert problems["file-too-large"].severity == "error"
    assert found.size.tokens <= 60 * 12


def test_preferences_are_checked_as_pairs(tmp_path: Path) -> None:
    def pair(n: int, **more: Any) -> dict[str, Any]:
        made = {
            "input": {"messages": [turn("user", f"question {n} of many " * 3)]},
            "preferred_output": [turn("assistant", f"good {n}")],
            "non_preferred_output": [turn("assistant", f"bad {n}")],
        }
        return {**made, **more}

    rows = [pair(n) for n in range(12)]
    rows += [
        pair(12, non_preferred_output=[turn("assistant", "good 12")]),
        pair(13, preferred_output=[turn("user", "good")]),
        pair(14, input={"messages": [turn("user"), turn("assistant")]}),
    ]
    found = checked(tmp_path, rows, task="preference")
    places = {problem.code: str(problem.where[0]).rpartition(":")[2] for problem in found.report.errors}
    assert places == {"identical-answers": "13", "last-role": "14", "output-role": "14", "input-role": "15"}
    assert found.method == "dpo" and found.size.rows == 12
    healed = checked(
        tmp_path,
        [*rows[:12], pair(15, input="why?", preferred_output="good", non_preferred_output="bad")],
        task="preference",
    )
    warned = {p.code: str(p.where[0]).rpartition(":")[2] for p in healed.report.problems if p.where}
    assert not healed.report.errors and warned["input-shape"] == warned["output-shape"] == "13"
    line = {
        "input": {"messages": [turn("user", "why?")]},
        "preferred_output": [turn("assistant", "good")],
        "non_preferred_output": [turn("assistant", "bad")],
    }
    made = list(healed.lines(recipe_of(tmp_path, "gpt-4.1-mini", task="preference"), healed.data.train))
    assert line in made
    assert (
        formats.tidy({"input": "why?", "preferred_output": "good", "non_preferred_output": "bad"}, healed.provider)
        == line
    )
    asking = {"messages": [turn("user", "sunny?")], "tools": [TOOL]}
    wrong = pair(16, input=asking, preferred_output=[{"role": "assistant", "tool_calls": [call('{"town": 1}')]}])
    found = checked(tmp_path, [*rows[:12], wrong], task="preference")
    assert "message 1 of `preferred_output` calls 'weather'" in found.report.errors[0].message
    nebius = checked(tmp_path, rows[:12], task="preference", model="x", hosted={"provider": "nebius"})
    assert [problem.code for problem in nebius.report.errors] == ["method-not-there"]


def check_of(given: str = "{{sample.output_text}}", wanted: str = "x", **more: Any) -> dict[str, Any]:
    return {"type": "string_check", "input": given, "reference": wanted, "operation": "eq"} | more


@pytest.mark.parametrize(
    ("grader", "what", "fix"),
    [
        (check_of(type="string_chek"), "`type` is 'string_chek'", "did you mean `string_check`?"),
        ([], "is no object", "type"),
        (check_of(operation="equals"), "`operation` is 'equals'", "eq, ne"),
        (check_of(wanted=None), "`reference` is missing", "item.FIELD"),  # type: ignore[arg-type]
        (check_of("{{row.x}}"), "`input` names `{{row...}}`", "`item.`"),
        ({**check_of(type="text_similarity"), "evaluation_metric": "rouge"}, "`evaluation_metric` is 'rouge'", "rouge"),
        ({"type": "python", "source": "def grade(sample, item)\n  return 1"}, "no Python: .* line 1", "mend"),
        ({"type": "python", "source": "grade = 1"}, "no function `grade`", "def grade"),
        ({"type": "score_model", "model": "m", "input": "x"}, "`input` is no list", "role"),
        ({"type": "multi", "graders": {"a": check_of()}, "calculate_output": "a + b"}, "_output` is 'b'", "known: a"),
        (
            {"type": "multi", "graders": {"a": check_of(operation="x")}, "calculate_output": "a"},
            "graders.a.operation",
            "eq",
        ),
    ],
)
def test_a_wrong_grader_is_told_before_any_row_is_read(tmp_path: Path, grader: Any, what: str, fix: str) -> None:
    with pytest.raises(RecipeError, match=what) as caught:
        grading.refuse_wrong(grader, "grader.json")
    assert caught.value.where == "grader.json" and fix in str(caught.value.fix)
    if isinstance(grader, dict):
        with pytest.raises(RecipeError, match=what) as caught:
            checked(tmp_path, [], task="prompts", hosted={"grader": grader})
        assert caught.value.where == "hosted.grader"


@pytest.mark.parametrize(
    "grader",
    [
        check_of(),
        {**check_of(type="text_similarity"), "evaluation_metric": "cosine"},  # not here, but there
        {"type": "python", "source": "def grade(sample, item):\n    return 1.0"},
        {"type": "score_model", "model": "gpt-4.1", "input": [{"role": "user", "content": "{{item.x}}"}]},
        {"type": "multi", "graders": {"a": check_of()}, "calculate_output": "sqrt(a)"},
    ],
)
def test_a_grader_that_only_the_provider_can_run_is_right(grader: dict[str, Any]) -> None:
    assert list(grading.problems(grader)) == []


def test_a_grader_reads_only_what_rows_have(tmp_path: Path) -> None:
    grader = {
        "type": "multi",
        "graders": {
            "a": check_of("{{sample.output_text}}", "{{ item.answer.text }}"),
            "b": check_of("{{item.unit}}", "m"),
        },
        "calculate_output": "a + b",
    }
    assert grader_variables(grader) == {"answer.text", "unit"}
    rows = [
        {"messages": [turn("user", f"question {n} to be graded")], "answer": {"text": "x"}, "unit": "m"}
        for n in range(12)
    ]
    rows[3] = {"messages": [turn("user", "question 3")], "answer": {}, "unit": "m"}
    rows[5]["messages"].append(turn("assistant", "x"))
    found = checked(tmp_path, rows, task="prompts", model="o4-mini", hosted={"grader": grader})
    lines = {problem.code: str(problem.where[0]).rpartition(":")[2] for problem in found.report.errors}
    assert lines == {"grader-variable": "4", "last-role": "6"}
    first = next(found.lines(recipe_of(tmp_path, "o4-mini", grader), found.data.train))
    assert first == rows[0]  # the fields that the grader reads are sent, and no made-up answer


def recipe_of(folder: Path, model: str, grader: dict[str, Any] | None = None, task: str = "chat") -> Any:
    tree: dict[str, Any] = {
        "task": "prompts" if grader else task,
        "model": model,
        "method": "hosted",
        "data": {"train": [str(folder / "train.jsonl")], "validation": 0.0, "test": 0.0},
    }
    return recipe_file.parse(tree | ({"hosted": {"grader": grader}} if grader else {})).resolved()


def test_pictures_for_a_model_that_reads_them(tmp_path: Path) -> None:
    rows = [good(n) for n in range(10)] + [picture(), picture(role="system"), picture(url="cat.bmp")]
    found = checked(tmp_path, rows, model="gpt-4o")
    lines = {problem.code: str(problem.where[0]).rpartition(":")[2] for problem in found.report.errors}
    assert lines == {"image-turn": "12", "wrong-order": "12", "image-form": "13"}
    sent = list(found.lines(recipe_of(tmp_path, "gpt-4o"), found.data.train))
    assert sent[-1] == picture() and found.size.with_pictures == 1


def test_a_byte_order_mark_is_azures_wish_and_nobody_elses(tmp_path: Path) -> None:
    rows = [good(n) for n in range(12)]
    for provider, complained in (("openai", True), ("azure", False)):
        found = checked(tmp_path, rows, bom=True, hosted={"provider": provider})
        assert ("byte-order-mark" in [p.code for p in found.report.problems]) is complained
        out = tmp_path / f"{provider}.jsonl"
        formats.write(out, found.lines(recipe_of(tmp_path, "gpt-4.1-mini"), found.data.train), found.provider)
        assert out.read_bytes().startswith(codecs.BOM_UTF8) is not complained


def test_every_shape_becomes_the_providers(tmp_path: Path) -> None:
    sharegpt = {"conversations": [{"from": "human", "value": "hi there"}, {"from": "gpt", "value": "hello"}]}
    alpaca = {"instruction": "add", "input": "1 and 2", "output": "3"}
    for rows, first in (
        ([sharegpt] * 10, [turn("user", "hi there"), turn("assistant", "hello")]),
        ([alpaca] * 10, [turn("user", "add\n\n1 and 2"), turn("assistant", "3")]),
        ([{"prompt": "two", "completion": "2"}] * 10, [turn("user", "two"), turn("assistant", "2")]),
    ):
        found = checked(tmp_path, rows)
        (told,) = [problem for problem in found.report.problems if problem.code == "other-shape"]
        assert (told.severity, told.count, str(told.where[0])) == ("warning", 10, f"{tmp_path / 'train.jsonl'}:1")
        assert next(found.lines(recipe_of(tmp_path, "gpt-4.1-mini"), found.data.train)) == {"messages": first}
    found = checked(tmp_path, labelled_rows(20), task="text-classification")
    tree = recipe_of(tmp_path, "gpt-4.1-mini").model_copy(update={"task": "text-classification"})
    line = next(found.lines(tree, found.data.train))
    assert line["messages"][-1] == turn("assistant", "positive")
    assert "negative, positive" in line["messages"][0]["content"]


def test_tidied_rows_have_what_providers_insist_on() -> None:
    known = table.load()
    row = called(call({"city": "Rome"}, id=None), result=None)
    row["messages"][0] = turn("developer", mood="good")
    tidied = formats.tidy(row, known.provider("mistral"))
    assert tidied["messages"][0] == turn("system")
    made = tidied["messages"][1]["tool_calls"][0]
    assert made["id"] == tidied["messages"][2]["tool_call_id"] and json.loads(made["function"]["arguments"])
    assert formats.tidy(row, known.provider("openai"))["messages"][0] == turn("developer")
