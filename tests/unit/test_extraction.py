"""Documents of several formats: what text they give, with its place."""

from __future__ import annotations

from pathlib import Path

import pytest

import tiny
from tunesmith.data.prepare import check, prepare
from tunesmith.data.problems import Fault
from tunesmith.data.readers import Record, read
from tunesmith.data.rows import Row
from tunesmith.data.sources import Source, find_sources
from tunesmith.events import Notice
from tunesmith.recipe import Data, Recipe

HTML = """<!doctype html><html><head><title>A title</title><style>p {color: red}</style></head><body>
<nav>Home | About</nav>
<h1>Heading &amp; more</h1>
<p>First   paragraph
on two lines.</p><script>alert("x")</script>
<pre>def f():
    return 1</pre>
<p>Last</p></body></html>
"""


def rows_of(path: Path, **settings: object) -> list[Row]:
    data = Data(train=[str(path)], validation=0.0, test=0.0, **settings)  # type: ignore[arg-type]
    prepared = prepare(Recipe(task="language-modeling", model="m", data=data), stop_on_errors=False)
    return list(prepared.train)


def test_html_gives_its_text_block_by_block(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(HTML)
    (row,) = rows_of(page)
    assert row.fields["text"].split("\n\n") == [
        "A title", "Heading & more", "First paragraph on two lines.", "def f():\n    return 1", "Last",
    ]  # fmt: skip


def test_a_long_file_is_cut_into_passages_with_their_lines(tmp_path: Path) -> None:
    book = tmp_path / "book.md"
    book.write_text("\n\n".join(f"paragraph {n} " + "word " * 60 for n in range(20)) + "\n")
    rows = rows_of(book)
    assert len(rows) == 5
    assert all(len(row.fields["text"]) >= 1000 for row in rows)
    assert [row.origin.line for row in rows] == [1, 9, 17, 25, 33]


def test_a_folder_of_few_files_is_passages_and_of_many_is_documents(tmp_path: Path) -> None:
    events = tiny.Events()
    for number in range(3):
        (tmp_path / f"{number}.md").write_text(f"text {number}\n")
    (tmp_path / "picture.png").write_bytes(b"x")
    found = find_sources([str(tmp_path)], documents=True, on_event=events)
    assert {source.format for source in found} == {"passages"}
    assert any("picture.png" in notice.message for notice in events.of(Notice))
    for number in range(3, 25):
        (tmp_path / f"{number}.txt").write_text(f"text {number}\n")
    assert {source.format for source in find_sources([str(tmp_path)], documents=True)} == {"document"}
    assert len(rows_of(tmp_path)) == 25


def test_other_tasks_read_folders_as_before(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("a\n")
    (tmp_path / "README.md").write_text("b\n")
    assert [Path(source.name).name for source in find_sources([str(tmp_path)])] == ["notes.txt"]


def test_control_characters_are_taken_out_and_said(tmp_path: Path) -> None:
    path = tmp_path / "old.txt"
    path.write_text("fine\n\nform\x0cfeed and \x00 nul  \n")
    records = list(read(Source(str(path), "passages", path), "utf-8"))
    (record,) = [item for item in records if isinstance(item, Record)]
    (fault,) = [item for item in records if isinstance(item, Fault)]
    assert record.values["text"] == "fine\n\nform\nfeed and  nul", "a page break parts words"
    assert (fault.code, fault.severity, str(fault.origin)) == ("control-characters", "warning", f"{path}:3")


def test_a_file_of_a_large_folder_is_cleaned_as_a_passage_is(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number:02}.txt").write_text(f"first {number}  \x00\n\n\n\npage\x0cbreak\n")
    texts = {row.fields["text"] for row in rows_of(tmp_path)}
    assert texts == {f"first {number}\n\npage\nbreak" for number in range(20)}


def test_an_element_that_is_never_closed_is_named(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("<p>seen</p>\n<nav><p>menu</p>\n<p>lost</p>\n")
    records = list(read(Source(str(page), "passages", page), "utf-8"))
    (record,) = [item for item in records if isinstance(item, Record)]
    (fault,) = [item for item in records if isinstance(item, Fault) and item.code == "open-element"]
    assert record.values["text"] == "seen"
    assert (fault.severity, str(fault.origin)) == ("warning", f"{page}:2")


def test_a_pdf_gives_its_pages(tmp_path: Path) -> None:
    pytest.importorskip("pypdf", reason="pypdf is in the extra `pdf`")
    path = tmp_path / "paper.pdf"
    path.write_bytes(pdf(["Hello from page one", "And page two"]))
    (row,) = rows_of(path)
    assert row.fields["text"] == "Hello from page one\n\nAnd page two"


def test_a_damaged_pdf_is_named(tmp_path: Path) -> None:
    pytest.importorskip("pypdf", reason="pypdf is in the extra `pdf`")
    path = tmp_path / "broken.pdf"
    path.write_bytes(b"%PDF-1.4\nnothing")
    (fault,) = list(read(Source(str(path), "passages", path), "utf-8"))
    assert isinstance(fault, Fault) and fault.severity == "error"


def pdf(pages: list[str]) -> bytes:
    """A PDF with one line of text a page."""
    kids = " ".join(f"{4 + 2 * n} 0 R" for n in range(len(pages)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for number, text in enumerate(pages):
        stream = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET"
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {5 + 2 * number} 0 R "
            "/Resources << /Font << /F1 3 0 R >> >> >>"
        )
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
    body, offsets = b"%PDF-1.4\n", []
    for number, text in enumerate(objects, 1):
        offsets.append(len(body))
        body += f"{number} 0 obj\n{text}\nendobj\n".encode()
    table = "".join(f"{offset:010d} 00000 n \n" for offset in offsets)
    size = len(objects) + 1
    end = f"xref\n0 {size}\n0000000000 65535 f \n{table}trailer << /Size {size} /Root 1 0 R >>\n"
    end += f"startxref\n{len(body)}\n%%EOF\n"
    return body + end.encode()


def test_what_was_left_out_of_pages_is_one_note(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.html").write_text(HTML)
    (tmp_path / "plain.html").write_text("<p>All of this is text</p><nav> </nav>")
    data = Data(train=[str(tmp_path)], validation=0.0, test=0.0)
    report = check(Recipe(task="language-modeling", model="m", data=data))
    [note] = [note for note in report.notes if "HTML" in note]
    assert note == "characters left out of 3 HTML pages, as no text: 36 of <style>, 30 of <nav>, 30 of <script>"
    assert not [problem for problem in report.problems if problem.code == "no-text"]


def test_a_page_without_text_is_an_empty_file(tmp_path: Path) -> None:
    page = tmp_path / "menu.html"
    page.write_text("<nav>Home</nav>")
    report = check(Recipe(task="language-modeling", model="m", data=Data(train=[str(page)], validation=0.0, test=0.0)))
    assert "empty-file" in [problem.code for problem in report.problems]
    assert report.notes == ["characters left out of 1 HTML page, as no text: 4 of <nav>"]
