"""The pictures that a model got wrong, small and inside the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tunesmith.data.pictures import read_picture
from tunesmith.errors import DataError
from tunesmith.evaluation.label_metrics import confidences, reference_numbers
from tunesmith.prediction.outputs import Outputs
from tunesmith.prediction.reading import label_numbers

LONGEST_SIDE = 200
MOST_SHOWN = 24


@dataclass(frozen=True)
class WrongPicture:
    """A test picture with a wrong answer.

    Attributes:
        path: Where it is.
        truth: The right label.
        answer: What the model said.
        confidence: How sure it was.
        data_uri: The picture, small; empty if it can no longer be read.
    """

    path: str
    truth: str
    answer: str
    confidence: float
    data_uri: str


def wrong_pictures(
    paths: Sequence[str], references: Sequence[str], outputs: Outputs, labels: Sequence[str]
) -> list[WrongPicture]:
    """The surest mistakes first, at most :data:`MOST_SHOWN`.

    Args:
        paths: N test pictures.
        references: N right labels.
        outputs: What the model said.
        labels: The classes.
    """
    chosen, right = label_numbers(outputs, labels), reference_numbers(references, labels)
    sure = confidences(outputs)
    if sure is None:  # all of them rounded to 0 and 1
        sure = np.ones(len(references))
    wrong = sorted((row for row in range(len(paths)) if chosen[row] != right[row]), key=lambda row: -sure[row])
    return [
        WrongPicture(
            paths[row], references[row], labels[int(chosen[row])], float(sure[row]), data_uri(Path(paths[row]))
        )
        for row in wrong[:MOST_SHOWN]
    ]


def data_uri(path: Path) -> str:
    """A picture as a small JPEG in a ``data:`` address; empty if it cannot be read."""
    try:
        picture = read_picture(path)
    except DataError:
        return ""
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
