"""Text classification: one label out of two or more for each text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from tunesmith.data.problems import Fault
from tunesmith.data.rows import Row
from tunesmith.tasks.base import Answer, Field, Message, Reading

if TYPE_CHECKING:
    from tunesmith.recipe import Data


TEXT = Field("text", "the text to classify", ("text", "sentence", "content", "review", "question", "input"))


class TextClassification:
    """One label a text: by a head on an encoder, or by a generating model that names the label."""

    name = "text-classification"
    what = "give each text one label out of a fixed set"
    forms: tuple[tuple[Field, ...], ...] = (
        (
            TEXT,
            Field("label", "its label", ("label", "category", "class", "target", "sentiment", "intent"), "label"),
        ),
    )
    answer: Answer = "label"

    def reading(self, sample: Sequence[Row], data: Data) -> Reading:
        """Labels that are numbers get their names, if the recipe has some."""
        if not data.label_names:
            return Reading()
        names = {str(number): name for number, name in enumerate(data.label_names)}
        return Reading(lambda row: _named(row, names))

    def input_text(self, row: Row) -> str:
        """The text."""
        return str(row.fields["text"])

    def target_text(self, row: Row) -> str:
        """The label."""
        return str(row.fields["label"])

    def reference(self, row: Row) -> str:
        """The label."""
        return self.target_text(row)

    def labels(self, row: Row) -> Sequence[str]:
        """The one label."""
        return (self.target_text(row),)

    def conversation(self, row: Row, labels: Sequence[str] | None, system_prompt: str | None) -> list[Message]:
        """Ask for the label by name; the answer is the label."""
        names = ", ".join(labels or [])
        instruction = "Classify the text." + (f" Answer with one of: {names}." if names else "")
        system = [{"role": "system", "content": system_prompt}] if system_prompt else []
        return [
            *system,
            {"role": "user", "content": f"{instruction}\n\nText: {self.input_text(row)}\nLabel:"},
            {"role": "assistant", "content": self.target_text(row)},
        ]

    def problems(self, row: Row) -> Iterable[tuple[str, str]]:
        """Nothing beyond the schema."""
        return ()


def _named(row: Row, names: dict[str, str]) -> tuple[Row, list[Fault]]:
    label = str(row.fields["label"])
    if label in names:
        return Row({**row.fields, "label": names[label]}, row.origin), []
    if label in names.values():
        return row, []
    message, fix = f"the label {label!r} has no name in `data.label_names`", "name all labels, in their order"
    return row, [Fault("unnamed-label", message, row.origin, fix=fix, group=label)]
