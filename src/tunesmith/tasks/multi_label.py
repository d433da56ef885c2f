"""Multi-label classification: any number of labels for each text."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from tunesmith.data.label_sets import SEPARATORS, convert, separator_of
from tunesmith.data.rows import Row
from tunesmith.tasks.base import Answer, Field, Message, Reading
from tunesmith.tasks.text_classification import TEXT

if TYPE_CHECKING:
    from tunesmith.recipe import Data

NONE = "none"
"""What a generating model writes where no label applies."""


class MultiLabelClassification:
    """Every label that applies: by a head with a threshold each, or by a generating model that lists them."""

    name = "multi-label-classification"
    what = "give each text all labels that apply, out of a fixed set"
    forms: tuple[tuple[Field, ...], ...] = (
        (
            TEXT,
            Field(
                "labels", "its labels: a list, text with separators, or columns of 0 and 1",
                ("labels", "tags", "categories", "classes", "topics", "genres", "label"), "labels", unasked=(),
            ),
        ),
    )  # fmt: skip
    answer: Answer = "labels"

    def reading(self, sample: Sequence[Row], data: Data) -> Reading:
        """Lists are taken as they are, texts are parted at the separator that the first rows show."""
        texts = [row.fields["labels"] for row in sample if isinstance(row.fields.get("labels"), str)]
        separator = data.label_separator or separator_of(texts)
        said = ""
        if texts and separator and not data.label_separator:
            name = {mark: name for name, mark in SEPARATORS.items()}[separator]
            said = f"labels are parted at each {name}; another separator: data.label_separator"
        return Reading(functools.partial(convert, separator=separator, names=data.label_names), said)

    def input_text(self, row: Row) -> str:
        """The text."""
        return str(row.fields["text"])

    def target_text(self, row: Row) -> str:
        """The labels, sorted."""
        return "; ".join(self.labels(row)) or NONE

    def reference(self, row: Row) -> list[str]:
        """The labels, sorted."""
        return list(self.labels(row))

    def labels(self, row: Row) -> Sequence[str]:
        """All of them, sorted."""
        return sorted(row.fields["labels"])

    def conversation(self, row: Row, labels: Sequence[str] | None, system_prompt: str | None) -> list[Message]:
        """Ask for the labels by name; the answer lists them."""
        names = "; ".join(labels or [])
        instruction = "Which labels apply to the text? Answer with all that do, separated by semicolons, or `none`."
        system = [{"role": "system", "content": system_prompt}] if system_prompt else []
        return [
            *system,
            {
                "role": "user",
                "content": f"{instruction}\nLabels: {names}\n\nText: {self.input_text(row)}\nLabels that apply:",
            },
            {"role": "assistant", "content": self.target_text(row)},
        ]

    def problems(self, row: Row) -> Iterable[tuple[str, str]]:
        """Nothing beyond what reading finds."""
        return ()
