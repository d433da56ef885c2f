"""Tags of tokens and the spans that they mean, in the schemes that files come in.

IOB2 opens every span with B-; IOB1 only where the span before it is of the same type; IO never. IOBES and BILOU (also
BMES, BMEWO) mark the last token and spans of one token too. One rule reads them all: that of ``conlleval``, the script
of the CoNLL shared tasks (Tjong Kim Sang and De Meulder 2003, arXiv cs/0306050), by which an I- after another type or
after O opens a span.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

OUTSIDE = "O"
_TAG = re.compile(r"O|([BIESLUMW])[-_](.+)", re.DOTALL)
_OPEN = frozenset("BSUW")
_CLOSE = frozenset("ESULW")

TokenSpan = tuple[int, int, str]
"""First token, the one behind the last, and the label."""


def is_tag(text: str) -> bool:
    """Whether this is a tag of one of the schemes."""
    return _TAG.fullmatch(text) is not None


def spans_of_tags(tags: Iterable[str]) -> list[TokenSpan]:
    """The spans that tags mean, in their order."""
    spans: list[TokenSpan] = []
    start, open_label = 0, None
    number = -1
    for number, tag in enumerate(tags):
        mark, label = parts(tag)
        if open_label is not None and (label != open_label or mark in _OPEN):
            spans.append((start, number, open_label))
            open_label = None
        if label is not None and open_label is None:
            start, open_label = number, label
        if open_label is not None and mark in _CLOSE:
            spans.append((start, number + 1, open_label))
            open_label = None
    if open_label is not None:
        spans.append((start, number + 1, open_label))
    return spans


def tags_of_spans(spans: Iterable[TokenSpan], num_tokens: int) -> list[str]:
    """The same as IOB2 tags. Of overlapping spans the first is taken."""
    tags = [OUTSIDE] * num_tokens
    for start, end, label in spans:
        if all(tag == OUTSIDE for tag in tags[start:end]):
            tags[start:end] = [f"B-{label}"] + [f"I-{label}"] * (end - start - 1)
    return tags


def scheme_of(sentences: Iterable[Sequence[str]]) -> str | None:
    """The scheme of tagged sentences, from the marks that they use and where; ``None`` without any span."""
    marks: set[str] = set()
    needless_b, early_i = False, False
    for tags in sentences:
        before: str | None = None
        for tag in tags:
            mark, label = parts(tag)
            marks.add(mark)
            needless_b |= mark == "B" and label != before
            early_i |= mark == "I" and label != before
            before = label
    for scheme, telling in (("BILOU", "LU"), ("BMES", "MW"), ("IOBES", "ES")):
        if marks & set(telling):
            return scheme
    if "B" in marks:
        return "IOB1" if early_i and not needless_b else "IOB2"
    return "IO" if "I" in marks else None


def first_unopened(tags: Iterable[str]) -> int | None:
    """The first token whose I-, M-, E- or L- continues nothing; ``None`` if there is none."""
    before: str | None = None
    for number, tag in enumerate(tags):
        mark, label = parts(tag)
        if label is not None and mark not in _OPEN and label != before:
            return number
        before = None if mark in _CLOSE else label
    return None


def parts(tag: str) -> tuple[str, str | None]:
    """Mark and label of a tag: ``("B", "person")``; ``("O", None)`` outside."""
    found = _TAG.fullmatch(tag)
    return (found[1], found[2]) if found and found[1] else (OUTSIDE, None)
