"""Every kind of broken data is reported with its kind, its line and its number, and never silently dropped."""

from __future__ import annotations

import codecs
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from tunesmith.data.prepare import check, prepare
from tunesmith.data.problems import CheckReport, Problem
from tunesmith.errors import DataError
from tunesmith.recipe import Recipe
from tunesmith.recipe_file import parse

SUBJECTS = ("boats", "trains", "gardens", "letters", "rivers", "clocks", "painters", "winters", "markets", "bridges")
GOOD = [
    {"text": f"{subject} number {n * 7919} {verb}", "label": label}
    for n, subject in enumerate(SUBJECTS * 3)
    for verb, label in (("delighted everybody we met", "good"), ("ruined our whole holiday", "bad"))
]


def lines_of(rows: list[dict[str, Any]]) -> list[str]:
    return [json.dumps(row) for row in rows]


def write(path: Path, lines: list[str] | bytes) -> Path:
    path.write_bytes(lines if isinstance(lines, bytes) else "".join(f"{line}\n" for line in lines).encode())
    return path


def recipe(train: Path | list[str], task: str = "text-classification", **data: Any) -> Recipe:
    files = train if isinstance(train, list) else [str(train)]
    return parse({"task": task, "model": "none", "data": {"train": files, **data}})


def problem(report: CheckReport, code: str) -> Problem:
    found = [p for p in report.problems if p.code == code]
    assert len(found) == 1, f"wanted one {code}, found {[(p.code, p.message) for p in report.problems]}"
    return found[0]


def places(found: Problem) -> list[int]:
    return [origin.line for origin in found.where]


# --- broken lines: (what stands in line 17, code, part of the message) -------------------------------------------

BROKEN_JSON_LINES = {
    "cut off": ('{"text": "half a li', "bad-json", "Unterminated string"),
    "no comma": ('{"text": "a" "label": "b"}', "bad-json", "delimiter"),
    "key twice": ('{"text": "a", "text": "b", "label": "good"}', "bad-json", "'text' occurs twice"),
    "not a number": ('{"text": NaN, "label": "good"}', "bad-json", "NaN"),
    "too deep": ("[" * 100_000, "bad-json", ""),
    "a list": ('["a", "good"]', "not-an-object", "a list"),
    "a text": ('"just text"', "not-an-object", "a text"),
    "no text": ('{"label": "good"}', "missing-field", "`text`"),
    "null label": ('{"text": "a fine day", "label": null}', "missing-field", "`label`"),
    "empty text": ('{"text": "", "label": "good"}', "empty-field", "`text`"),
    "blank text": ('{"text": " \\t ", "label": "good"}', "empty-field", "`text`"),
    "empty label": ('{"text": "a fine day", "label": " "}', "empty-field", "`label`"),
    "number as text": ('{"text": 5, "label": "good"}', "wrong-type", "a number"),
    "list as text": ('{"text": ["a", "b"], "label": "good"}', "wrong-type", "a list"),
    "fraction as label": ('{"text": "a fine day", "label": 0.5}', "wrong-type", "a number"),
    "half a character": ('{"text": "a \\ud800 b", "label": "good"}', "lone-surrogate", "surrogate"),
}


@pytest.mark.parametrize("case", BROKEN_JSON_LINES)
def test_broken_json_line_is_named(tmp_path: Path, case: str) -> None:
    line, code, message = BROKEN_JSON_LINES[case]
    good = lines_of(GOOD)
    path = write(tmp_path / "reviews.jsonl", [*good[:16], line, *good[16:]])
    report = check(recipe(path))
    found = problem(report, code)
    assert (found.severity, found.count, places(found)) == ("error", 1, [17])
    assert found.where[0].file == str(path)
    assert message in found.message
    assert report.rows_read == {"train": len(GOOD) + 1}
    with pytest.raises(DataError) as caught:
        prepare(recipe(path))
    assert caught.value.where == f"{path}:17"


