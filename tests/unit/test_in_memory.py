"""Rows in memory as a file: missing values, types that JSON does not know, and one row at a time."""

from __future__ import annotations

import datetime
import enum
import json
import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tunesmith
from tunesmith import api, pipeline
from tunesmith.data.in_memory import names_or_rows, write_rows
from tunesmith.data.prepare import check
from tunesmith.errors import DataError, UsageError
from tunesmith.recipe_file import parse

pandas = pytest.importorskip("pandas")


class Label(str, enum.Enum):  # noqa: UP042 - StrEnum is its text already
    POSITIVE = "positive"


class Grade(int, enum.Enum):
    GOOD = 2


def written(data: Any, folder: Path) -> list[dict[str, Any]]:
    rows = names_or_rows(data)
    assert not isinstance(rows, list)
    lines = write_rows(rows, folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON")) for line in lines]


def test_a_frame_keeps_what_json_can_hold_and_loses_nothing_else(tmp_path: Path) -> None:
    frame = pandas.DataFrame(
        {
            "text": ["a", None],
            "count": [3, 4],
            "share": [0.5, float("nan")],
            "when": [pandas.Timestamp("2026-11-28 10:00"), pandas.NaT],
            "maybe": pandas.array([1, pandas.NA], dtype="Int64"),
            7: [np.array([1, 2]), np.array([0.5, np.nan])],
        }
    )
    assert written(frame, tmp_path) == [
        {"text": "a", "count": 3, "share": 0.5, "when": "2026-11-28T10:00:00", "maybe": 1, "7": [1, 2]},
        {"text": None, "count": 4, "share": None, "when": None, "maybe": None, "7": [0.5, None]},
    ]


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (np.int64(3), 3),
        (np.float32(0.5), 0.5),
        (np.longdouble(0.5), 0.5),
        (np.float64("nan"), None),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        (np.datetime64("2026-11-28"), "2026-11-28"),
        (np.datetime64("NaT"), None),
        (datetime.date(2026, 11, 28), "2026-11-28"),
        (Decimal("1.50"), "1.50"),
        (float("inf"), "inf"),
        ({"a": [np.int8(1), {"b": float("nan")}], 2: ()}, {"a": [1, {"b": None}], "2": []}),
        ("\ud800", "\ud800"),
        (Label.POSITIVE, "positive"),
        ([{Label.POSITIVE: Grade.GOOD}], [{"positive": 2}]),
    ],
)
def test_plain_values(value: Any, plain: Any, tmp_path: Path) -> None:
    assert written([{"x": value}], tmp_path) == [{"x": plain}]


def test_a_missing_value_matters_only_where_the_task_reads_it(tmp_path: Path) -> None:
    frame = pandas.DataFrame({"text": [f"text {n}" for n in range(40)], "label": ["a", "b"] * 20, "note": np.nan})
    frame.loc[16, "text"] = np.nan
    rows = names_or_rows(frame)
    path = write_rows(rows, tmp_path / "rows.jsonl")
    report = check(parse({"task": "text-classification", "model": "none", "data": {"train": str(path)}}))
    [problem] = report.errors
    assert problem.code == "missing-field" and [str(place) for place in problem.where] == [f"{path}:17"]


def test_what_is_no_plain_data_is_named_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=re.escape("`x` holds a `object`")) as caught:
        write_rows([{"x": 1}, {"x": [object()]}], tmp_path / "rows.jsonl")
    assert caught.value.where == "row 2" and caught.value.fix
    assert not list(tmp_path.iterdir())


def test_columns_of_one_name_are_refused() -> None:
    with pytest.raises(DataError, match="two columns 'a'"):
        names_or_rows(pandas.DataFrame([[1, 2]], columns=["a", "a"]))


@pytest.mark.parametrize(
    ("row", "what"),
    [({1: "a", "1": "b"}, "the row has two fields '1'"), ({"x": [{None: 1, "None": 2}]}, "`x` has two fields 'None'")],
)
def test_fields_that_would_become_one_are_refused(row: dict[Any, Any], what: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=what) as caught:
        write_rows([{"x": 1}, row], tmp_path / "rows.jsonl")
    assert caught.value.where == "row 2" and caught.value.fix
    assert not list(tmp_path.iterdir())


def test_rows_are_taken_one_at_a_time(tmp_path: Path) -> None:
    alive: list[int] = []

    def rows() -> Iterator[dict[str, int]]:
        for number in range(100):
            alive.append(number)
            yield {"n": number}

    source = rows()
    given = names_or_rows(source)
    assert alive == [0] and len(written(given, tmp_path)) == 100


def test_names_and_rows_do_not_mix() -> None:
    assert names_or_rows([Path("a.csv"), "b.csv"]) == ["a.csv", "b.csv"]
    assert names_or_rows("a.csv") == ["a.csv"] and names_or_rows([]) == []
    with pytest.raises(DataError, match="mixed") as caught:
        names_or_rows(["a.csv", {"text": "a"}])
    assert caught.value.where == "row 2"


def test_held_out_data_are_given_as_the_training_data_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    monkeypatch.setattr(pipeline, "run", lambda recipe, **_: started.append(recipe))
    rows = [{"text": "a", "label": "b"}]
    keys: dict[str, Any] = {"task": "text-classification", "model": "m", "run_dir": tmp_path}
    tunesmith.tune(rows, validation=pandas.DataFrame(rows), data={"test": rows * 2, "seed": 3}, **keys)
    data = started[0].data
    places = {part: [str(tmp_path / name)] for part, name in api.ROW_FILES.items()}
    assert (data.train, data.validation, data.test) == (places["train"], places["validation"], places["test"])
    assert data.seed == 3 and (tmp_path / "rows-test.jsonl").read_text() == '{"text": "a", "label": "b"}\n' * 2
    tunesmith.tune(data="a.csv", validation=0.2, test=["b.csv", "c.csv"], **keys)
    data = started[1].data
    assert (data.train, data.validation, data.test) == (["a.csv"], 0.2, ["b.csv", "c.csv"])
    with pytest.raises(UsageError, match="test data are given twice"):
        tunesmith.tune(rows, test=rows, data={"test": 0.1}, **keys)


@pytest.mark.parametrize(
    "again", ["b.csv", ["b.csv"], pandas.DataFrame({"text": ["a"]})], ids=["name", "names", "rows"]
)
def test_training_data_first_and_by_name_are_given_twice(again: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="train data are given twice"):
        tunesmith.tune("a.csv", task="text-classification", model="m", run_dir=tmp_path, data=again)


def test_a_share_may_be_a_number_of_numpy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    monkeypatch.setattr(pipeline, "run", lambda recipe, **_: started.append(recipe))
    keys: dict[str, Any] = {"task": "text-classification", "model": "m", "run_dir": tmp_path}
    tunesmith.tune("a.csv", validation=np.float32(0.25), data={"test": np.float64(0.5)}, **keys)
    shares = started[0].data.validation, started[0].data.test
    assert shares == (0.25, 0.5) and {type(share) for share in shares} == {float}
