"""Language modelling: learn from bare text how a domain writes, without any label."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from tunesmith.data.rows import Row
from tunesmith.tasks.base import Answer, Field, Message, Reading

if TYPE_CHECKING:
    from tunesmith.recipe import Data


class LanguageModeling:
    """Give texts a likelihood: a decoder predicts the next token, an encoder the masked ones."""

    name = "language-modeling"
    what = "learn the language of a corpus from bare text"
    forms: tuple[tuple[Field, ...], ...] = (
        (Field("text", "a document", ("text", "document", "content", "body", "article", "abstract", "passage")),),
    )
    answer: Answer = "likelihood"

    def reading(self, sample: Sequence[Row], data: Data) -> Reading:
        """Rows are taken as they are."""
        return Reading()

    def input_text(self, row: Row) -> str:
        """The document: duplicates and leakage are judged by it."""
        return str(row.fields["text"])

    def target_text(self, row: Row) -> str:
        """Nothing: a document has no answer beside it."""
        return ""

    def reference(self, row: Row) -> str:
        """The document, whose likelihood is measured."""
        return self.input_text(row)

    def labels(self, row: Row) -> Sequence[str]:
        """None."""
        return ()

    def conversation(self, row: Row, labels: Sequence[str] | None, system_prompt: str | None) -> list[Message]:
        """The document as something that an assistant wrote; language objectives do not ask for this."""
        return [{"role": "assistant", "content": self.input_text(row)}]

    def problems(self, row: Row) -> Iterable[tuple[str, str]]:
        """Nothing beyond the schema."""
        return ()
