"""What a recipe says of its data."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from tunesmith.strict import Part, Refusal

Augmentation = Literal["flip", "crop"]
LossOn = Literal["every-answer", "last-answer"]


class Data(Part):
    """Step 2: what to learn from, and what to hold back."""

    train: list[str] = Field(
        default=[],
        description="Files, folders, `hub:owner/name[/config][:split]` or catalog names to train on. One string is a "
        "list of one.",
    )
    corpus: list[str] = Field(
        default=[], description="Bare text of the domain, which `method: domain` learns from before the task."
    )
    preferences: list[str] = Field(
        default=[], description="Pairs of a better and a worse answer, from which `method: rlhf` learns what to reward."
    )
    validation: float | list[str] = Field(
        default=0.1, description="A share of the training data (0 to 0.5), or data of its own. Choices are made on it."
    )
    test: float | list[str] = Field(
        default=0.1, description="A share of the training data (0 to 0.5), or data of its own. Only measured on."
    )
    columns: dict[str, str | list[str]] = Field(
        default={},
        description="Field of the task -> column of the data, where the names differ, e.g. `text: review`. `labels` "
        "may be several columns of 0 and 1: `labels: [sport, politics]`.",
    )
    format: Literal["auto", "jsonl", "json", "csv", "tsv", "parquet", "text", "conll", "document", "passages"] = Field(
        default="auto",
        description="Format of the files; `auto` goes by the file name. `text`: a row a line; `document`: a row a "
        "file; `passages`: paragraphs, joined to about 1,000 characters.",
    )
    label_names: list[str] = Field(
        default=[], description="Names of labels or tags that the data write as numbers; the first is number 0."
    )
    label_separator: str | None = Field(
        default=None, min_length=1, description="Parts several labels in one text; default: `;`, `|` or `,`, as found."
    )
    tag_pieces: Literal["first", "all"] = Field(
        default="first", description="Which pieces of a word carry its tag in training, where tokens are classified."
    )
    encoding: str = Field(default="utf-8", description="Text encoding of the files. A BOM is accepted and reported.")
    group_by: str | None = Field(
        default=None,
        description="A column whose rows of one value stay on one side of every split: an author, a patient, a tool.",
    )
    read_rows: int | None = Field(
        default=None,
        ge=1,
        description="Read only the first so many rows of each file or hub data set (said aloud): for streams too long "
        "to be read to their end.",
    )
    max_rows: int | None = Field(
        default=None,
        ge=1,
        description="Use at most this many rows of the training data, chosen by content among all that are read.",
    )
    duplicates: Literal["keep", "drop"] = Field(
        default="keep",
        description="`drop`: of equal training rows only the first is used. Rows are equal if each field that the task "
        "reads is, letter for letter: `rejected`, a thumb, `tools` and a `weight` count too, other columns do not. Of "
        "a picture the picture itself and its label count. Documents of `language-modeling` are equal with case and "
        "spaces aside, and those that are nearly equal go too. The others go to `dropped.jsonl`.",
    )
    shots: int | None = Field(
        default=None,
        ge=1,
        description="Learn from so many training rows of each label (few-shot); a share for validation is dropped.",
    )
    shots_seed: int = Field(default=0, description="Seed that draws the `shots`. The test rows do not depend on it.")
    max_length: int | None = Field(
        default=None,
        ge=8,
        description="Longest example in tokens; default: what the model takes, at most 2048. Documents of "
        "`language-modeling` are cut into blocks of this length, and nothing of them is lost.",
    )
    packing: bool = Field(
        default=False,
        description="Put several short documents into one row of `causal-lm`; they do not see each other. Never "
        "changes what a document teaches; on a CPU, where rows need no padding, it gains nothing.",
    )
    truncate: bool = Field(
        default=True, description="Cut examples that are too long (reported). `false`: they are an error."
    )
    loss_on: LossOn = Field(
        default="every-answer",
        description="Which answers of a conversation are learned. A message's own `weight` goes before it.",
    )
    drop_bad: bool = Field(
        default=False, description="Leave out rows with errors, writing them to `dropped.jsonl`, instead of stopping."
    )
    seed: int = Field(default=0, description="Salt of the content hash that decides the splits.")

    @field_validator("train", "corpus", "preferences", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: object) -> object:
        return [str(value)] if isinstance(value, str | Path) else value

    @field_validator("validation", "test", mode="before")
    @classmethod
    def _share_or_list(cls, value: object) -> object:
        if isinstance(value, str | Path):
            try:
                return float(value)  # type: ignore[arg-type]  # a Path that is no number raises, as a str does
            except (ValueError, TypeError):
                return [str(value)]
        return value

    @field_validator("validation", "test")
    @classmethod
    def _share_in_range(cls, value: float | list[str]) -> float | list[str]:
        if isinstance(value, float) and not 0.0 <= value <= 0.5:
            raise Refusal(f"a share must lie between 0 and 0.5, not {value}", fix="lower it, or name files")
        return value
