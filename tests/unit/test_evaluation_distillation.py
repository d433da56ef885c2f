"""What a student kept of its teacher, on answers whose shares are known."""

from __future__ import annotations

import numpy as np
import pytest

from tunesmith.evaluation.comparison import System
from tunesmith.evaluation.distillation import ALONE, TEACHER, Lesson, Size, results, section
from tunesmith.evaluation.metrics import measure
from tunesmith.prediction.outputs import Outputs, Truth
from tunesmith.recipe import Evaluate

ROWS = 400
RIGHT = Truth("label", ["yes"] * ROWS, ["no", "yes"])
SETTINGS = Evaluate(resamples=500)
SIZES = Size(10, 40, 1.5), Size(20, 80, 3.0)


def system(name: str, accuracy: float) -> System:
    right = np.arange(ROWS) < accuracy * ROWS
    outputs = Outputs(probabilities=np.stack([~right, right], axis=1).astype(np.float64))
    return System(name, name, "", outputs, measure(outputs, RIGHT, SETTINGS), is_ceiling=name == TEACHER)


def test_shares_are_how_much_of_the_teachers_lead_was_made_up() -> None:
    others = [system(TEACHER, 0.9), system("base", 0.5), system(ALONE, 0.7)]
    found = results(Lesson(others, *SIZES), system("tuned", 0.8), others, RIGHT, SETTINGS)
    assert found.kept is not None and found.kept.value == pytest.approx(0.75)
    assert found.closed is not None and found.closed.value == pytest.approx(0.5)
    assert found.closed.low < 0.5 < found.closed.high
    gaps = {line.name: None if line.gap is None else round(line.gap.value, 6) for line in found.lines}
    assert gaps == {TEACHER: -0.1, "base": 0.3, ALONE: 0.1, "distilled": None}
    sizes = {line.name: line.size for line in found.lines}
    assert sizes[TEACHER] == SIZES[1] and sizes[ALONE] == sizes["distilled"] == SIZES[0]
    table = section(found)
    assert all(len(row) == len(table.columns) for row in table.rows)


def test_a_share_of_a_lead_that_is_not_there_is_not_given() -> None:
    others = [system(TEACHER, 0.8), system(ALONE, 0.8)]
    found = results(Lesson(others, *SIZES), system("tuned", 0.8), others, RIGHT, SETTINGS)
    assert found.closed is None and found.kept is None
    assert found.as_dict()["closed"] is None
