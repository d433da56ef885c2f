"""Problems of many rows say what holds for all of them, and whose a detail is that differs."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from conftest import write_jsonl
from tunesmith import words
from tunesmith.data import common_words
from tunesmith.data.prepare import check
from tunesmith.data.problems import Fault, Findings, Problem
from tunesmith.data.rows import Origin
from tunesmith.recipe_file import parse


def grouped(*messages: str, fixes: list[str] | None = None) -> Problem:
    findings = Findings(drop_bad=False)
    for line, message in enumerate(messages, 1):
        fix = fixes[line - 1] if fixes else None
        findings.add(Fault("some-code", message, Origin("a.jsonl", line), fix=fix))
    [problem] = findings.problems()
    assert problem.count == len(messages)
    return problem


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        (["`label` is 7, where a thumb is due"] * 2, "`label` is 7, where a thumb is due"),
        (
            [f"`label` is {value}, where a thumb is due" for value in ("7", "'so so'", "['a', 1]", "9")],
            "`label` is …, where a thumb is due (first: 7)",
        ),
        (
            ["call 1 of message 2 has the bad role 'x'", "call 3 of message 14 has the bad role 'x'"],
            "call … of message … has the bad role 'x' (first: 1, 2)",
        ),
        (["(5 instead of 3)", "(2 instead of 3)"], "(… instead of 3) (first: 5)"),
        (["one thing", "quite another", "a third"], "one thing (and others, which differ)"),
        (["the same … for all", "the same … for all"], "the same … for all"),
        (["it holds " + "1, " * 2_000, "it holds " + "2, " * 2_000], "it holds … (first: " + "1, " * 1_999 + "1,)"),
    ],
)
def test_a_detail_that_differs_is_told_as_that_of_the_first_row(messages: list[str], told: str) -> None:
    assert grouped(*messages).message == told


def test_a_pattern_of_many_gaps_is_compared_at_once() -> None:
    """As an expression it would try all places of each word against those of all others."""
    pattern = "row " + common_words.GAP.join(["and"] * 14) + " end"
    began = time.perf_counter()
    told = common_words.common(pattern, "row " + "and, " * 200 + "stop")
    assert time.perf_counter() - began < 5
    assert told.startswith("row and") and not told.endswith("end")
    assert common_words.common(pattern, "row " + "and, " * 200 + "and end") == pattern


def test_remedies_that_differ_do_not_advise_all_rows_as_the_first() -> None:
    fixes = ["did you mean `content` by `contents`?", "did you mean `content` by `contet`?"]
    assert grouped("no content", "no content", fixes=fixes).fix == "did you mean `content` by …? (first: `contents`)"


def test_the_check_of_a_file_names_values_and_positions_as_those_of_the_first_row(tmp_path: Path) -> None:
    content = [{"prompt": f"ask {n}", "completion": "say", "label": True} for n in range(30)]
    content[3]["label"], content[8]["label"] = "perhaps", 17
    path = write_jsonl(tmp_path / "a.jsonl", content)
    lines = path.read_text().splitlines()
    lines[11], lines[15] = '{"prompt": "a" "b"}', '{"prompt": "longer" "b"}'
    path.write_text("\n".join(lines))
    report = check(parse({"task": "feedback", "model": "none", "data": {"train": str(path)}}))
    assert {problem.code: problem.message for problem in report.errors} == {
        "wrong-type": "`label` is …, where true or false (liked or not) is wanted (first: 'perhaps')",
        "bad-json": "not valid JSON: Expecting ',' delimiter at column … (first: 16)",
    }


def test_one_row_is_counted_in_the_singular() -> None:
    assert words.not_used(1) == "1 row is not used" and words.not_used(1200) == "1,200 rows are not used"