def test_all_problems_are_reported_with_counts_and_first_places(tmp_path: Path) -> None:
    lines = lines_of(GOOD)
    for number in range(2, 40, 3):
        lines[number - 1] = '{"text": "", "label": "good"}'
    lines[9] = "{"
    lines[12] = '{"text": "nice", "label": []}'
    report = check(recipe(write(tmp_path / "a.jsonl", lines)))
    empty = problem(report, "empty-field")
    assert (empty.count, places(empty)) == (13, list(range(2, 32, 3)))
    assert places(problem(report, "bad-json")) == [10]
    assert places(problem(report, "wrong-type")) == [13]
    with pytest.raises(DataError, match=r"13 such rows.*2 other kinds"):
        report.raise_errors()


def test_wrong_bytes_are_named_by_line_offset_and_encoding(tmp_path: Path) -> None:
    good = [line.encode() for line in lines_of(GOOD)]
    bad = '{"text": "très bien – merci", "label": "good"}'.encode("cp1252")
    path = write(tmp_path / "a.jsonl", b"\n".join([*good[:4], bad, *good[4:]]))
    found = problem(check(recipe(path)), "wrong-encoding")
    assert places(found) == [5]
    offset = sum(len(line) + 1 for line in good[:4]) + bad.index(b"\xe8")
    assert f"0xe8 at offset {offset}" in found.message
    assert "data.encoding=cp1252" in str(found.fix)
    assert not check(recipe(path, encoding="cp1252")).errors


def test_utf16_is_recognised_and_read_when_said(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", "".join(f"{line}\n" for line in lines_of(GOOD)).encode("utf-16"))
    found = problem(check(recipe(path)), "wrong-encoding")
    assert places(found) == [1]
    assert found.fix == "data.encoding=utf-16"
    assert check(recipe(path, encoding="utf-16")).rows_read == {"train": len(GOOD)}


def test_unknown_encoding_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="unknown encoding"):
        check(recipe(write(tmp_path / "a.jsonl", lines_of(GOOD)), encoding="utf-9"))


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv"])
def test_byte_order_mark_is_skipped_with_a_warning(tmp_path: Path, suffix: str) -> None:
    rows = GOOD
    text = {
        "jsonl": "\n".join(lines_of(rows)),
        "json": json.dumps(rows),
        "csv": "text,label\n" + "\n".join(f"{row['text']},{row['label']}" for row in rows),
    }[suffix]
    report = check(recipe(write(tmp_path / f"a.{suffix}", codecs.BOM_UTF8 + text.encode())))
    assert problem(report, "byte-order-mark").severity == "warning"
    assert not report.errors
    assert sum(report.rows.values()) == len(rows)


def test_replacement_characters_and_blank_lines_are_warnings(tmp_path: Path) -> None:
    lines = lines_of(GOOD)
    lines[3] = '{"text": "caf\ufffd au lait was cold today", "label": "bad"}'
    lines[5:5] = ["", "  "]
    report = check(recipe(write(tmp_path / "a.jsonl", [*lines, "", ""])))
    assert places(problem(report, "replacement-character")) == [4]
    assert places(problem(report, "blank-line")) == [6, 7]  # those at the end are no matter
    assert not report.errors


