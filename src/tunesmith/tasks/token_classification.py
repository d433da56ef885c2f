"""Token classification: find spans of the text and label them, as in named entity recognition."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from tunesmith.data.rows import Row
from tunesmith.data.spans import Span, from_offsets, from_tags, inline, sampled_scheme, spans_of
from tunesmith.tasks.base import Answer, Field, Message, Reading

if TYPE_CHECKING:
    from tunesmith.recipe import Data

NONE = "none"
"""What a model that writes answers says of a text without spans."""


class TokenClassification:
    """Labelled spans of a text: by a head on every token, or by a generating model that lists them."""

    name = "token-classification"
    what = "find the spans of a text that have a label, such as names of people and places"
    forms: tuple[tuple[Field, ...], ...] = (
        (
            Field("tokens", "the words of the sentence", ("tokens", "words"), "tokens"),
            Field("tags", "the tag of each token", ("tags", "ner_tags", "ner", "labels"), "tags", unasked=None),
        ),
        (
            Field("text", "the text", ("text", "sentence", "content")),
            Field("spans", "its labelled spans", ("spans", "entities", "ents", "labels", "label"), "spans", unasked=()),
        ),
    )
    answer: Answer = "spans"

    def reading(self, sample: Sequence[Row], data: Data) -> Reading:
        """Tags of any scheme, or spans in any of their shapes, become spans of characters."""
        if sample and "tokens" in sample[0].fields:
            scheme = sampled_scheme(sample, data.label_names)
            said = f"the tags are of the scheme {scheme} and become spans of characters" if scheme else ""
            return Reading(from_tags(scheme, data.label_names), said)
        return Reading(from_offsets)

    def input_text(self, row: Row) -> str:
        """The text."""
        return str(row.fields["text"])

    def target_text(self, row: Row) -> str:
        """The spans, as a reader lists them."""
        return inline(spans_of(row))

    def reference(self, row: Row) -> list[Span]:
        """The spans."""
        return spans_of(row)

    def labels(self, row: Row) -> Sequence[str]:
        """The label of each span."""
        return [span.label for span in spans_of(row)]

    def conversation(self, row: Row, labels: Sequence[str] | None, system_prompt: str | None) -> list[Message]:
        """Ask for one span a line, as ``label: words``."""
        names = ", ".join(labels or [])
        instruction = f"List the parts of the text that are one of: {names}. Write one a line, as `label: words`."
        system = [{"role": "system", "content": system_prompt}] if system_prompt else []
        lines = [f"{span.label}: {' '.join(span.text.split())}" for span in spans_of(row)]
        return [
            *system,
            {
                "role": "user",
                "content": f"{instruction} Write `{NONE}` if there is none.\n\nText: {row.fields['text']}",
            },
            {"role": "assistant", "content": "\n".join(lines) or NONE},
        ]

    def problems(self, row: Row) -> Iterable[tuple[str, str]]:
        """Nothing beyond what reading finds."""
        return ()


def written_spans(answer: str, text: str, labels: Sequence[str]) -> list[Span]:
    """The spans that a written answer names, looked up in the text.

    Each line names the first place that holds its words and that no line before it has taken, so an answer in the order
    of the text names what it means. White space of any kind and length counts as one space. Where labels or words hold
    colons, the longest label counts whose words are there. Lines with unknown labels or with words that are not there
    name nothing.
    """
    known = {label.casefold(): label for label in labels}
    spans: list[Span] = []
    for line in answer.splitlines():
        places = ((label, _free_place(words, text, spans)) for label, words in _readings(line, known))
        found = next(((label, place) for label, place in places if place is not None), None)
        if found is not None:
            label, (start, end) = found
            spans.append(Span(start, end, label, text[start:end]))
    return sorted(spans)


def _readings(line: str, known: Mapping[str, str]) -> Iterator[tuple[str, list[str]]]:
    """What a line may mean, as a label and words: the longest label first."""
    parts = line.split(":")
    for count in range(len(parts) - 1, 0, -1):
        label = known.get(":".join(parts[:count]).strip().casefold())
        words = ":".join(parts[count:]).split()
        if label is not None and words:
            yield label, words


def _free_place(words: Sequence[str], text: str, taken: Sequence[Span]) -> tuple[int, int] | None:
    pattern = re.compile(r"\s+".join(map(re.escape, words)))
    found = pattern.search(text)
    while found is not None:
        start, end = found.span()
        if all(end <= span.start or start >= span.end for span in taken):
            return start, end
        found = pattern.search(text, start + 1)
    return None
