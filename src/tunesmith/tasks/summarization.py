"""Summarization: a document and one summary of it, or several that are all right."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from tunesmith.data.problems import Fault
from tunesmith.data.rows import Row
from tunesmith.tasks.base import Answer, Field, Message, Reading

if TYPE_CHECKING:
    from tunesmith.recipe import Data

MOST_REFERENCES = 9
"""Columns `summary_1` to `summary_9` are read."""

INSTRUCTION = "Summarize the text."

_DOCUMENT = Field(
    "document",
    "the text to summarize, or the list of its sentences",
    ("document", "text", "article", "source", "body", "content", "passage", "dialogue", "input"),
    "texts",
)
# A full stop, perhaps a closing quote or bracket, white space, and what can begin a sentence; or a line's end.
_SENTENCE_END = re.compile(r"(?:(?<=[.!?])|(?<=[.!?][\"')\]”’]))\s+(?=[\"'(\[“‘]*[A-Z0-9])|(?<=[。！？])|\n+")


class Summarization:
    """Say in short what a document says."""

    name = "summarization"
    what = "write a short text that says what a document says"
    forms: tuple[tuple[Field, ...], ...] = (
        (
            _DOCUMENT,
            Field(
                "summary",
                "its summary, or the list of several",
                ("summary", "highlights", "abstract", "target", "tldr", "headline", "output"),
                "texts",
                unasked=None,
            ),
        ),
        (
            _DOCUMENT,
            *(
                Field(f"summary_{n}", f"summary number {n}", (), "texts", required=n == 1, unasked=None)
                for n in range(1, MOST_REFERENCES + 1)
            ),
        ),
    )
    answer: Answer = "text"

    def reading(self, sample: Sequence[Row], data: Data) -> Reading:
        """A summary that stands in several columns, or in a list, becomes one list."""
        lists = any(isinstance(row.fields.get("document"), list) for row in sample)
        said = "documents are lists of sentences: they are joined by spaces" if lists else ""
        return Reading(convert=_converted, said=said)

    def input_text(self, row: Row) -> str:
        """The document."""
        document = row.fields["document"]
        return document if isinstance(document, str) else " ".join(document)

    def target_text(self, row: Row) -> str:
        """The first summary: the one that is learned, and shown."""
        return next(iter(self.reference(row)), "")

    def reference(self, row: Row) -> tuple[str, ...]:
        """All summaries; scores take the nearest."""
        return tuple(row.fields["summary"])

    def labels(self, row: Row) -> Sequence[str]:
        """None."""
        return ()

    def conversation(self, row: Row, labels: Sequence[str] | None, system_prompt: str | None) -> list[Message]:
        """Ask for a summary; the answer is the first one."""
        system = [{"role": "system", "content": system_prompt}] if system_prompt else []
        return [
            *system,
            {"role": "user", "content": f"{INSTRUCTION}\n\n{self.input_text(row)}"},
            {"role": "assistant", "content": self.target_text(row)},
        ]

    def problems(self, row: Row) -> Iterable[tuple[str, str]]:
        """Nothing beyond what reading finds."""
        return ()

    def shortened(self, row: Row, characters: int) -> Row:
        """The row with the end of its document cut off at a space: summaries rest on what stands first."""
        text = self.input_text(row)[:characters]
        whole = text.rfind(" ")
        return Row({**row.fields, "document": text[:whole] if whole > 0 else text}, row.origin)

    def sentences(self, row: Row) -> list[str]:
        """The document's sentences: as the data have them, else split at full stops and line ends."""
        document = row.fields["document"]
        parts = _SENTENCE_END.split(document) if isinstance(document, str) else document
        return [part.strip() for part in parts if part.strip()]


def _converted(row: Row) -> tuple[Row, list[Fault]]:
    """The row with its summaries as one list, and what is wrong with it."""
    document, faults = row.fields["document"], list[Fault]()
    given = [row.fields[name] for name in row.fields if name.startswith("summary") and row.fields[name] is not None]
    summaries: list[Any] = [one for value in given for one in (value if isinstance(value, list) else [value])]
    for name, value in (("document", document), ("summary", summaries)):
        parts = value if isinstance(value, list) else [value]
        if not all(isinstance(part, str) for part in parts):
            message = f"`{name}` must be a text or a list of texts"
            faults.append(Fault("wrong-type", message, row.origin, fix="write it as text", group=name))
        elif not any(part.strip() for part in parts) and (name == "document" or given):
            faults.append(Fault("empty-field", f"`{name}` is empty", row.origin, fix="fill it in", group=name))
    if faults:
        return row, faults
    summaries = [one for one in summaries if one.strip()]
    size = len(document) if isinstance(document, str) else sum(map(len, document))
    if any(len(one) > size for one in summaries):
        message = "the summary is longer than its document"
        fix = "are the columns the right way round? data.columns.document=COLUMN"
        faults.append(Fault("long-summary", message, row.origin, severity="warning", fix=fix))
    return Row({"document": document, "summary": summaries}, row.origin), faults
