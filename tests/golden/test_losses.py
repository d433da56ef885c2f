"""Losses of seeded runs as they were when somebody last looked: a change of any of them wants a reason.

Tokens and weights follow from arithmetic, so that neither a tokenizer's training nor a generator has a say in them.
To write them anew: ``TUNESMITH_WRITE_GOLDEN=1 pytest tests/golden``, and say in the commit why they changed.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from tunesmith import objectives
from tunesmith.data.batches import write_tokens
from tunesmith.data.render import Rendered
from tunesmith.data.rows import Row
from tunesmith.events import Step
from tunesmith.recipe import Full, LoRA, Training
from tunesmith.training.loop import Trainer

GOLDEN = Path(__file__).parent / "losses.json"
SETTINGS = Training(
    batch_size=8, max_steps=5, learning_rate=1e-2, micro_tokens=64, dropout=0.0, seed=3, max_grad_norm=1.0
)


def example(row: Row, with_label: bool) -> Rendered:
    """5 to 20 tokens below 50; a label, or a prompt and an answer whose tokens differ in weight."""
    n = int(row.fields["n"])
    ids = [7 + (n * 11 + place * place * 5) % 43 for place in range(5 + n * 7 % 16)]
    if with_label:
        return Rendered(ids, label=(n // 3) % 2)
    prompt = 1 + n % 4
    return Rendered(ids, [0.0] * prompt + [0.5 + place % 2 for place in range(len(ids) - prompt)])


def five_steps(form: Any, folder: Path, place: Path) -> list[float]:
    model = tiny.build(folder, form, Full() if form == "classify" else LoRA(rank=4), SETTINGS)
    with torch.no_grad():
        for number, parameter in enumerate(model.network.parameters()):
            wave = torch.arange(parameter.numel(), dtype=torch.float64).mul(0.7).add(number).sin().mul(0.1)
            parameter.copy_(wave.reshape(parameter.shape) + (1.0 if parameter.ndim == 1 else 0.0))
    rows = tiny.rows_of([{"n": n} for n in range(40)])
    data = write_tokens(rows, lambda row: example(row, form == "classify"), place / "tokens")
    events = tiny.Events()
    objective = objectives.make("classify" if form == "classify" else "supervised", SETTINGS)
    Trainer(model, objective, data, None, SETTINGS, place, on_event=events).run()
    return [step.loss for step in events.of(Step)]


@pytest.mark.parametrize(
    ("name", "form", "base"),
    [("classify-full", "classify", "tiny_encoder"), ("supervised-lora", "generate", "tiny_decoder")],
)
def test_losses(name: str, form: str, base: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    found = five_steps(form, request.getfixturevalue(base), tmp_path)
    golden = json.loads(GOLDEN.read_text(encoding="utf-8")) if GOLDEN.is_file() else {}
    if os.environ.get("TUNESMITH_WRITE_GOLDEN"):
        GOLDEN.write_text(json.dumps(golden | {name: found}, indent=1) + "\n", encoding="utf-8")
        pytest.skip("written anew")
    assert found == pytest.approx(golden[name], rel=1e-6)
    assert len(set(found)) == 5
