"""Every format gives the same rows with the right places."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.json_stream import BadValue, JsonStream
from tunesmith.data.prepare import check, prepare
from tunesmith.data.problems import Fault
from tunesmith.data.readers import Record, read
from tunesmith.data.sources import Source, find_sources
from tunesmith.errors import DataError, ResourceError
from tunesmith.evaluation.general import general_rows
from tunesmith.events import Event, Notice
from tunesmith.recipe import Recipe
from tunesmith.recipe_file import parse

ROWS = [
    {"text": "plain", "label": "a"},
    {"text": 'commas, "quotes" and\nnew\r\nlines', "label": "b"},
    {"text": "ünïcödé ☃ \u2028 done", "label": "c"},
]


def as_csv(delimiter: str) -> str:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, ["text", "label"], delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows(ROWS)
    return out.getvalue()


CONTENT = {
    "jsonl": "".join(json.dumps(row) + "\n" for row in ROWS),
    "ndjson": "\r\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS),
    "json": json.dumps(ROWS, indent=1),
    "csv": as_csv(","),
    "tsv": as_csv("\t"),
}


def records(path: Path, encoding: str = "utf-8") -> list[Record]:
    found = [item for source in find_sources([str(path)]) for item in read(source, encoding)]
    assert not [item for item in found if isinstance(item, Fault)]
    return [item for item in found if isinstance(item, Record)]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("suffix", CONTENT)
def test_text_formats_agree(tmp_path: Path, suffix: str, packed: bool) -> None:
    data = CONTENT[suffix].encode()
    path = tmp_path / f"rows.{suffix}{'.gz' if packed else ''}"
    path.write_bytes(gzip.compress(data) if packed else data)
    found = records(path)
    assert [record.values for record in found] == ROWS
    lines = {"json": [2, 6, 10], "csv": [2, 3, 6], "tsv": [2, 3, 6]}.get(suffix, [1, 2, 3])
    assert [record.origin.line for record in found] == lines
    assert {record.origin.file for record in found} == {str(path)}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252"])
@pytest.mark.parametrize("suffix", ["ndjson", "csv", "json"])
def test_other_encodings(tmp_path: Path, suffix: str, encoding: str) -> None:
    text = {
        "ndjson": '{"text": "naïve"}\n{"text": "é"}',
        "csv": "text\nnaïve\né\n",
        "json": '[{"text": "naïve"}, {"text": "é"}]',
    }
    path = tmp_path / f"rows.{suffix}"
    path.write_bytes(text[suffix].encode(encoding))
    assert [record.values["text"] for record in records(path, encoding)] == ["naïve", "é"]


def test_parquet(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [*ROWS, {"text": None, "label": "d"}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet", row_group_size=2)
    found = records(tmp_path / "rows.parquet")
    assert [record.values for record in found] == rows
    assert [record.origin.line for record in found] == [1, 2, 3, 4]


def test_json_lines_under_the_name_json(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(CONTENT["jsonl"])
    found = records(path)
    assert [record.values for record in found] == ROWS
    assert [record.origin.line for record in found] == [1, 2, 3]


def test_folder_names_label_documents(tmp_path: Path) -> None:
    for label, name, text in (("pos", "1.txt", "fine\n\nday\n"), ("pos", "2.txt", "good"), ("neg", "1.txt", "bad")):
        (tmp_path / label).mkdir(exist_ok=True)
        (tmp_path / label / name).write_text(text)
    (tmp_path / "README.txt").write_text("what this is")
    heard: list[Event] = []
    sources = find_sources([str(tmp_path)], on_event=heard.append)
    found = [item for source in sources for item in read(source, "utf-8")]
    assert [(r.values["text"], r.values["label"]) for r in found if isinstance(r, Record)] == [
        ("bad", "neg"),
        ("fine\n\nday", "pos"),
        ("good", "pos"),
    ]
    assert [event.message for event in heard if isinstance(event, Notice)] == ["not read, as no data: README.txt"]


def test_folder_of_documents_without_labels(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo")
    (tmp_path / ".hidden.txt").write_text("no")
    found = records(tmp_path)
    assert [record.values for record in found] == [{"text": "one\ntwo", "file": "a", "folder": tmp_path.name}]


def test_text_file_is_a_row_a_line_with_its_name_as_columns(tmp_path: Path) -> None:
    path = tmp_path / "rt.pos"
    path.write_text("fine\n\nday\n")
    (source,) = find_sources([str(path)], file_format="text")
    found = [item for item in read(source, "utf-8") if isinstance(item, Record)]
    assert [(r.values["text"], r.values["suffix"], r.origin.line) for r in found] == [
        ("fine", "pos", 1),
        ("day", "pos", 3),
    ]


def test_folder_and_pattern_of_data_files_come_sorted(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "c.csv", "notes.md"):
        (tmp_path / name).write_text("x")
    names = [Path(source.name).name for source in find_sources([str(tmp_path)])]
    assert names == ["a.jsonl", "b.jsonl", "c.csv"]
    assert [Path(s.name).name for s in find_sources([f"{tmp_path}/*.jsonl"])] == ["a.jsonl", "b.jsonl"]
    assert [Path(s.name).name for s in find_sources([str(tmp_path)], file_format="csv")] == ["c.csv"]


def test_names_that_lead_nowhere(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere/a.*nowhere/b"):
        find_sources(["nowhere/a.csv", "nowhere/b.csv"])
    with pytest.raises(DataError, match="format cannot be told"):
        (tmp_path / "data.xyz").write_text("x")
        find_sources([str(tmp_path / "data.xyz")])
    with pytest.raises(DataError, match="no data files"):
        (tmp_path / "empty").mkdir()
        find_sources([str(tmp_path / "empty")])


def test_catalog_data_need_no_path() -> None:
    (source,) = find_sources(["python-reference"])
    first = next(iter(read(source, "utf-8")))
    assert isinstance(first, Record)
    assert first.values["text"]


def test_hub_data_are_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[str] = []

    def hub_dataset(name: str) -> Any:
        asked.append(name)
        return datasets.Dataset.from_list(ROWS).to_iterable_dataset()

    monkeypatch.setattr("tunesmith.catalog.hub_dataset", hub_dataset)
    (source,) = find_sources(["hub:somebody/reviews:test"])
    assert source == Source("hub:somebody/reviews:test", "hub")
    found = [item for item in read(source, "utf-8") if isinstance(item, Record)]
    assert asked == ["somebody/reviews:test"]
    assert [record.values for record in found] == ROWS
    assert [str(record.origin) for record in found][-1] == "hub:somebody/reviews:test:3"


def test_hub_data_that_break_off_say_where(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import huggingface_hub.errors

    class Dropped(Exception):
        """What HTTP clients raise derives from nothing else."""

    def rows(error: Exception) -> Iterator[dict[str, str]]:
        yield from ROWS[:2]
        raise error

    (source,) = find_sources(["hub:somebody/reviews:test"])
    for error in (
        Dropped("peer closed the connection"),
        datasets.exceptions.DatasetGenerationError("peer closed the connection"),
        huggingface_hub.errors.XetDownloadError("peer closed the connection"),
    ):
        broken = datasets.IterableDataset.from_generator(rows, gen_kwargs={"error": error})
        monkeypatch.setattr("tunesmith.catalog.hub_dataset", lambda name, broken=broken: broken)
        records = read(source, "utf-8")
        assert [next(records).values for _ in range(2)] == ROWS[:2]  # type: ignore[union-attr]
        with pytest.raises(ResourceError, match="peer closed the connection") as caught:
            next(records)
        assert caught.value.where == "hub:somebody/reviews:test:3" and "hf download" in str(caught.value.fix)


def test_line_without_end_is_refused_in_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunesmith.data.lines.LONGEST_RECORD", 1000)
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "short"}\n{"text": "' + "x" * 2000 + '"}\n{"text": "after"}\n')
    found = list(read(Source(str(path), "jsonl", path), "utf-8"))
    assert isinstance(found[1], Fault)
    assert (found[1].code, found[1].whole_file) == ("record-too-long", True)
    assert len(found) == 2


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(), children, max_size=4),
    max_leaves=12,
)


@given(st.lists(json_values, max_size=6), st.integers(1, 7), st.sampled_from([None, 1]))
def test_json_stream_reads_what_json_reads(values: list[Any], size: int, indent: int | None) -> None:
    text = json.dumps(values, indent=indent)
    stream = JsonStream(text[n : n + size] for n in range(0, len(text), size))
    assert stream.value() == values
    assert stream.peek() == ""
    assert stream.line == text.count("\n") + 1


@given(json_values, st.integers(1, 7), st.data())
def test_json_stream_refuses_what_is_cut(value: Any, size: int, data: st.DataObject) -> None:
    text = json.dumps([value])
    text = text[: data.draw(st.integers(0, len(text) - 1))]
    stream = JsonStream(text[n : n + size] for n in range(0, len(text), size))
    with pytest.raises(BadValue):
        stream.value()


def recipe(*train: str, task: str = "text-classification", **data: Any) -> Recipe:
    return parse(
        {"task": task, "model": "none", "data": {"train": list(train), "validation": 0.0, "test": 0.0, **data}}
    )


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.json", "a.parquet", "a.txt"])
def test_only_the_first_rows_are_read_and_that_is_said(name: str, tmp_path: Path) -> None:
    import pandas

    path, frame = (
        tmp_path / name,
        pandas.DataFrame({"text": [f"text {n}" for n in range(150)], "label": ["a", "b"] * 75}),
    )
    how: dict[str, Callable[[], Any]] = {
        ".jsonl": lambda: frame.to_json(path, orient="records", lines=True),
        ".json": lambda: frame.to_json(path, orient="records"),
        ".csv": lambda: frame.to_csv(path, index=False),
        ".parquet": lambda: frame.to_parquet(path),
        ".txt": lambda: path.write_text("\n".join(frame["text"])),
    }
    how[path.suffix]()
    named = {"columns": {"label": "text"}} if name == "a.txt" else {}
    report = check(recipe(str(path), read_rows=120, **named))
    assert report.rows_read == {"train": 120} and report.rows["train"] == 120
    assert f"read the first 120 rows of {path}, there may be more (`data.read_rows`)" in report.notes
    whole = check(recipe(str(path), read_rows=1000, **named))
    assert whole.rows_read == {"train": 150} and not [note for note in whole.notes if "read_rows" in note]


def test_bad_rows_are_rows_that_were_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a", "label": "b"}\nno json\n{"text": "c", "label": "d"}\nnone either\n')
    report = check(recipe(str(path), read_rows=3))
    assert report.rows_read == {"train": 3} and [problem.count for problem in report.errors] == [1]


def test_an_endless_stream_is_read_no_further_than_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = []

    def endless() -> Iterator[dict[str, str]]:
        for number in itertools.count():
            given.append(number)
            yield {"text": f"document {number}", "label": "ab"[number % 2]}

    monkeypatch.setattr("tunesmith.catalog.hub_dataset", lambda name: endless())
    heard: list[Any] = []
    data = prepare(recipe("hub:web/corpus", read_rows=500, max_rows=50), on_event=heard.append)
    assert len(data.train) == 50 and given[-1] == 499
    said = [event.message for event in heard if isinstance(event, Notice)]
    assert "read the first 500 rows of hub:web/corpus, there may be more (`data.read_rows`)" in said
    assert any("450 rows are not used (max_rows)" in line for line in said)
    assert len(general_rows("hub:web/corpus")) == 50 and given[-1] == 999


def test_several_sources_are_said_in_one_line(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.jsonl").write_text('{"text": "a", "label": "b"}\n{"text": "c", "label": "d"}\n')
    notes = check(recipe(str(tmp_path), read_rows=1)).notes
    [note] = [note for note in notes if "read_rows" in note]
    assert f"{tmp_path / 'a.jsonl'} and of each of 2 other sources" in note
