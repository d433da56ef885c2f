"""Tiny pieces that several tests put together: data in memory, models, trainers, and a listener that remembers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tunesmith import objectives
from tunesmith.data.batches import TokenFile, write_tokens
from tunesmith.data.render import ConversationRenderer, Render, classification_renderer, conversation_renderer
from tunesmith.data.rows import Origin, Row
from tunesmith.events import Event
from tunesmith.models.build import build_for_training
from tunesmith.models.model import Form, Model
from tunesmith.recipe import Data, Full, Parameters, Training
from tunesmith.tasks import TASKS
from tunesmith.training.defaults import with_defaults
from tunesmith.training.loop import Trainer

LABELS = ["negative", "positive"]


class Events(list[Event]):
    """A listener that remembers."""

    def __call__(self, event: Event) -> None:
        self.append(event)

    def of(self, kind: type) -> list[Any]:
        return [event for event in self if isinstance(event, kind)]


def rows_of(values: Sequence[dict[str, Any]], file: str = "rows.jsonl") -> list[Row]:
    """Rows as if they had been read from a file."""
    return [Row(value, Origin(file, number)) for number, value in enumerate(values, 1)]


def build(
    folder: Path,
    form: Form,
    parameters: Parameters | None = None,
    training: Training | None = None,
    dtype: torch.dtype = torch.float64,
    labels: list[str] | None = LABELS,
) -> Model:
    """A model ready to train."""
    return build_for_training(
        folder,
        name="tiny",
        form=form,
        labels=labels if form == "classify" else None,
        choice=parameters or Full(),
        training=training or Training(),
        data=Data(),
        dtype=dtype,
        device=torch.device("cpu"),
    )


def renderer(model: Model) -> Render:
    """The rendering that the pipeline would choose."""
    if model.form == "classify":
        return classification_renderer(model.tokenizer, TASKS["text-classification"], LABELS, model.max_length)
    rendering = ConversationRenderer(model.tokenizer, model.max_length, model.eos_ids)
    return conversation_renderer(rendering, TASKS["text-generation"], None)


def tokens(model: Model, values: Sequence[dict[str, Any]], folder: Path) -> TokenFile:
    """Rendered examples on disk."""
    return write_tokens(rows_of(values), renderer(model), folder)


def trainer(
    model: Model,
    values: Sequence[dict[str, Any]],
    folder: Path,
    *,
    validation: Sequence[dict[str, Any]] = (),
    events: Events | None = None,
    identity: dict[str, Any] | None = None,
    kind: str = "full",
    **settings: Any,
) -> Trainer:
    """A trainer on rows in memory."""
    training = with_defaults(
        Training(**settings), kind=kind, form=model.form, device=torch.device("cpu"), epoch_examples=len(values)
    )
    return Trainer(
        model,
        objectives.make("classify" if model.form == "classify" else "supervised", training),
        tokens(model, values, folder / "train"),
        tokens(model, validation, folder / "validation") if validation else None,
        training,
        folder,
        identity=identity,
        on_event=Events() if events is None else events,
    )


def gradients(model: Model) -> dict[str, torch.Tensor]:
    """Copies of the gradients of what trains."""
    return {name: p.grad.clone() for name, p in model.trainable() if p.grad is not None}


def sha256s(folder: Path, pattern: str = "*.safetensors") -> dict[str, str]:
    """The hash of each file that matches."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob(pattern))}


def question_rows(count: int) -> list[dict[str, str]]:
    """Prompts of mixed lengths with short answers."""
    pairs = (("france", "paris"), ("spain", "madrid"), ("italy", "rome"))
    return [
        {"prompt": f"what is the capital of {pairs[n % 3][0]} {'please ' * (n % 7)}{n}", "completion": pairs[n % 3][1]}
        for n in range(count)
    ]
