"""Texts with their spans marked, in colours: on a page and in a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from markupsafe import Markup, escape

from tunesmith.data.spans import Span

if TYPE_CHECKING:
    from rich.text import Text

LONGEST = 420
"""Characters of a text that a page shows."""

PAGE_HUES = 8
"""Colours of the report's style sheet, ``.hue0`` to ``.hue7``; labels beyond share them."""

STYLES = ("black on cyan", "black on yellow", "black on green", "black on magenta", "white on blue", "white on red")


def on_page(text: str, spans: Sequence[Span], labels: Sequence[str]) -> Markup:
    """The text as HTML, everything in it escaped."""
    shown, tail = (text, "") if len(text) <= LONGEST + 20 else (text[:LONGEST], " … (cut)")
    parts = []
    for piece, span in _pieces(shown, spans):
        if span is None:
            parts.append(str(escape(piece)))
        else:
            hue = (labels.index(span.label) if span.label in labels else len(labels)) % PAGE_HUES
            title = "" if span.score == 1.0 else f' title="{span.score:.2f}"'
            parts.append(f'<mark class="hue{hue}"{title}>{escape(piece)}<span> {escape(span.label)}</span></mark>')
    return Markup("".join(parts) + tail)


def in_terminal(text: str, spans: Sequence[Span], labels: list[str]) -> Text:
    """The text for Rich, with a label behind each span. New labels join ``labels``, whose order decides the colours."""
    from rich.text import Text

    marked = Text()
    for piece, span in _pieces(text, spans):
        if span is None:
            marked.append(piece)
        else:
            if span.label not in labels:
                labels.append(span.label)
            style = STYLES[labels.index(span.label) % len(STYLES)]
            marked.append(piece, f"bold {style}").append(f" {span.label} {span.score:.2f}", "dim italic")
    return marked


def _pieces(text: str, spans: Sequence[Span]) -> Iterator[tuple[str, Span | None]]:
    """The text in order, cut at the edges of spans."""
    done = 0
    for span in sorted(spans):
        if done <= span.start < span.end <= len(text):
            yield text[done : span.start], None
            yield text[span.start : span.end], span
            done = span.end
    yield text[done:], None
