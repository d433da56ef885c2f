"""Labelled spans of characters, and the reading of what data have in their place: tagged tokens, lists, objects.

A row of the task then is ``{"text", "spans": [[start, end, label], ...]}``, offsets in characters, end exclusive; rows
that came as tokens keep them under ``tokens``, and their text is the tokens joined by single spaces.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from tunesmith.data.problems import Fault, Severity
from tunesmith.data.rows import Row
from tunesmith.data.tag_schemes import first_unopened, is_tag, scheme_of, spans_of_tags
from tunesmith.data.words import Offsets, token_offsets, word_offsets

_STARTS = ("start", "start_offset", "begin", "start_char")
_ENDS = ("end", "end_offset", "stop", "end_char")
_LABELS = ("label", "type", "entity", "tag", "entity_type", "entity_group")
_STRICT = ("IOB2", "IOBES", "BILOU", "BMES")  # schemes in which every span has a tag that opens it


class Span(NamedTuple):
    """A labelled piece of a text.

    Attributes:
        start: First character.
        end: The one behind the last.
        label: What it is.
        text: The characters themselves.
        score: How sure a model is of it, 0 to 1; 1 for a reference.
    """

    start: int
    end: int
    label: str
    text: str = ""
    score: float = 1.0

    @property
    def place(self) -> tuple[int, int, str]:
        """What decides whether two spans are the same."""
        return self.start, self.end, self.label


class _Bad(Exception):
    """The row cannot be read."""

    def __init__(self, code: str, message: str, fix: str) -> None:
        super().__init__(message)
        self.code, self.fix = code, fix


Reader = Callable[[Row], tuple[Row, list[Fault]]]


def spans_of(row: Row) -> list[Span]:
    """The spans of a row that was read, in their order."""
    text = row.fields["text"]
    return [Span(start, end, label, text[start:end]) for start, end, label in row.fields["spans"]]


def words_of(row: Row) -> list[Offsets]:
    """The words of a row that was read: its own tokens, or those of its text."""
    tokens = row.fields.get("tokens")
    return word_offsets(row.fields["text"]) if tokens is None else token_offsets(tokens)


def inline(spans: Iterable[Span]) -> str:
    """Spans as a reader lists them: ``Rick and Morty (creative-work), Paris (location)``."""
    return ", ".join(f"{span.text} ({span.label})" for span in spans) or "(no spans)"


# --- tokens with tags ---------------------------------------------------------------------------------------------


def sampled_scheme(sample: Sequence[Row], names: Sequence[str]) -> str | None:
    """The scheme of the tags of a source's first rows, as far as they can be read."""
    sentences = []
    for row in sample:
        try:
            sentences.append(_tags(row.fields.get("tags"), names))
        except _Bad:
            continue
    return scheme_of(sentences)


def from_tags(scheme: str | None, names: Sequence[str]) -> Reader:
    """Read rows of ``tokens`` and ``tags``.

    Args:
        scheme: Of the source: in some, a span that no tag opens is a slip worth a warning.
        names: Names of tags that are written as numbers.
    """

    def read(row: Row) -> tuple[Row, list[Fault]]:
        faults: list[Fault] = []
        try:
            tokens, tags = _tokens(row.fields["tokens"]), _tags(row.fields["tags"], names)
            if tags and len(tokens) != len(tags):
                numbers = f"{len(tokens)} tokens, {len(tags)} tags"
                raise _Bad(
                    "tag-count", f"tokens and tags are of different numbers ({numbers})", "give each token one tag"
                )
        except _Bad as bad:
            return row, [_fault(row, bad.code, str(bad), bad.fix)]
        unopened = first_unopened(tags) if scheme in _STRICT else None
        if unopened is not None:
            message = f"a span begins with {tags[unopened][0]}-, which the scheme {scheme} wants B- for"
            fix = "it was read as the beginning of a span; mend the tags if that is wrong"
            faults.append(_fault(row, "tag-order", message, fix, "warning", group=tags[unopened][0]))
        offsets = token_offsets(tokens)
        spans = [[offsets[first][0], offsets[end - 1][1], label] for first, end, label in spans_of_tags(tags)]
        return Row({"text": " ".join(tokens), "tokens": tokens, "spans": spans}, row.origin), faults

    return read


def _tokens(value: Any) -> list[str]:
    tokens = _listed(value, "tokens")
    if not tokens:
        raise _Bad("empty-sentence", "the sentence holds no token", "remove the row")
    if not all(isinstance(token, str) for token in tokens):
        raise _Bad("wrong-type", "`tokens` must be a list of texts", "write each token as text")
    if not all(tokens):
        raise _Bad("empty-token", "a token is empty", "remove the token together with its tag")
    return tokens


def _tags(value: Any, names: Sequence[str]) -> list[str]:
    """Tags as text; none for a row that is still to be tagged."""
    tags = [] if value is None else _listed(value, "tags")
    if any(isinstance(tag, int) and not isinstance(tag, bool) for tag in tags):
        tags = [_named(tag, names) for tag in tags]
    wrong = next((tag for tag in tags if not isinstance(tag, str) or not is_tag(tag)), None)
    if wrong is not None:
        raise _Bad(
            "unknown-tag",
            f"{wrong!r} is no tag that is known here",
            "write O, or B-LABEL and I-LABEL (IOB1, IOB2, IOBES, BILOU and BMES are read)",
        )
    return tags


