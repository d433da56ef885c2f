"""The whole of step 2: rows, labels, fingerprint, report."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tunesmith.data import prepare as preparing
from tunesmith.data import survey
from tunesmith.data.prepare import PreparedData, check, prepare
from tunesmith.data.render import Rendered
from tunesmith.data.row_file import RowFile
from tunesmith.data.rows import Origin, Row
from tunesmith.errors import DataError
from tunesmith.events import Event, Notice
from tunesmith.recipe import Recipe
from tunesmith.recipe_file import parse

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data sets do not lie beside this checkout")


def rows(count: int, labels: int = 2) -> list[dict[str, Any]]:
    generator = random.Random(count)
    return [
        {"text": " ".join("".join(generator.choices("etaoinshrdlu", k=6)) for _ in range(8)), "label": n % labels}
        for n in range(count)
    ]


def write(path: Path, content: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return path


def recipe(train: Path, task: str = "text-classification", **data: Any) -> Recipe:
    return parse({"task": task, "model": "none", "data": {"train": str(train), **data}})


def texts(part: Any) -> list[str]:
    return [row.fields["text"] for row in part]


def test_rows_labels_and_report(tmp_path: Path) -> None:
    content = rows(600, labels=12)
    data = prepare(recipe(write(tmp_path / "a.jsonl", content)))
    assert data.labels == [str(n) for n in range(12)]
    assert sorted(texts(data.train) + texts(data.validation) + texts(data.test)) == sorted(r["text"] for r in content)
    assert data.report.rows == {"train": len(data.train), "validation": len(data.validation), "test": len(data.test)}
    assert data.train[3].origin.line == 1 + [r["text"] for r in content].index(data.train[3].fields["text"])
    for part in (data.train, data.validation, data.test):
        assert {row.fields["label"] for row in part} == set(data.labels)
        assert [row.origin.line for row in part] == sorted(row.origin.line for row in part)
    assert {name: sum(c.values()) for name, c in data.report.classes.items()} == data.report.rows
    json.dumps(data.report.as_dict())


def test_fingerprint_knows_content_order_and_sides(tmp_path: Path) -> None:
    content = rows(100)
    path = tmp_path / "a.jsonl"

    def fingerprint(changed: list[dict[str, Any]], **data: Any) -> str:
        return prepare(recipe(write(path, changed), **data)).fingerprint

    first = fingerprint(content)
    assert fingerprint(content) == first
    assert fingerprint([dict(reversed(row.items())) for row in content]) == first  # order of keys means nothing
    others = [
        fingerprint([*content[:-1], {**content[-1], "label": "1 "}]),
        fingerprint(content[::-1]),
        fingerprint(content[1:]),
        fingerprint(content, seed=1),
        fingerprint(content, max_rows=50),
    ]
    assert len({first, *others}) == 6


def test_large_sets_stay_on_disk_with_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.jsonl", rows(300))
    in_memory = prepare(recipe(path))
    monkeypatch.setattr(preparing, "IN_MEMORY_BYTES", 1000)
    on_disk = prepare(recipe(path), scratch=tmp_path)
    assert isinstance(on_disk.train, RowFile)
    assert isinstance(in_memory.train, list)
    assert on_disk.train == in_memory.train
    assert list(on_disk.test) == list(in_memory.test)
    assert on_disk.fingerprint == in_memory.fingerprint
    assert on_disk.train[-1] == in_memory.train[-1]
    assert list(on_disk.train[5:20:3]) == in_memory.train[5:20:3]
    assert in_memory.train[7] in on_disk.train
    with pytest.raises(IndexError):
        on_disk.train[len(on_disk.train)]
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]  # temporary files have no name


def test_row_file_without_rows() -> None:
    empty = prepare_places(0)
    assert list(empty) == []
    assert empty == []


def prepare_places(count: int) -> RowFile:
    import numpy as np

    from tunesmith.data.row_file import PLACE

    return RowFile(b"", np.empty(count, PLACE), [])


def test_own_validation_and_test_data_are_taken_whole(tmp_path: Path) -> None:
    content = rows(300)
    train, held, test = (write(tmp_path / f"{n}.jsonl", content[n * 100 : n * 100 + 100]) for n in range(3))
    data = prepare(recipe(train, validation=[str(held)], test=str(test)))
    assert data.report.rows == {"train": 100, "validation": 100, "test": 100}
    assert texts(data.test) == [row["text"] for row in content[200:]]
    mixed = prepare(recipe(train, validation=0.2, test=str(test)))
    assert len(mixed.test) == 100
    assert len(mixed.train) + len(mixed.validation) == 100
    assert 15 <= len(mixed.validation) <= 25
    without = prepare(recipe(train, validation=0.0, test=0.0))
    assert without.report.rows == {"train": 100, "validation": 0, "test": 0}


def test_labels_become_text(tmp_path: Path) -> None:
    content = [{**row, "label": [True, 3, 4.0, "x"][n % 4]} for n, row in enumerate(rows(80))]
    assert prepare(recipe(write(tmp_path / "a.jsonl", content))).labels == ["3", "4", "true", "x"]


def test_generation_has_no_labels_and_no_contradictions(tmp_path: Path) -> None:
    content = [{"prompt": row["text"], "completion": f"answer {n}"} for n, row in enumerate(rows(100))]
    content += [{"prompt": content[0]["prompt"], "completion": "another answer"}]
    data = prepare(recipe(write(tmp_path / "a.jsonl", content), "text-generation"))
    assert data.labels is None
    assert data.report.classes == {}
    assert not [p for p in data.report.problems if p.code == "contradiction"]
    together = [
        part for part in (data.train, data.validation, data.test) for row in part if row.origin.line in (1, 101)
    ]
    assert len({id(part) for part in together}) == 1


def test_guesses_warnings_and_rows_left_out_are_said_aloud(tmp_path: Path) -> None:
    content = [{"Review": row["text"], "label": row["label"]} for row in rows(100)]
    heard: list[Event] = []
    prepare(recipe(write(tmp_path / "a.jsonl", [*content, content[0]]), max_rows=60), on_event=heard.append)
    said = [f"{event.level}: {event.message}" for event in heard if isinstance(event, Notice)]
    assert any("`text` from the column `Review` (guessed)" in line for line in said)
    assert any(line.startswith("warning: duplicate") for line in said)
    assert "info: 41 rows are not used (max_rows)" in said


def render(row: Row) -> Rendered:
    words = row.fields["text"].split()
    if words[0] == "nothing":
        raise DataError("no token of this example carries loss", where=str(row.origin), fix="give it an answer")
    return Rendered(list(range(min(len(words), 12))), None, 0, max(0, len(words) - 12))


def test_rendering_finds_truncation_and_rows_without_loss(tmp_path: Path) -> None:
    content = rows(100)
    content[30]["text"] = "nothing " + content[30]["text"]
    content[40]["text"] = " ".join(str(n * n) for n in range(20))
    path = write(tmp_path / "a.jsonl", content)
    report = check(recipe(path), render=render)
    problems = {p.code: p for p in report.problems}
    assert (problems["unlearnable"].severity, problems["unlearnable"].where) == ("error", [Origin(str(path), 31)])
    assert (problems["truncated"].severity, problems["truncated"].where) == ("warning", [Origin(str(path), 41)])
    tokens = [report.lengths[part]["tokens"] for part in report.lengths]
    assert sum(part["count"] for part in tokens) == 99
    assert sum(part["cut_tokens"] for part in tokens) == 8
    assert max(part["max"] for part in tokens) == 20
    refused = check(recipe(path, truncate=False), render=render)
    assert {p.code: p.severity for p in refused.problems}["too-long"] == "error"


def test_only_a_sample_of_a_large_set_is_rendered_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(survey, "RENDER_SAMPLE", 50)
    report = check(recipe(write(tmp_path / "a.jsonl", rows(1000))), render=render)
    assert any("of 1,000 rows" in note for note in report.notes)
    assert sum(part["tokens"]["count"] for part in report.lengths.values()) < 500


def test_lengths_are_exact_where_they_are_short(tmp_path: Path) -> None:
    content = [{"text": "x" * n, "label": n % 2} for n in range(1, 1001)]
    lengths = check(recipe(write(tmp_path / "a.jsonl", content), validation=0.0, test=0.0)).lengths["train"][
        "characters"
    ]
    assert lengths == {
        "count": 1000, "mean": 501.5, "min": 2, "p50": 501, "p90": 901, "p95": 951, "p99": 991, "max": 1001,
    }  # fmt: skip


MEASURE = """
import json, resource, sys
from tunesmith.data import near_duplicates
from tunesmith.data.prepare import check
from tunesmith.recipe_file import parse
near_duplicates.SAMPLE = dict.fromkeys(near_duplicates.SAMPLE, 2000)  # full with either file
report = check(parse({"task": "text-classification", "model": "none", "data": {"train": sys.argv[1]}}))
print(json.dumps([report.rows_read["train"], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024]))
"""


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    base = [json.dumps(row) for row in rows(4000)]
    used = {}
    for copies in (5, 50):
        path = tmp_path / f"{copies}.jsonl"
        with path.open("w") as file:
            for copy in range(copies):
                shift = str.maketrans("etaoinsh", "".join(random.Random(copy).sample("ETAOINSH", 8)))
                file.writelines(f"{line[:10]}{line[10:66].translate(shift)}{line[66:]}\n" for line in base)
        command = [sys.executable, "-c", MEASURE, str(path)]
        read, used[copies] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        assert read == copies * len(base)
    assert used[50] - used[5] < 12, used  # MB; the larger file has 180,000 rows and 16 MB more


@needs_shared
@pytest.mark.shared_data
def test_real_sets_are_read_without_errors() -> None:
    polarity = [str(SHARED / "sentence_polarity" / f"rt-polarity.{end}") for end in ("pos", "neg")]
    data = prepare(
        parse(
            {
                "task": "text-classification",
                "model": "none",
                "data": {"train": polarity, "format": "text", "columns": {"label": "suffix"}},
            }
        )
    )
    assert data.labels == ["neg", "pos"]
    assert sum(data.report.rows.values()) == 10_662
    assert not data.report.errors
    banking = check(recipe(SHARED / "banking77" / "train.csv", test=str(SHARED / "banking77" / "test.csv")))
    assert banking.rows_read == {"train": 10_003, "test": 3_080}
    assert not banking.errors
    leak = next(p for p in banking.problems if p.code == "leakage")
    assert (leak.count, leak.where[0].line) == (7, 556)
    assert len(banking.classes["train"]) == 77


def test_same_result_in_another_process(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", rows(50))
    here: PreparedData = prepare(recipe(path))
    code = (
        "import sys; from tunesmith.data.prepare import prepare; from tunesmith.recipe_file import parse\n"
        "data = {'task': 'text-classification', 'model': 'none', 'data': {'train': sys.argv[1]}}\n"
        "print(prepare(parse(data)).fingerprint)"
    )
    there = subprocess.run([sys.executable, "-c", code, str(path)], check=True, capture_output=True, text=True)
    assert there.stdout.strip() == here.fingerprint


def test_memory_does_not_grow_with_duplicates_that_are_dropped(tmp_path: Path) -> None:
    """Which rows repeat others is noted on disk: of 200,000 rows 196,000 do."""
    base = [json.dumps(row) + "\n" for row in rows(4000)]
    script = MEASURE.replace('"data": {', '"data": {"duplicates": "drop", ')
    script = (
        "from tunesmith.data import duplicates\nduplicates._ROWS_AT_ONCE = 20_000  # full with either file\n" + script
    )
    own = "int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0]) // 1024"  # not that of the parent
    script = script.replace("resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024", own)
    used = {}
    for copies in (5, 50):
        path = tmp_path / f"{copies}.jsonl"
        with path.open("w") as file:
            for _ in range(copies):
                file.writelines(base)
        command = [sys.executable, "-c", script, str(path)]
        read, used[copies] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        assert read == copies * len(base)
    assert used[50] - used[5] < 12, used  # MB


def test_stretches_of_which_no_row_is_used_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ledger is walked in chunks; of most of them `max_rows` takes nothing."""
    monkeypatch.setattr("tunesmith.data.ledger._CHUNK_ROWS", 50)
    report = check(recipe(write(tmp_path / "a.jsonl", rows(1000)), max_rows=10))
    assert sum(report.rows.values()) == 10 and report.rows_left_out == {"max_rows": 990}


