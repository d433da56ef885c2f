"""Tunesmith's loop on a token classifier, then its evaluation; batch size, rate and schedule of HF Trainer."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from generate import listener
from measuring import Clock, read_lines, read_spec, write_result

from tunesmith import objectives
from tunesmith.data.batches import write_tokens
from tunesmith.data.rows import Origin, Row
from tunesmith.data.spans import from_tags
from tunesmith.data.tagging import tag_renderer
from tunesmith.disk import write_text
from tunesmith.models.build import build_for_training
from tunesmith.models.precision import choose_dtype, default_device
from tunesmith.prediction.span_answers import by_head
from tunesmith.recipe import Data, Full, Training
from tunesmith.training.compiling import compile_if_worthwhile
from tunesmith.training.defaults import with_defaults
from tunesmith.training.loop import Trainer


def main() -> None:
    spec = read_spec()
    out, device = Path(spec["out"]), default_device()
    settings = Training(
        epochs=spec["epochs"],
        max_steps=spec["steps"],
        batch_size=spec["batch_size"],
        learning_rate=spec["learning_rate"],
        warmup=0.0,
        weight_decay=0.0,
        seed=spec["seed"],
        dropout=spec["options"].get("dropout"),
        compile=spec["options"].get("compile", "auto"),
    )
    settings = with_defaults(settings, kind="full", form="tag", device=device, epoch_examples=0)
    model = build_for_training(
        Path(spec["model"]),
        name="minilm-l6",
        form="tag",
        labels=spec["labels"],
        choice=Full(),
        training=settings,
        data=Data(max_length=spec["max_length"]),
        dtype=choose_dtype("auto", device),
        device=device,
    )
    render = tag_renderer(model.tokenizer, spec["labels"], model.max_length)
    tokens = write_tokens(rows_of(spec["train"]), render, out / "tokens")
    clock = Clock()
    clock.begin()
    trainer = Trainer(
        model, objectives.make("tag", settings), tokens, None, settings, out, on_event=listener(clock, [])
    )
    compile_if_worthwhile(model, settings, trainer.steps, print)
    trainer.run()
    measured = clock.result()

    test = rows_of(spec["held_out"])
    started = time.perf_counter()
    outputs = by_head(model, test)
    seconds = time.perf_counter() - started
    found: list[Any] = [[list(span.place) for span in spans] for spans in outputs.spans or []]
    write_text(out / "spans.json", json.dumps(found))
    write_result(spec, **measured, evaluation_seconds=seconds, held_out_rows=len(test), precision=str(model.dtype))


def rows_of(path: str) -> list[Row]:
    """Sentences as the task has them."""
    read = from_tags("IOB2", [])
    return [read(Row(row, Origin(path, number)))[0] for number, row in enumerate(read_lines(path), 1)]


if __name__ == "__main__":
    main()
