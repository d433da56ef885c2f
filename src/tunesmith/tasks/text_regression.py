"""Text regression: a score for each text, as a number or as one of a few grades."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING

from tunesmith.data.rows import Row
from tunesmith.data.scores import convert, grade_name
from tunesmith.tasks.base import Answer, Field, Message, Reading
from tunesmith.tasks.text_classification import TEXT

if TYPE_CHECKING:
    from tunesmith.recipe import Data


class TextRegression:
    """One number a text: by a head, or by a generating model that writes it."""

    name = "text-regression"
    what = "give each text a score"
    forms: tuple[tuple[Field, ...], ...] = (
        (
            TEXT,
            Field(
                "score",
                "its score",
                ("score", "rating", "stars", "grade", "value", "target", "label"),
                "score",
                unasked=0.0,
            ),
        ),
    )
    answer: Answer = "score"

    def reading(self, sample: Sequence[Row], data: Data) -> Reading:
        """Scores become numbers."""
        return Reading(convert)

    def input_text(self, row: Row) -> str:
        """The text."""
        return str(row.fields["text"])

    def target_text(self, row: Row) -> str:
        """The score, with as many digits as it needs, and no exponent."""
        text = f"{row.fields['score']:.6g}"
        return f"{Decimal(repr(float(row.fields['score']))).normalize():f}" if "e" in text else text

    def reference(self, row: Row) -> float:
        """The score."""
        return float(row.fields["score"])

    def labels(self, row: Row) -> Sequence[str]:
        """The score, if it may be a grade."""
        grade = grade_name(self.reference(row))
        return () if grade is None else (grade,)

    def conversation(self, row: Row, labels: Sequence[str] | None, system_prompt: str | None) -> list[Message]:
        """Ask for the score; the answer is the number."""
        system = [{"role": "system", "content": system_prompt}] if system_prompt else []
        return [
            *system,
            {"role": "user", "content": f"Score the text with a number.\n\nText: {self.input_text(row)}\nScore:"},
            {"role": "assistant", "content": self.target_text(row)},
        ]

    def problems(self, row: Row) -> Iterable[tuple[str, str]]:
        """Nothing beyond what reading finds."""
        return ()
