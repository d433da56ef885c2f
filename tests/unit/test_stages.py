"""Several stages in one run: each begins where the one before it ended."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from conftest import labelled_rows
from tunesmith import tune
from tunesmith.data.rows import Origin, Row
from tunesmith.evaluation.answering import encode_rows
from tunesmith.models import inference
from tunesmith.models.saving import load_artefact
from tunesmith.runs import read_events
from tunesmith.tasks import TASKS


def test_full_training_starts_from_the_head_of_a_fit(tiny_encoder: Path, tmp_path: Path) -> None:
    """With a rate of almost nothing the second stage answers as the fit does: its head was not made anew."""
    keys = {"task": "text-classification", "model": str(tiny_encoder), "evaluate": {"baselines": []}}
    rows = labelled_rows(120)
    fit = tune(rows, method="features", run_dir=tmp_path / "fit", on_event=lambda event: None, precision="fp32", **keys)
    both = tune(
        rows,
        method="full",
        run_dir=tmp_path / "both",
        on_event=lambda event: None,
        precision="fp32",
        training={"max_steps": 2, "learning_rate": 1e-9},
        stages=[
            {"name": "probe", "parameters": {"kind": "none"}},
            {"name": "tune", "parameters": {"kind": "full"}},
        ],
        **keys,
    )
    asked = [Row(row, Origin("asked", n)) for n, row in enumerate(labelled_rows(10, seed=3), 1)]
    found = []
    for run in (fit, both):
        model, _ = load_artefact(run.model_folder)
        found.append(inference.class_probabilities(model, encode_rows(model, asked, TASKS["text-classification"])))
    np.testing.assert_allclose(found[0], found[1], atol=1e-4)
    assert [event["stage"] for event in read_events(both.path) if event["type"] == "stage_started"] == ["tune"]
