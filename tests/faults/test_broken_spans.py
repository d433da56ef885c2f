"""Every kind of broken tags and spans is reported with its file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunesmith.data.prepare import check, prepare
from tunesmith.data.problems import Problem
from tunesmith.data.spans import spans_of
from tunesmith.recipe import Recipe
from tunesmith.recipe_file import parse

GOOD = [
    {"text": f"In {city} number {n * 7919} it rained", "spans": [[3, 3 + len(city), "city"]]}
    for n, city in enumerate(["Paris", "Rome", "Madrid"] * 10)
]
TAGGED = [
    {"tokens": ["In", city, f"number{n * 7919}"], "tags": ["O", "B-city", "O"]}
    for n, city in enumerate(["Paris", "Rome", "Madrid"] * 10)
]


def recipe(path: Path, **data: Any) -> Recipe:
    return parse({"task": "token-classification", "model": "none", "data": {"train": str(path), **data}})


def only_problem(path: Path, code: str, **data: Any) -> Problem:
    alike = ("near-duplicate", "near-leakage", "large-cluster", "few-rows")  # the good rows are alike and few
    found = [problem for problem in check(recipe(path, **data)).problems if problem.code not in alike]
    assert [problem.code for problem in found] == [code], found
    return found[0]


def with_line_17(path: Path, good: list[dict[str, Any]], bad: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in [*good[:16], bad, *good[16:]]), encoding="utf-8")
    return path


SPANS = {
    "outside": ([[3, 80, "city"]], "span-outside", "3 to 80", "error"),
    "negative": ([[-4, 3, "city"]], "span-outside", "-4 to 3", "error"),
    "empty": ([[3, 3, "city"]], "span-outside", "empty", "error"),
    "white space": ([[2, 3, "city"]], "span-outside", "white space", "error"),
    "overlap": ([[0, 7, "city"], [3, 7, "place"]], "span-overlap", "'In Rome' (city) and 'Rome' (place)", "error"),
    "no label": ([{"start": 3, "end": 7}], "span-shape", "label", "error"),
    "no end": ([{"start": 3, "label": "city"}], "span-shape", "the end", "error"),
    "text as start": ([["3", 7, "city"]], "span-shape", "whole number", "error"),
    "two numbers": ([[3, 7]], "span-shape", "start, end and label", "error"),
    "no list": (5, "wrong-type", "list", "error"),
    "bad json": ("[[3, 7", "wrong-type", "JSON", "error"),
    "twice": ([[3, 7, "city"], [3, 7, "city"]], "span-repeat", "twice", "warning"),
    "space at an end": ([[2, 8, "city"]], "span-space", "white space", "warning"),
    "inside a word": ([[3, 6, "city"]], "span-edge", "'Rom'", "warning"),
}


@pytest.mark.parametrize("case", SPANS)
def test_broken_spans_are_named(tmp_path: Path, case: str) -> None:
    spans, code, message, severity = SPANS[case]
    path = with_line_17(tmp_path / "spans.jsonl", GOOD, {"text": "In Rome it was fine weather", "spans": spans})
    problem = only_problem(path, code)
    assert (problem.severity, problem.count) == (severity, 1)
    assert [str(place) for place in problem.where] == [f"{path}:17"]
    assert message in problem.message and problem.fix


TAGS: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "counts": ({"tokens": ["In", "Rome"], "tags": ["O"]}, "tag-count", "2 tokens, 1 tags", "error"),
    "unknown tag": ({"tokens": ["In", "Rome"], "tags": ["O", "CITY"]}, "unknown-tag", "'CITY'", "error"),
    "numbers": ({"tokens": ["In", "Rome"], "tags": [0, 1]}, "unnamed-tags", "without names", "error"),
    "no tokens": ({"tokens": [], "tags": []}, "empty-sentence", "no token", "error"),
    "empty token": ({"tokens": ["In", ""], "tags": ["O", "O"]}, "empty-token", "empty", "error"),
    "number as token": ({"tokens": ["In", 7], "tags": ["O", "O"]}, "wrong-type", "texts", "error"),
    "null tags": ({"tokens": ["In", "Rome"], "tags": None}, "missing-field", "`tags`", "error"),
    "I after O": ({"tokens": ["In", "Rome"], "tags": ["O", "I-city"]}, "tag-order", "I-", "warning"),
}


@pytest.mark.parametrize("case", TAGS)
def test_broken_tags_are_named(tmp_path: Path, case: str) -> None:
    row, code, message, severity = TAGS[case]
    path = with_line_17(tmp_path / "tags.jsonl", TAGGED, row)
    problem = only_problem(path, code)
    assert (problem.severity, problem.count) == (severity, 1)
    assert [str(place) for place in problem.where] == [f"{path}:17"]
    assert message in problem.message and problem.fix


def test_i_after_o_is_repaired(tmp_path: Path) -> None:
    row = {"tokens": ["In", "New", "York"], "tags": ["O", "I-city", "I-city"]}
    path = with_line_17(tmp_path / "tags.jsonl", TAGGED, row)
    prepared = prepare(recipe(path, validation=0, test=0))
    assert [span.text for span in spans_of(prepared.train[16])] == ["New York"]


def test_a_number_without_a_name(tmp_path: Path) -> None:
    path = with_line_17(tmp_path / "tags.jsonl", TAGGED, {"tokens": ["In", "Rome"], "tags": [0, 5]})
    problem = only_problem(path, "unnamed-tags", label_names=["O", "B-city"])
    assert "tag 5" in problem.message


def conll(*sentences: str) -> str:
    return "".join("\n".join(line.replace(" ", "\t") for line in s.split("|")) + "\n\n" for s in sentences)


@pytest.mark.parametrize("line", ["Rome", "Rome x y B-city"])
def test_a_conll_line_with_other_columns_is_named_and_its_sentence_left_out(tmp_path: Path, line: str) -> None:
    good = [f"In O|Paris B-city|number{n} O" for n in range(30)]
    path = tmp_path / "a.conll"
    path.write_text(conll(*good[:4], f"In O|{line}|today O", *good[4:]), encoding="utf-8")
    problem = only_problem(path, "field-count")
    assert [str(place) for place in problem.where] == [f"{path}:18"]
    kept = prepare(recipe(path, drop_bad=True, validation=0, test=0), dropped_to=tmp_path / "dropped.jsonl")
    assert len(kept.train) == 30 and not any("today" in row.fields["tokens"] for row in kept.train)
    assert json.loads((tmp_path / "dropped.jsonl").read_text(encoding="utf-8"))["line"] == 18


def test_bytes_that_do_not_decode_take_their_sentence_with_them(tmp_path: Path) -> None:
    path = tmp_path / "a.conll"
    good = conll(*(f"In O|Paris B-city|number{n} O" for n in range(30))).encode()
    path.write_bytes(b"In\tO\nM\xfcnchen\tB-city\n\n" + good)
    found = [problem for problem in check(recipe(path)).errors]
    assert [str(problem.where[0]) for problem in found] == [f"{path}:2"]
    kept = prepare(recipe(path, drop_bad=True, validation=0, test=0))
    assert len(kept.train) == 30


def test_labels_of_the_test_data_that_are_never_learned(tmp_path: Path) -> None:
    train, test = tmp_path / "train.conll", tmp_path / "test.conll"
    train.write_text(conll(*(f"In O|Paris B-city|number{n} O" for n in range(30))), encoding="utf-8")
    test.write_text(conll(*(f"Then O|Rome B-town|score{n} O" for n in range(60))), encoding="utf-8")
    problem = only_problem(train, "unseen-label", validation=0, test=str(test))
    assert problem.severity == "warning" and "'town'" in problem.message and problem.count == 60
    assert [str(place) for place in problem.where] == [f"{test}:1"]
    report = check(recipe(train, validation=0, test=str(test)))
    assert report.classes == {"train": {"city": 30}, "test": {"town": 60}}


def test_data_without_any_span_teach_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.conll"
    path.write_text(conll(*(f"In O|Paris O|number{n} O" for n in range(30))), encoding="utf-8")
    assert only_problem(path, "no-labels").severity == "error"
