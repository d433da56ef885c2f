"""Tunesmith's loop on a sentence classifier, then its evaluation; batch size, rate and schedule of HF Trainer."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from generate import listener
from measuring import Clock, read_lines, read_spec, write_result

from tunesmith import objectives
from tunesmith.data.batches import write_tokens
from tunesmith.data.render_labels import classification_renderer
from tunesmith.data.rows import Origin, Row
from tunesmith.models.build import build_for_training
from tunesmith.models.model import Model
from tunesmith.models.precision import choose_dtype, default_device
from tunesmith.prediction.answering import answer
from tunesmith.prediction.setting import Setting
from tunesmith.recipe import Data, Full, Generation, Training
from tunesmith.tasks import TASKS
from tunesmith.training.compiling import compile_if_worthwhile
from tunesmith.training.defaults import with_defaults
from tunesmith.training.loop import Trainer

LABELS = ["0", "1"]
TASK = TASKS["text-classification"]


def main() -> None:
    spec = read_spec()
    out = Path(spec["out"])
    model, settings = build(spec)
    rows = rows_of(spec["train"])
    render = classification_renderer(model.tokenizer, TASK, LABELS, model.max_length)
    tokens = write_tokens(rows, render, out / "tokens")
    clock = Clock()
    clock.begin()
    trainer = Trainer(
        model, objectives.make("classify", settings), tokens, None, settings, out, on_event=listener(clock, [])
    )
    compile_if_worthwhile(model, settings, trainer.steps, print)
    trainer.run()
    measured = clock.result()

    test = rows_of(spec["held_out"])
    started = time.perf_counter()
    outputs = answer(model, test, Setting(TASK, LABELS, None, Generation()))
    seconds = time.perf_counter() - started
    assert outputs.probabilities is not None
    wanted = np.asarray([int(row.fields["label"]) for row in test])
    write_result(
        spec,
        **measured,
        evaluation_seconds=seconds,
        correct=int((outputs.probabilities.argmax(1) == wanted).sum()),
        held_out_rows=len(test),
        precision=str(model.dtype),
    )


def build(spec: dict[str, Any]) -> tuple[Model, Training]:
    """The model with its head, and the loop's settings."""
    device = default_device()
    settings = Training(
        epochs=1,
        max_steps=spec["steps"],
        batch_size=spec["batch_size"],
        learning_rate=spec["learning_rate"],
        warmup=0.0,
        weight_decay=0.0,
        seed=spec["seed"],
        dropout=spec["options"].get("dropout"),
        compile=spec["options"]["compile"],
    )
    settings = with_defaults(settings, kind="full", form="classify", device=device, epoch_examples=0)
    model = build_for_training(
        Path(spec["model"]),
        name="minilm-l6",
        form="classify",
        labels=LABELS,
        choice=Full(),
        training=settings,
        data=Data(max_length=spec["max_length"]),
        dtype=choose_dtype("auto", device),
        device=device,
    )
    return model, settings


def rows_of(path: str) -> list[Row]:
    """Texts with their labels as the task names them."""
    return [
        Row({"text": row["text"], "label": str(row["label"])}, Origin(path, number))
        for number, row in enumerate(read_lines(path), 1)
    ]


if __name__ == "__main__":
    main()
