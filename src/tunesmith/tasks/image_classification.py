"""Image classification: one label out of two or more for each picture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.data import pictures
from tunesmith.data.problems import Fault
from tunesmith.data.rows import CONTENT, PICTURE, Origin, Row
from tunesmith.errors import DataError
from tunesmith.tasks.base import Answer, Field, Message, Reading

if TYPE_CHECKING:
    from tunesmith.recipe import Data


class ImageClassification:
    """One label a picture, by a head on the features of a vision model."""

    name = "image-classification"
    what = "give each picture one label out of a fixed set"
    forms: tuple[tuple[Field, ...], ...] = (
        (
            Field(
                "image", "the picture, or its path", ("path", "file", "filename", "image_path", "picture"), "picture"
            ),
            Field("label", "its label", ("category", "class", "target"), "label"),
        ),
    )
    answer: Answer = "label"

    def reading(self, sample: Sequence[Row], data: Data) -> Reading:
        """Find the picture, which may be named from the file's own folder, and see whether it can be read."""
        return Reading(_found)

    def input_text(self, row: Row) -> str:
        """The path."""
        return str(row.fields["image"])

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
        """There is none: the models of this task do not read.

        Raises:
            DataError: Always.
        """
        raise DataError("a picture has no form as a conversation", where=str(row.origin))

    def problems(self, row: Row) -> Iterable[tuple[str, str]]:
        """Nothing beyond the schema."""
        return ()


def _found(row: Row) -> tuple[Row, list[Fault]]:
    image = row.fields["image"]
    given = image if isinstance(image, str) else pictures.embedded(image)
    named = "" if isinstance(given, bytes) else str(given)
    try:
        if not isinstance(given, bytes) and row.origin.file.startswith("hub:"):
            given = _fetched(named, row.origin)
        if isinstance(given, bytes):
            pictures.read_picture(given)
            path = pictures.unpacked(given)
        else:
            path = pictures.located(named, Path(row.origin.file))
            named = str(path)
            if not path.is_file():
                raise DataError("named, but not there", fix="paths count from the file's folder, or from here")
            pictures.read_picture(path)
        return Row({**row.fields, PICTURE: str(path), CONTENT: pictures.digest(path)}, row.origin), []
    except DataError as error:
        told = named in ("", str(row.origin), row.origin.file)
        what = error.what if told else f"{error.what} ({named})"
        drop = "; `data.drop_bad: true` leaves such pictures out of the training"
        fix = (error.fix or "leave it out") + ("" if row.origin.file == "input" else drop)
        return row, [Fault("unreadable-picture", what, row.origin, fix=fix, group=error.what)]


def _fetched(path: str, origin: Origin) -> bytes:
    """A picture that a data set of the hub names. Files of this machine are none of its business."""
    from tunesmith import catalog

    content = catalog.hub_picture(path, origin.file, origin.line)
    if content is None:
        fix = "take one that holds its pictures, or fetch its files (`hf download`) and name their folder in its place"
        raise DataError("the data set names a picture that is not in it", fix=fix)
    return content
