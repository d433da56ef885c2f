"""The text of documents: plain text, Markdown, HTML and PDF, as paragraphs with their place."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser

from tunesmith.data.json_stream import LONGEST_RECORD
from tunesmith.data.lines import READ_ERRORS, DecodeFault, open_bytes, read_chunks, read_lines, unreadable
from tunesmith.data.problems import Fault, LeftOut
from tunesmith.data.rows import Origin
from tunesmith.data.sources import Source, kind_of_document
from tunesmith.errors import ResourceError

PASSAGE_CHARACTERS = 1000
"""Paragraphs of a long file are joined to passages of about this length: enough context to learn from, and small
enough that a share of one file can be held back."""

_CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1f\x7f\ufeff]")  # form feeds and vertical tabs end lines
_BLOCK_NAMES = (
    "address article aside blockquote body br dd div dl dt figcaption figure h1 h2 h3 h4 h5 h6 hr html li main ol p "
    "pre section table td th title tr ul"
)
_BLOCKS = frozenset(_BLOCK_NAMES.split())
_UNREAD = frozenset(("footer", "nav", "noscript", "script", "style", "svg", "template"))


@dataclass(frozen=True)
class Paragraph:
    """A paragraph and the line (of a PDF: the page) where it begins."""

    line: int
    text: str


def read_whole(source: Source, encoding: str) -> Iterator[Paragraph | Fault]:
    """A file as one text, its paragraphs parted by empty lines."""
    yield from _joined(source, encoding, LONGEST_RECORD)


def read_passages(source: Source, encoding: str) -> Iterator[Paragraph | Fault]:
    """A file as passages: successive paragraphs of at least :data:`PASSAGE_CHARACTERS` characters together."""
    yield from _joined(source, encoding, PASSAGE_CHARACTERS)


def _joined(source: Source, encoding: str, size: int) -> Iterator[Paragraph | Fault]:
    held: list[Paragraph] = []
    characters = 0
    for item in _paragraphs(source, encoding):
        if isinstance(item, Fault):
            yield item
            continue
        held.append(item)
        characters += len(item.text)
        if characters >= size:
            yield _one(held)
            held, characters = [], 0
    if held:
        yield _one(held)


def _one(paragraphs: list[Paragraph]) -> Paragraph:
    return Paragraph(paragraphs[0].line, "\n\n".join(paragraph.text for paragraph in paragraphs))


def _paragraphs(source: Source, encoding: str) -> Iterator[Paragraph | Fault]:
    """Paragraphs without control characters, which are reported, and without white space at the ends of lines."""
    readers = {"text": _plain_paragraphs, "html": _html_paragraphs, "pdf": _pdf_paragraphs}
    controls, first = 0, 0
    for item in readers[kind_of_document(source)](source, encoding):
        if isinstance(item, Fault):
            yield item
            continue
        text, found = _CONTROLS.subn("", item.text)
        first = first or (item.line if found else 0)
        controls += found
        text = "\n".join(line.rstrip() for line in text.splitlines()).strip("\n")
        if text.strip():
            yield Paragraph(item.line, text)
    if controls:
        message = "the text holds control characters, which were taken out"
        yield Fault("control-characters", message, Origin(source.name, first), severity="warning", group=source.name)


def _plain_paragraphs(source: Source, encoding: str) -> Iterator[Paragraph | Fault]:
    """Paragraphs end at an empty line."""
    held: list[str] = []
    number, start = 0, 1
    for line in read_lines(source, encoding):
        if isinstance(line, Fault):
            number += line.code != "byte-order-mark"
            yield line
            continue
        number += 1
        if line.strip():
            start = start if held else number
            held.append(line)
        elif held:
            yield Paragraph(start, "".join(held))
            held = []
    if held:
        yield Paragraph(start, "".join(held))


def _html_paragraphs(source: Source, encoding: str) -> Iterator[Paragraph | Fault]:
    """Text between block elements; scripts, styles and navigation are no text: counted, and reported if left open."""
    reader = _HtmlText()
    try:
        for chunk in read_chunks(source, encoding):
            reader.feed(chunk)
            yield from reader.take()
    except DecodeFault as stop:
        yield stop.fault
        return
    reader.close()
    reader.end_block()
    yield from reader.take()
    if reader.left_out:
        origin = Origin(source.name, 1)
        yield LeftOut("no-text", "elements that are no text", origin, severity="warning", characters=reader.left_out)
    if reader.unread:
        tag, line = reader.unread[0]
        message = f"<{tag}> is never closed, so the rest of the page was left out"
        fix = "close it, if there is text below it"
        yield Fault("open-element", message, Origin(source.name, line), severity="warning", fix=fix)


class _HtmlText(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._held: list[str] = []
        self._start = 1
        self._done: list[Paragraph] = []
        self.unread: list[tuple[str, int]] = []  # elements that are no text, with the line where each begins
        self.left_out: Counter[str] = Counter()  # outermost such element -> characters in it
        self._preformatted = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _UNREAD:
            self.unread.append((tag, self.getpos()[0]))
        if tag in _BLOCKS:
            self.end_block()
        self._preformatted += tag == "pre"

    def handle_endtag(self, tag: str) -> None:
        if any(tag == name for name, _ in self.unread):
            while self.unread.pop()[0] != tag:  # elements that were never closed end with what holds them
                pass
        if tag in _BLOCKS:
            self.end_block()
        self._preformatted -= tag == "pre" and self._preformatted > 0

    def handle_data(self, data: str) -> None:
        if self.unread:
            characters = len("".join(data.split()))
            self.left_out.update({self.unread[0][0]: characters} if characters else {})
            return
        if not self._held:
            self._start = self.getpos()[0]
        self._held.append(data if self._preformatted else re.sub(r"\s+", " ", data))

    def end_block(self) -> None:
        """What was read so far is a paragraph."""
        text = "".join(self._held).strip("\n") if self._preformatted else "".join(self._held).strip()
        if text.strip():
            self._done.append(Paragraph(self._start, text))
        self._held = []

    def take(self) -> list[Paragraph]:
        """Paragraphs that are complete."""
        done, self._done = self._done, []
        return done


def _pdf_paragraphs(source: Source, encoding: str) -> Iterator[Paragraph | Fault]:
    """A paragraph a page: where paragraphs end, a PDF does not say."""
    try:
        from pypdf import PdfReader
        from pypdf.errors import PyPdfError
    except ImportError as error:
        raise ResourceError(
            "reading PDF files needs pypdf", where=source.name, fix='pip install "tunesmith[pdf]"'
        ) from error
    page = 0
    try:
        with open_bytes(source) as file:
            for page, found in enumerate(PdfReader(file).pages, 1):
                yield Paragraph(page, found.extract_text())
    except (PyPdfError, ValueError, KeyError, *READ_ERRORS) as error:
        yield unreadable(source, page + 1, error)
