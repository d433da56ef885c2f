"""What a run keeps of its answers gives the metrics again that the run has reported."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

import tiny
from tunesmith.evaluation.metrics import measure, primary
from tunesmith.evaluation.stored import outputs_of, reference_of, stored
from tunesmith.prediction.outputs import Outputs, Truth
from tunesmith.recipe import Evaluate
from tunesmith.runs import StoredAnswer
from tunesmith.tasks import TASKS

SETTINGS = Evaluate(resamples=100)
CASES: dict[str, tuple[Any, list[dict[str, Any]], Outputs, list[str] | None]] = {
    "scores of any size": (
        "text-regression",
        [{"text": "a", "score": 1234567.5}, {"text": "b", "score": 1e-5}, {"text": "c", "score": -3.0}],
        Outputs(scores=np.array([1234560.0, 2e-5, -2.5])),
        None,
    ),
    "labels with commas and stops": (
        "multi-label-classification",
        [{"text": "a", "labels": ["U.S.", "a, b"]}, {"text": "b", "labels": []}, {"text": "c", "labels": ["a; b"]}],
        Outputs(probabilities=np.array([[0.9, 0.2, 0.1], [0.6, 0.1, 0.2], [0.1, 0.7, 0.8]])),
        ["U.S.", "a, b", "a; b"],
    ),
    "pairs": (
        "preference",
        [{"prompt": "q", "chosen": f"good {n}", "rejected": "bad"} for n in range(3)],
        Outputs(gaps=np.array([0.5, -0.25, 1e-7]), log_odds=True),
        None,
    ),
    "thumbs": (
        "feedback",
        [{"prompt": "q", "completion": f"a {n}", "label": n % 2 == 0} for n in range(3)],
        Outputs(scores=np.array([-1.0, -2.0, -0.5])),
        None,
    ),
    "rewards": (
        "prompts",
        [{"prompt": f"q {n}", "completion": ""} for n in range(3)],
        Outputs(texts=["a", "b", "c"], rewards=np.array([0.5, 1.5, 2.5])),
        None,
    ),
    "texts": (
        "text-generation",
        [{"prompt": "q", "completion": f"a {n}"} for n in range(3)],
        Outputs(texts=["a 0", "b", "a 2"], nats=np.array([1.0, 2.0, 3.0]), reference_bytes=np.array([3.0, 3.0, 3.0])),
        None,
    ),
}


@pytest.mark.parametrize("case", list(CASES))
def test_metrics_are_the_same_from_what_is_kept(case: str) -> None:
    name, fields, outputs, labels = CASES[case]
    task = TASKS[name]
    rows = tiny.rows_of(fields)
    right = Truth(task.answer, [task.reference(row) for row in rows], labels)
    lines = [json.dumps(dataclasses.asdict(one)) for one in stored(task, rows, outputs, right)]
    kept = [StoredAnswer(**json.loads(line)) for line in lines]
    again = Truth(task.answer, [reference_of(one, task.answer) for one in kept], labels)
    wanted = measure(outputs, right, SETTINGS)
    found = measure(outputs_of(kept, task.answer, labels), again, SETTINGS)
    shared = set(wanted) & set(found)
    assert next(name for name in primary(right) if name in wanted) in shared
    assert {name: found[name] for name in shared} == {name: wanted[name] for name in shared}


def test_what_one_row_lacks_no_row_has() -> None:
    task = TASKS["text-generation"]
    rows = tiny.rows_of([{"prompt": "q", "completion": "a"}, {"prompt": "r", "completion": "b"}])
    right = Truth("text", ["a", "b"])
    outputs = Outputs(texts=["a", "b"], nats=np.array([1.0, 2.0]), reference_bytes=np.array([1.0, 1.0]))
    first, second = stored(task, rows, outputs, right)
    assert outputs_of([first, dataclasses.replace(second, nats=None)], "text", None).nats is None
