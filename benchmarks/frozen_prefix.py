"""What the cache of frozen layers saves: time of an epoch with and without it, against what a profile predicts.

    python benchmarks/frozen_prefix.py --out results.json                  four cases, five epochs each
    python benchmarks/frozen_prefix.py --only minilm-l6/head --rows 320

The prediction is made from the run without: the time inside the frozen layers falls away, the time to read their output
comes on top. Classifies sentences of sentence_polarity in fp32 without dropout; the weights of both runs are compared.
Seconds are of processor time on one thread, which other work on the machine changes little.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from common import results_in, snippets

from tunesmith import catalog, environment, objectives
from tunesmith.data.batches import Batch, collate, write_tokens
from tunesmith.data.render_labels import classification_renderer
from tunesmith.data.rows import Origin, Row
from tunesmith.disk import write_json
from tunesmith.events import Step
from tunesmith.models.build import build_for_training
from tunesmith.models.model import Model
from tunesmith.recipe import Data, Head, Layers, Parameters, Training
from tunesmith.tasks import TASKS
from tunesmith.training.defaults import with_defaults
from tunesmith.training.frozen_cache import remember
from tunesmith.training.loop import WIDTH_MULTIPLE, Trainer, batches_of_epoch, pieces

LABELS = ["neg", "pos"]
CASES: dict[str, tuple[str, Parameters]] = {
    "minilm-l6/last-2": ("minilm-l6", Layers(layers="last 2")),
    "minilm-l6/head": ("minilm-l6", Head()),
    "smollm2/last-4": ("smollm2-135m-instruct", Layers(layers="last 4")),
    "smollm2/head": ("smollm2-135m-instruct", Head()),
}


@dataclass
class Clock:
    """Seconds of each epoch, from the end of one update to the end of the next."""

    last: float = 0.0
    epochs: dict[int, float] = field(default_factory=dict)
    updates: int = 0
    per_epoch: int = 1

    def __call__(self, event: object) -> None:
        if isinstance(event, Step):
            epoch, now = self.updates // self.per_epoch, time.process_time()
            self.epochs[epoch] = self.epochs.get(epoch, 0.0) + now - self.last
            self.updates, self.last = self.updates + 1, now

    def later(self) -> float:
        """Mean seconds of an epoch from the second on."""
        return sum(self.epochs[n] for n in range(1, len(self.epochs))) / (len(self.epochs) - 1)


class FrozenTime:
    """Seconds inside the frozen layers, or in the whole body where all of it is frozen; from the second epoch on."""

    def __init__(self, model: Model, clock: Clock) -> None:
        assert model.prefix is not None
        self.seconds, self._clock, self._began = 0.0, clock, 0.0
        if model.prefix.whole:
            self._body = model.packed
            model.packed = self._packed  # type: ignore[method-assign]
            return
        for block in model.prefix.blocks:
            block.register_forward_pre_hook(self._begin)
            block.register_forward_hook(self._end)

    def _packed(self, batch: Batch) -> torch.Tensor:
        self._begin()
        found = self._body(batch)
        self._end()
        return found

    def _begin(self, *_: Any) -> None:
        self._began = time.process_time()

    def _end(self, *_: Any) -> None:
        if self._clock.updates >= self._clock.per_epoch:
            self.seconds += time.process_time() - self._began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=[*CASES])
    parser.add_argument("--rows", type=int, default=192, help="of the small model; the other one gets a third")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--out", type=Path, help="the results as JSON; cases measured before stay in it")
    given = parser.parse_args()
    torch.set_num_threads(1)
    result = results_in(given.out, cases={})
    for name in [given.only] if given.only else CASES:
        rows, load = given.rows if "minilm" in name else given.rows // 3, os.getloadavg()[0]
        found = _measure(*CASES[name], rows, given.epochs)
        result["cases"][name] = {"rows": rows, "epochs": given.epochs, **found, "load_before": round(load, 1)}
        print(name, json.dumps(result["cases"][name]), flush=True)
        result["threads"] = torch.get_num_threads()
        result |= {"machine": environment.machine(), "versions": environment.versions()}
        if given.out:
            write_json(given.out, result)


def _measure(base: str, choice: Parameters, rows: int, epochs: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        plain, plain_clock, frozen = _run(base, choice, rows, epochs, Path(scratch) / "plain", cached=False)
        cached, clock, _ = _run(base, choice, rows, epochs, Path(scratch) / "cached", cached=True)
        without, with_cache = plain_clock.later(), clock.later()
        reading = _reading(cached)
    in_frozen = frozen / (epochs - 1)
    predicted = without / (without - in_frozen + reading)
    pairs = zip(plain.model.trainable(), cached.model.trainable(), strict=True)
    return {
        "frozen_layers": len(cached.model.prefix.blocks) if cached.model.prefix else 0,
        "tokens": cached.train.total_tokens,
        "epoch_seconds": round(without, 4),
        "epoch_seconds_cached": round(with_cache, 4),
        "ratio": round(without / with_cache, 2),
        "predicted_ratio": round(predicted, 2),
        "seconds_in_frozen_layers": round(in_frozen, 4),
        "seconds_reading": round(reading, 4),
        "weights_equal": all(torch.equal(one, other) for (_, one), (_, other) in pairs),
    }


def _run(
    base: str, choice: Parameters, rows: int, epochs: int, folder: Path, *, cached: bool
) -> tuple[Trainer, Clock, float]:
    settings = Training(epochs=epochs, batch_size=32, dropout=0.0, compile="off", checkpoint_steps=10**6)
    device = torch.device("cpu")
    settings = with_defaults(settings, kind=choice.kind, form="classify", device=device, epoch_examples=rows)
    model = build_for_training(
        catalog.model_folder(base),
        name=base,
        form="classify",
        labels=LABELS,
        choice=choice,
        training=settings,
        data=Data(),
        dtype=torch.float32,
        device=device,
    )
    render = classification_renderer(model.tokenizer, TASKS["text-classification"], LABELS, model.max_length)
    train = write_tokens(_sentences(rows), render, folder / "tokens")
    clock = Clock(per_epoch=len(batches_of_epoch(train.lengths, settings, 0)))
    objective = objectives.make("classify", settings)
    trainer = Trainer(model, objective, train, None, settings, folder, on_event=clock)
    if cached:
        remember(model, objective, {"train": train}, settings, trainer.steps, folder, clock)
        trainer.run()
        return trainer, clock, 0.0
    frozen = FrozenTime(model, clock)
    trainer.run()
    return trainer, clock, frozen.seconds


def _reading(trainer: Trainer) -> float:
    """Seconds that an epoch takes to collate its batches more than without states."""
    model, data, settings = trainer.model, trainer.train, trainer.settings
    took = []
    for states in (data.states, None):
        data.states = states
        started = time.process_time()
        for batch in batches_of_epoch(data.lengths, settings, 1):
            for rows in pieces(model, data, batch, settings.micro_tokens or 4096):
                collate(data, rows.tolist(), model.pad_id, WIDTH_MULTIPLE, 1)
        took.append(time.process_time() - started)
    return took[0] - took[1]


def _sentences(count: int) -> list[Row]:
    """Half of them of each label."""
    found = []
    for label in LABELS:
        lines = enumerate(snippets(label)[: count // 2], 1)
        found += [Row({"text": line, "label": label}, Origin(f"rt-polarity.{label}", n)) for n, line in lines]
    return found


if __name__ == "__main__":
    main()