# --- what only later rows hold ---------------------------------------------------------------------------------------


def alpaca(count: int, extra_from: int, **extra: str) -> list[dict[str, Any]]:
    base = [{"instruction": f"do {row['text']}", "output": f"done {n}"} for n, row in enumerate(rows(count))]
    return [row | ({k: f"{v} {n}" for k, v in extra.items()} if n >= extra_from else {}) for n, row in enumerate(base)]


def whole(path: Path, task: str, **data: Any) -> PreparedData:
    return prepare(recipe(path, task, validation=0.0, test=0.0, **data))


@pytest.mark.parametrize("name", ["input", "system"])
def test_a_field_that_the_first_rows_lack_is_taken(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", alpaca(150, 110, **{name: "more"}))
    data = whole(path, "text-generation")
    assert [row.fields.get(name) for row in data.train] == [None] * 110 + [f"more {n}" for n in range(110, 150)]
    [choice] = data.report.columns
    assert name in choice["fields"]


def test_a_column_without_a_place_is_left_aside_and_named(tmp_path: Path) -> None:
    data = whole(write(tmp_path / "a.jsonl", alpaca(150, 110, remark="r")), "text-generation")
    [choice] = data.report.columns
    assert choice["ignored"] == ["remark"]


def test_a_late_column_that_would_change_how_rows_are_read_is_said_to_be_left_aside(tmp_path: Path) -> None:
    content = [{"sentence": row["text"], "label": str(row["label"])} for row in rows(150)]
    content[120] |= {"review": "another text"}
    data = whole(write(tmp_path / "a.jsonl", content), "text-classification")
    assert len(data.train) == 150
    [problem] = [p for p in data.report.problems if p.code == "late-column"]
    assert problem.where[0].line == 121 and "`review`" in problem.message


def test_no_other_column_takes_the_place_of_one_that_is_there_and_empty(tmp_path: Path) -> None:
    content: list[dict[str, Any]] = [{**row, "review": "a remark"} for row in rows(40)]
    content[12]["text"] = None
    found = check(recipe(write(tmp_path / "a.jsonl", content)))
    [problem] = found.errors
    assert (problem.code, problem.where[0].line) == ("missing-field", 13)


@pytest.mark.parametrize("empty", [True, False])
@pytest.mark.parametrize("at", [5, 130])
def test_rows_of_another_shape_are_read_in_one_way_though_they_lack_something(
    at: int, empty: bool, tmp_path: Path
) -> None:
    others = [{"sentence": None if empty else f"other {n}", "label": n % 2} for n in range(30)]
    content = rows(150)
    found = check(recipe(write(tmp_path / "a.jsonl", content[:at] + others + content[at:])))
    assert [choice["files"] for choice in found.columns] == [1, 1]
    assert [problem.count for problem in found.errors] == ([30] if empty else [])
    assert [problem.count for problem in found.problems if problem.code == "mixed-shapes"] == [30]


@pytest.mark.parametrize("at", [5, 130])
def test_an_empty_column_is_a_fault_also_where_other_rows_have_the_other_shape(at: int, tmp_path: Path) -> None:
    content: list[dict[str, Any]] = rows(150)
    content[at] = {"sentence": "has only this", "label": 1}
    content[at + 3] = {"text": None, "sentence": "not taken", "label": 1}
    [problem] = check(recipe(write(tmp_path / "a.jsonl", content))).errors
    assert (problem.code, problem.where[0].line, problem.count) == ("missing-field", at + 4, 1)


@pytest.mark.parametrize("at", [5, 130])
def test_rows_under_other_names_are_read_as_the_usual_ones_of_the_same_form(at: int, tmp_path: Path) -> None:
    """The first of them shows no separator, where the usual ones do."""
    content: list[dict[str, Any]] = [{"text": row["text"], "labels": "x|y"} for row in rows(150)]
    content[at] = {"text": "other", "tags": "x"}
    later = {"text": "yet another", "tags": "y|x"}
    data = prepare(recipe(write(tmp_path / "a.jsonl", [*content, later]), "multi-label-classification"))
    assert data.labels == ["x", "y"]
    assert not [problem for problem in data.report.problems if problem.code == "late-separator"]


def test_names_in_doubt_stay_a_fault_though_some_rows_have_one_of_them(tmp_path: Path) -> None:
    content = [
        {"review" if n % 2 else "sentence": row["text"], "label": row["label"]} for n, row in enumerate(rows(40))
    ]
    assert not check(recipe(write(tmp_path / "a.jsonl", content))).errors
    content[3]["sentence"] = "another text"
    [problem] = check(recipe(write(tmp_path / "a.jsonl", content))).errors
    assert problem.code == "columns" and "several columns fit `text`" in problem.message


def test_columns_are_settled_by_rows_not_by_blank_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", rows(40))
    path.write_text("\n" * 20_000 + path.read_text())
    assert len(whole(path, "text-classification").train) == 40


def test_a_separator_of_labels_that_the_first_rows_lack_is_said(tmp_path: Path) -> None:
    content = [{"text": row["text"], "labels": "sport"} for row in rows(150)]
    content[130]["labels"] = "sport;news"
    path = write(tmp_path / "a.jsonl", content)
    [problem] = [p for p in whole(path, "multi-label-classification").report.problems if p.code == "late-separator"]
    assert problem.where[0].line == 131 and "label_separator" in str(problem.fix)
    assert whole(path, "multi-label-classification", label_separator=";").train[130].fields["labels"] == [
        "news",
        "sport",
    ]