def _named(tag: Any, names: Sequence[str]) -> Any:
    if not isinstance(tag, int):
        return tag
    if not names:
        raise _Bad("unnamed-tags", "the tags are numbers without names", "name them: `data.label_names: [O, B-X, ...]`")
    if not 0 <= tag < len(names):
        message = f"the tag {tag} has no name among the {len(names)} of `data.label_names`"
        raise _Bad("unnamed-tags", message, "name all tags, in their order, the first being number 0")
    return names[tag]


def _listed(value: Any, what: str) -> list[Any]:
    """A list; tables hold it as JSON or as words between spaces."""
    if isinstance(value, str):
        if not value.lstrip().startswith("["):
            return value.split()
        try:
            value = json.loads(value)
        except ValueError as error:
            raise _Bad("wrong-type", f"`{what}` is no valid JSON: {error}", 'write ["a", "list"]') from error
    if not isinstance(value, list | tuple):
        raise _Bad("wrong-type", f"`{what}` must be a list", 'write ["a", "list"]')
    return list(value)


# --- texts with spans ---------------------------------------------------------------------------------------------


def from_offsets(row: Row) -> tuple[Row, list[Fault]]:
    """Read a row of ``text`` and ``spans``: objects with start, end and label, or lists of these three."""
    text, faults = row.fields["text"], list[Fault]()
    try:
        found = sorted((_span(value) for value in _listed(row.fields["spans"], "spans")), key=lambda span: span[:2])
        spans = [_trimmed(span, text, row, faults) for span in found]
        if len(set(spans)) < len(spans):
            faults.append(_fault(row, "span-repeat", "a span is there twice", "it was taken once", "warning"))
            spans = list(dict.fromkeys(spans))
        _refuse_overlap(spans, text)
    except _Bad as bad:
        return row, [_fault(row, bad.code, str(bad), bad.fix)]
    inside = _inside_a_word(spans, text)
    if inside is not None:
        message = "a span begins or ends inside a word, and is learned and measured as whole words"
        faults.append(_fault(row, "span-edge", f"{message} (first: {inside!r})", "look at its offsets", "warning"))
    return Row({"text": text, "spans": [list(span) for span in spans]}, row.origin), faults


def _span(value: Any) -> tuple[int, int, str]:
    if isinstance(value, dict):
        keys = [next((key for key in known if key in value), None) for known in (_STARTS, _ENDS, _LABELS)]
        value = [value.get(key) if key else None for key in keys]
    wanted = 'write {"start": 3, "end": 9, "label": "place"}, or [3, 9, "place"]; offsets in characters, end exclusive'
    if not isinstance(value, list | tuple) or len(value) != 3:
        raise _Bad("span-shape", "a span is no start, end and label", wanted)
    start, end, label = value
    if not all(isinstance(n, int) and not isinstance(n, bool) for n in (start, end)):
        raise _Bad("span-shape", "the start or the end of a span is missing or no whole number", wanted)
    if not isinstance(label, str) or not label.strip():
        raise _Bad("span-shape", "a span has no label", wanted)
    return start, end, label


def _trimmed(span: tuple[int, int, str], text: str, row: Row, faults: list[Fault]) -> tuple[int, int, str]:
    """A span without white space at its ends; it must lie in the text."""
    start, end, label = span
    if not 0 <= start < end <= len(text):
        fix = "count characters, not bytes or tokens; the end is the character behind the last"
        raise _Bad("span-outside", f"the span {start} to {end} lies outside the text or is empty", fix)
    inner = text[start:end]
    if not inner.strip():
        raise _Bad("span-outside", f"the span {start} to {end} holds nothing but white space", "mend its offsets")
    if inner != inner.strip():
        faults.append(_fault(row, "span-space", "a span has white space at an end", "it was cut off", "warning"))
    return start + len(inner) - len(inner.lstrip()), end - len(inner) + len(inner.rstrip()), label


def _refuse_overlap(spans: Sequence[tuple[int, int, str]], text: str) -> None:
    for one, other in itertools.pairwise(spans):
        if other[0] < one[1]:
            shown = " and ".join(f"{text[start:end]!r} ({label})" for start, end, label in (one, other))
            raise _Bad("span-overlap", f"spans overlap: {shown}", "keep one of them: a token has one tag")


def _inside_a_word(spans: Sequence[tuple[int, int, str]], text: str) -> str | None:
    """The first span whose edges are not edges of words."""
    words = word_offsets(text)
    starts, ends = {start for start, _ in words}, {end for _, end in words}
    return next((text[start:end] for start, end, _ in spans if start not in starts or end not in ends), None)


def _fault(row: Row, code: str, message: str, fix: str, severity: Severity = "error", group: str = "") -> Fault:
    return Fault(code, message, row.origin, severity=severity, fix=fix, group=group)
