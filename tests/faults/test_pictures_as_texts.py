"""Pictures where a task reads text: in base64, as names, or as objects of a table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from tunesmith.data.pictures import holds_picture, names_picture
from tunesmith.data.prepare import check
from tunesmith.data.problems import Problem
from tunesmith.recipe_file import parse

PNG = b"\x89PNG\r\n\x1a\n"


def found(train: Path, task: str = "text-classification", **data: Any) -> list[Problem]:
    tree = {"task": task, "model": "m", "data": {"train": str(train), **data}}
    return [problem for problem in check(parse(tree)).problems if problem.code == "image-content"]


def lines(path: Path, texts: list[Any]) -> Path:
    rows = [{"text": text, "label": "ab"[number % 2]} for number, text in enumerate(texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_texts_that_are_names_of_pictures_are_a_warning_each_file(tmp_path: Path) -> None:
    lines(tmp_path / "a.jsonl", [f"pictures/{n}.jpg" for n in range(200)])
    lines(tmp_path / "b.jsonl", ["a text", "pictures/1.jpg"])
    [problem] = found(tmp_path)
    assert (problem.severity, problem.count) == ("warning", 1) and "'pictures/0.jpg'" in problem.message
    assert problem.fix is not None and "task: image-classification" in problem.fix
    assert [str(place) for place in problem.where] == [f"{tmp_path / 'a.jsonl'}:1"]


def test_a_picture_in_base64_is_a_warning(tmp_path: Path) -> None:
    [problem] = found(lines(tmp_path / "a.jsonl", ["one", "data:image/png;base64,iVBORw0KGgo", "two"]))
    assert problem.severity == "warning" and [place.line for place in problem.where] == [2]


def test_pictures_inside_a_table_are_one_error(tmp_path: Path) -> None:
    """As the hub's library stores them."""
    rows = [{"text": {"bytes": PNG, "path": f"{n}.png"}, "label": "ab"[n % 2]} for n in range(30)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    [problem] = found(tmp_path / "a.parquet")
    assert (problem.severity, problem.count) == ("error", 30) and "holds a picture" in problem.message


def test_a_table_of_pictures_names_the_task_for_them(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("image,label\na.png,x\nb.png,y\n", encoding="utf-8")
    tree = {"task": "text-classification", "model": "m", "data": {"train": str(tmp_path / "a.csv")}}
    [problem] = check(parse(tree)).errors
    assert problem.code == "columns" and "task: image-classification" in (problem.fix or "")


@pytest.mark.parametrize("text", ["a.png", "dir/b c.JPG", "https://x.org/a.webp?size=1", "data:image/gif;base64,R0"])
def test_names_of_pictures(text: str) -> None:
    assert names_picture(text)


@pytest.mark.parametrize("text", ["see the file photo.png", "png", "a text", "report.pdf", "a\nb.png"])
def test_texts_are_no_names_of_pictures(text: str) -> None:
    assert not names_picture(text)


def test_what_holds_a_picture() -> None:
    assert holds_picture(PNG) and holds_picture({"type": "image_url"}) and holds_picture({"bytes": PNG, "path": None})
    assert not holds_picture({"bytes": b"RIFF....WAVE", "path": "a.wav"}) and not holds_picture(["a"])