def test_broken_gzip_is_an_error_that_dropping_rows_does_not_cure(tmp_path: Path) -> None:
    whole = gzip.compress("\n".join(lines_of(GOOD)).encode())
    path = write(tmp_path / "a.jsonl.gz", whole[: len(whole) // 2])
    for drop_bad in (False, True):
        found = problem(check(recipe(path, drop_bad=drop_bad)), "unreadable")
        assert found.severity == "error"


# --- tables ------------------------------------------------------------------------------------------------------


def table(extra: str, tmp_path: Path, name: str = "a.csv") -> Path:
    rows = "".join(f"{row['text']},{row['label']}\n" for row in GOOD)
    return write(tmp_path / name, ("text,label\n" + '"two\nlines, quoted",good\n' + extra + rows).encode())


def test_line_of_a_table_row_is_its_first_physical_one(tmp_path: Path) -> None:
    path = table(',bad\n"three\n\nlines",\nfine,bad,extra\nalone\n', tmp_path)
    report = check(recipe(path))
    fields = {p.message: places(p) for p in report.errors if p.code == "empty-field"}
    assert fields == {"`text` is empty": [4], "`label` is empty": [5]}
    counts = problem(report, "field-count")
    assert (counts.count, places(counts)) == (2, [8, 9])


def test_stray_quote_is_named_and_reading_goes_on(tmp_path: Path) -> None:
    report = check(recipe(table('"so" they say,bad\n', tmp_path)))
    assert places(problem(report, "bad-csv")) == [4]
    assert report.rows_read == {"train": len(GOOD) + 2}


def test_quote_that_is_never_closed_names_its_line(tmp_path: Path) -> None:
    found = problem(check(recipe(table('"so it begins,bad\n', tmp_path), drop_bad=True)), "bad-csv")
    assert places(found) == [4]
    assert "never closed" in found.message
    assert f"{len(GOOD)} lines" in found.message
    assert found.severity == "error"  # nobody knows what it swallowed


def test_wrong_bytes_inside_a_quoted_field(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b'text,label\nfine,good\n"first\nna\xefve",bad\nworse,bad\n')
    report = check(recipe(path))
    assert places(problem(report, "wrong-encoding")) == [4]
    assert report.rows_read == {"train": 3}


@pytest.mark.parametrize("header", ["text,label,text", "t\xefxt,label"])
def test_bad_header_stops_the_file(tmp_path: Path, header: str) -> None:
    report = check(recipe(write(tmp_path / "a.csv", f"{header}\na,b,c\n".encode("latin-1"))))
    assert places(problem(report, "bad-header")) == [1]


def test_columns_that_fit_nothing_are_listed(tmp_path: Path) -> None:
    report = check(recipe(write(tmp_path / "a.csv", ["title;stars", "a;b"])))
    found = problem(report, "columns")
    assert "`title;stars`" in found.message
    assert "semicolons" in str(found.fix)


# --- JSON documents ----------------------------------------------------------------------------------------------


def test_fault_inside_a_json_array_is_named_by_line(tmp_path: Path) -> None:
    rows = lines_of(GOOD)
    rows[20] = '{"text": "no end"'
    path = write(tmp_path / "a.json", ("[\n" + ",\n".join(rows) + "\n]").encode())
    report = check(recipe(path, drop_bad=True))
    found = problem(report, "bad-json")
    assert found.severity == "error"  # the rest of the file is unknown
    assert places(found) == [23]  # where reading stops
    assert "begins on line 22" in found.message
    assert report.rows_read["train"] == 21


def test_row_of_a_json_array_is_named_by_its_first_line(tmp_path: Path) -> None:
    rows = [json.dumps(row, indent=2) for row in [*GOOD[:3], {"text": "", "label": "good"}, *GOOD[3:]]]
    path = write(tmp_path / "a.json", ('{"version": 1,\n"data": [\n' + ",\n".join(rows) + "\n]}").encode())
    report = check(recipe(path))
    assert places(problem(report, "empty-field")) == [3 + 3 * 4]
    assert "'version'" in problem(report, "ignored-keys").message


@pytest.mark.parametrize("text", ['{"a": 1}', "[1, 2", '"text"', "[{}] []", "{,}"])
def test_other_json_documents_are_errors(tmp_path: Path, text: str) -> None:
    report = check(recipe(write(tmp_path / "a.json", text.encode())))
    assert any(p.code == "bad-json" for p in report.errors)


# --- conversations -----------------------------------------------------------------------------------------------

BROKEN_TURNS: dict[str, tuple[Any, str]] = {
    "unknown role": ([{"role": "human", "content": "Hi"}, {"role": "assistant", "content": "Ho"}], "unknown-role"),
    "no role": ([{"content": "Hi"}], "messages-shape"),
    "a text": ("Hi", "messages-shape"),
    "no turn": ([], "messages-shape"),
    "question last": ([{"role": "user", "content": "Hi"}], "last-role"),
    "empty question": ([{"role": "user", "content": " "}, {"role": "assistant", "content": "Ho"}], "empty-field"),
}


@pytest.mark.parametrize("case", BROKEN_TURNS)
def test_broken_conversation_is_named(tmp_path: Path, case: str) -> None:
    turns, code = BROKEN_TURNS[case]
    good = [
        {"messages": [{"role": "user", "content": row["text"]}, {"role": "assistant", "content": row["label"]}]}
        for row in GOOD
    ]
    path = write(tmp_path / "a.jsonl", lines_of([*good[:6], {"messages": turns}, *good[6:]]))
    found = problem(check(recipe(path, "chat")), code)
    assert (found.severity, places(found)) == ("error", [7])


@pytest.mark.parametrize(
    ("turns", "code", "fix"),
    [
        ([{"role": "user", "content": "Hi"}], "last-role", "add that turn"),
        ([{"role": "asistant", "content": "Hi"}], "unknown-role", "did you mean `assistant`?"),
        ([{"role": "wizard", "content": "Hi"}], "unknown-role", "one of system, user, assistant, tool"),
    ],
)
def test_a_broken_conversation_has_a_remedy(tmp_path: Path, turns: Any, code: str, fix: str) -> None:
    found = problem(check(recipe(write(tmp_path / "a.jsonl", lines_of([{"messages": turns}])), "chat")), code)
    assert found.fix is not None and fix in found.fix


# --- the set as a whole ------------------------------------------------------------------------------------------


def test_duplicates_contradictions_and_near_duplicates(tmp_path: Path) -> None:
    lines = lines_of(GOOD)
    long = "the committee met on tuesday to discuss the budget of the coming year at great length and with much noise"
    lines += [
        '{"text": "  BOATS number 0 delighted EVERYBODY we met", "label": "good"}',  # as line 1
        '{"text": "boats number 0 delighted everybody we met", "label": "bad"}',  # contradicts line 1
        json.dumps({"text": long, "label": "good"}),
        json.dumps({"text": long.replace("noise", "noises"), "label": "good"}),
    ]
    report = check(recipe(write(tmp_path / "a.jsonl", lines)))
    end = len(GOOD)
    assert places(problem(report, "duplicate")) == [end + 1]
    assert places(problem(report, "contradiction")) == [end + 2]
    assert places(problem(report, "near-duplicate")) == [end + 4]
    assert f"a.jsonl:{end + 3}" in problem(report, "near-duplicate").message
    assert f"a.jsonl:{end + 1} and {tmp_path}/a.jsonl:1)" in problem(report, "duplicate").message
    assert not report.errors


def test_leaks_between_given_parts_are_errors_and_near_ones_warnings(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", lines_of(GOOD))
    other = [{"text": f"quite another thing, namely {n * 31337}", "label": "good"} for n in range(20)]
    near = {"text": GOOD[3]["text"] + "!", "label": "bad"}
    test = write(tmp_path / "test.jsonl", lines_of([*other[:8], GOOD[5], near, *other[8:]]))
    report = check(recipe(train, validation=0.0, test=[str(test)]))
    leak = problem(report, "leakage")
    assert (leak.severity, leak.where[0].file, places(leak)) == ("error", str(test), [9])
    assert "train.jsonl:6" in leak.message
    close = problem(report, "near-leakage")
    assert (close.severity, places(close)) == ("warning", [10])


def test_label_typos(tmp_path: Path) -> None:
    lines = lines_of(GOOD)
    lines[10] = '{"text": "we had to wait for hours", "label": "Good"}'
    lines[20] = '{"text": "nobody came to open up", "label": "baad"}'
    lines[21] = '{"text": "the doorman was asleep", "label": "bad "}'
    report = check(recipe(write(tmp_path / "a.jsonl", lines)))
    typos = {p.message.split("'")[1]: (places(p), p.severity) for p in report.problems if p.code == "label-typo"}
    assert typos == {"Good": ([11], "warning"), "baad": ([21], "warning"), "bad ": ([22], "warning")}


def test_labels_that_training_never_shows(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", lines_of(GOOD))
    rows = [{"text": f"some other thing {n * 31337}", "label": "good"} for n in range(9)]
    test = write(tmp_path / "test.jsonl", lines_of([*rows, {"text": "the strange one here", "label": "odd"}]))
    report = check(recipe(train, test=[str(test)]))
    found = problem(report, "unseen-label")
    assert (found.severity, found.where[0].file, places(found)) == ("error", str(test), [10])
    assert "'odd'" in found.message
    absent = problem(report, "class-absent")
    assert "'bad'" in absent.message and [str(place) for place in absent.where] == [str(test)]


def test_too_few_classes_and_rows(tmp_path: Path) -> None:
    report = check(recipe(write(tmp_path / "a.jsonl", lines_of([row for row in GOOD if row["label"] == "good"]))))
    assert problem(report, "too-few-classes").severity == "error"
    report = check(recipe(write(tmp_path / "b.jsonl", [])))
    assert places(problem(report, "empty-file")) == [1]
    assert [str(place) for place in problem(report, "no-rows").where] == [str(tmp_path / "b.jsonl")]
    report = check(recipe(write(tmp_path / "c.jsonl", lines_of(GOOD[:10]))))
    assert [p.code for p in report.problems if p.code == "few-rows"]
    assert problem(report, "rare-class").count == 2


def test_only_what_is_wrong_with_rows_is_mended_by_leaving_rows_out(tmp_path: Path) -> None:
    one_class = check(recipe(write(tmp_path / "a.jsonl", lines_of([row for row in GOOD if row["label"] == "good"]))))
    assert not any(found.in_rows for found in one_class.errors)
    empty_text = check(recipe(write(tmp_path / "b.jsonl", lines_of([*GOOD, {"text": "", "label": "good"}]))))
    assert problem(empty_text, "empty-field").in_rows


def test_more_shots_than_examples_are_said_by_the_check(tmp_path: Path) -> None:
    """A run refuses them in the same words."""
    path = write(tmp_path / "a.jsonl", lines_of([*GOOD, {"text": "quite another text", "label": "good"}]))
    whole = {"validation": 0, "test": 0}
    found = problem(check(recipe(path, shots=31, **whole)), "too-few-shots")
    assert (found.severity, [str(place) for place in found.where]) == ("error", [str(path)])
    with pytest.raises(DataError) as caught:
        prepare(recipe(path, shots=31, **whole))
    assert caught.value.what == found.message and caught.value.fix == found.fix == (
        "use `data.shots: 30`, or label more examples"
    )
    assert not check(recipe(path, shots=30, **whole)).errors


@pytest.mark.parametrize(("task", "reads"), [("language-modeling", True), ("text-classification", False)])
def test_an_empty_folder_says_what_is_read(tmp_path: Path, task: str, reads: bool) -> None:
    with pytest.raises(DataError) as caught:
        check(recipe(tmp_path, task))
    assert (".pdf" in (caught.value.fix or "")) is reads and "pictures" not in (caught.value.fix or "")
    (tmp_path / "page.html").write_text("<p>text</p>", encoding="utf-8")
    if not reads:
        with pytest.raises(DataError, match="task: language-modeling"):
            check(recipe(tmp_path, task))


def test_one_class_over_nine_tenths_is_a_warning(tmp_path: Path) -> None:
    rows = [{"text": f"thing {n} {n * 7919}", "label": "rare" if n % 20 == 0 else "common"} for n in range(400)]
    report = check(recipe(write(tmp_path / "a.jsonl", lines_of(rows))))
    assert "'common'" in problem(report, "imbalance").message


def test_label_column_full_of_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunesmith.data.labels.MOST_LABELS", 100)
    rows = [{"text": f"thing {n * 7919}", "label": f"text {n}"} for n in range(150)]
    assert problem(check(recipe(write(tmp_path / "a.jsonl", lines_of(rows)))), "too-many-labels").severity == "error"


def test_missing_file_is_named_with_the_likely_one(tmp_path: Path) -> None:
    write(tmp_path / "reviews.jsonl", lines_of(GOOD))
    with pytest.raises(DataError) as caught:
        check(recipe(tmp_path / "review.jsonl"))
    assert "reviews.jsonl" in str(caught.value.fix)


# --- leaving bad rows out ----------------------------------------------------------------------------------------


def test_dropped_rows_are_written_with_reason_and_origin(tmp_path: Path) -> None:
    lines = lines_of(GOOD)
    lines[4] = '{"text": "", "label": "good"}'
    lines[7] = "{oops"
    train = write(tmp_path / "train.jsonl", lines)
    other = [{"text": f"quite another thing, namely {n * 31337}", "label": "good"} for n in range(5)]
    test = write(tmp_path / "test.jsonl", lines_of([*other, GOOD[2], {"text": "so strange", "label": "odd"}]))
    dropped = tmp_path / "dropped.jsonl"
    data = prepare(recipe(train, test=[str(test)], validation=0.0, drop_bad=True), dropped_to=dropped)
    entries = [json.loads(line) for line in dropped.read_text().splitlines()]
    found = {(Path(e["file"]).name, e["line"]): e["reasons"][0].split(":")[0] for e in entries}
    assert found == {
        ("train.jsonl", 5): "empty-field",
        ("train.jsonl", 8): "bad-json",
        ("train.jsonl", 3): "leakage",
        ("test.jsonl", 7): "unseen-label",
    }
    assert next(e["row"] for e in entries if e["line"] == 8) == "{oops"
    assert len(data.train) == len(GOOD) - 3
    assert len(data.test) == 6
    assert not data.report.errors
    assert sum(data.report.rows_left_out.values()) == len(entries)
    assert {p.code for p in data.report.warnings if p.dropped} >= {"empty-field", "bad-json", "unseen-label"}
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(
    ("task", "field", "good", "bad", "code"),
    [
        ("feedback", "label", "true", '["up"]', "wrong-type"),
        ("feedback", "label", "true", '{"up": 1}', "wrong-type"),
        ("text-regression", "score", "2", "9" * 400, "bad-score"),
        ("multi-label-classification", "labels", "[1, 2.0]", "[1e999]", "bad-labels"),
    ],
)
def test_a_value_of_another_kind_is_a_fault_of_its_row(
    tmp_path: Path, task: str, field: str, good: str, bad: str, code: str
) -> None:
    texts = ("prompt", "completion") if task == "feedback" else ("text",)
    lines = [
        "{" + ", ".join([*(f'"{name}": "{name} {n * 7919}"' for name in texts), f'"{field}": {value}']) + "}"
        for n, value in enumerate([*[good] * 16, bad, *[good] * 3])
    ]
    train = write(tmp_path / "train.jsonl", lines)
    found = problem(check(recipe(train, task)), code)
    assert (found.severity, places(found), found.in_rows) == ("error", [17], True) and found.fix
    assert len(prepare(recipe(train, task, validation=0, test=0, drop_bad=True)).train) == 19


def test_nothing_is_left_behind_when_errors_stop_the_run(tmp_path: Path) -> None:
    lines = lines_of(GOOD)
    lines[4] = '{"text": "", "label": "good"}'
    whole = gzip.compress("\n".join(lines).encode())
    path = write(tmp_path / "a.jsonl.gz", whole[:-20])
    with pytest.raises(DataError):
        prepare(recipe(path, drop_bad=True), dropped_to=tmp_path / "dropped.jsonl")
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl.gz"]
