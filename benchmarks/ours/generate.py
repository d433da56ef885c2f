"""Tunesmith's loop on tokenized rows: the same rows, batch size, rate, schedule and clipping as its peers'."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from measuring import Clock, read_lines, read_spec, write_result

from tunesmith import objectives
from tunesmith.data.batches import TokenFile, write_tokens
from tunesmith.data.render import Rendered
from tunesmith.data.rows import Origin, Row
from tunesmith.events import Event, Notice, Step
from tunesmith.models.build import build_for_training
from tunesmith.models.precision import choose_dtype, default_device
from tunesmith.models.saving import save_artefact
from tunesmith.recipe import Data, Full, LoRA, Training
from tunesmith.training.compiling import compile_if_worthwhile
from tunesmith.training.defaults import with_defaults
from tunesmith.training.loop import Trainer


def main() -> None:
    spec = read_spec()
    out, device = Path(spec["out"]), default_device()
    choice = LoRA(rank=spec["rank"], alpha=spec["alpha"]) if spec["parameters"] == "lora" else Full()
    rows = tokens_of(spec["train"], out / "tokens")
    settings = with_defaults(training(spec), kind=choice.kind, form="generate", device=device, epoch_examples=len(rows))
    model = build_for_training(
        Path(spec["model"]),
        name="smollm2-135m-instruct",
        form="generate",
        labels=None,
        choice=choice,
        training=settings,
        data=Data(),
        dtype=choose_dtype("auto", device),
        device=device,
    )
    clock = Clock()
    losses: list[float] = []
    clock.begin()
    trainer = Trainer(
        model,
        objectives.make("supervised", settings),
        rows,
        None,
        settings,
        out,
        on_event=listener(clock, losses),
    )
    compile_if_worthwhile(model, settings, trainer.steps, print)
    trainer.run()
    measured = clock.result()
    save_artefact(model, out / "model", task="text-generation", system_prompt=None)
    wide = "".join(f", masters {kind}" for kind in {str(m.dtype) for m in trainer.optimizer.masters})
    write_result(spec, **measured, last_train_loss=losses[-1], precision=f"weights {model.dtype}{wide}")


def training(spec: dict[str, Any]) -> Training:
    """The loop's settings; what the peers have no name for is switched off."""
    return Training(
        max_steps=spec["steps"],
        batch_size=spec["batch_size"],
        learning_rate=spec["learning_rate"],
        schedule=spec["schedule"],
        weight_decay=spec["weight_decay"],
        max_grad_norm=spec["max_grad_norm"],
        warmup=0.0,
        seed=spec["seed"],
        compile=spec["options"]["compile"],
    )


def tokens_of(path: str, folder: Path) -> TokenFile:
    """Rows with ``input_ids`` and ``labels`` (-100 where no loss is) as the loop reads them."""
    rows = [Row(fields, Origin(path, number)) for number, fields in enumerate(read_lines(path), 1)]
    return write_tokens(rows, as_rendered, folder)


def as_rendered(row: Row) -> Rendered:
    """The row's tokens, weight 1 on each label."""
    weights = [0.0 if label == -100 else 1.0 for label in row.fields["labels"]]
    return Rendered(row.fields["input_ids"], weights)


def listener(clock: Clock, losses: list[float]) -> Callable[[Event], None]:
    """Feed the clock from the loop's own events."""

    def hear(event: Event) -> None:
        if isinstance(event, Step):
            clock.count(event.tokens)
            clock.step()
            losses.append(event.loss)
        elif isinstance(event, Notice):
            print(event.message)

    return hear


if __name__ == "__main__":
    main()
