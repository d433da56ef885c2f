"""Tiny pieces that several tests put together: data in memory, models, trainers, and a listener that remembers."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tunesmith import objectives
from tunesmith.data.batches import TokenFile, write_tokens
from tunesmith.data.documents import block_renderer, write_documents
from tunesmith.data.render import Render
from tunesmith.data.render_labels import classification_renderer
from tunesmith.data.renderers import row_renderer
from tunesmith.data.rows import Origin, Row
from tunesmith.data.tagging import tag_renderer
from tunesmith.events import Event
from tunesmith.models.build import build_for_training
from tunesmith.models.model import Form, Model
from tunesmith.recipe import Data, Full, Parameters, Training
from tunesmith.tasks import TASKS
from tunesmith.training.defaults import with_defaults
from tunesmith.training.loop import Trainer

LABELS = ["negative", "positive"]
SPAN_LABELS = ["city", "good"]
ADAPTER_SIZES: dict[str, dict[str, Any]] = {
    "vera": {"rank": 16},
    "randlora": {"rank": 4},
    "oft": {"rank": 8},
    "vblora": {"options": {"vector_length": 16, "num_vectors": 32}},
    "fourierft": {"rank": 64},
    "road": {"rank": 16},
    "miss": {"rank": 4},
}
"""Sizes that suit layers of 32 by 32; the other kinds' own do."""
OBJECTIVES: dict[str, Any] = {"classify": "classify", "tag": "tag", "generate": "supervised", "seq2seq": "supervised"}


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
        labels=SPAN_LABELS if form == "tag" else None if form == "generate" else labels,
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
    if model.form == "tag":
        return tag_renderer(model.tokenizer, SPAN_LABELS, model.max_length)
    return row_renderer(
        model.tokenizer,
        TASKS["text-generation"],
        form=model.form,
        labels=None,
        max_length=model.max_length,
        eos_ids=model.eos_ids,
    )


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
        objectives.make(OBJECTIVES[model.form], training),
        tokens(model, values, folder / "train"),
        tokens(model, validation, folder / "validation") if validation else None,
        training,
        folder,
        identity=identity,
        on_event=Events() if events is None else events,
    )


def documents(model: Model, texts: Sequence[str], folder: Path, *, packing: bool = False) -> TokenFile:
    """Blocks of documents on disk."""
    rows = rows_of([{"text": text} for text in texts])
    blocks = block_renderer(
        model.tokenizer, TASKS["language-modeling"], masked=model.form == "mask", max_length=model.max_length
    )
    return write_documents(rows, blocks, folder, pack_to=model.max_length if packing else None)


def gradients(model: Model) -> dict[str, torch.Tensor]:
    """Copies of the gradients of what trains."""
    return {name: p.grad.clone() for name, p in model.trainable() if p.grad is not None}


def sha256s(folder: Path, pattern: str = "*.safetensors") -> dict[str, str]:
    """The hash of each file that matches."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob(pattern))}


def tagged_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Texts in which cities, of one or two words, and praise are marked."""
    source = random.Random(seed)
    rows = []
    for _ in range(count):
        tokens: list[str] = []
        spans = []
        for _ in range(source.randint(2, 4)):
            tokens += source.choices(["the", "a", "film", "was", "with", "very"], k=source.randint(1, 3))
            words, label = source.choice(
                [(["paris"], "city"), (["madrid", "rome"], "city"), (["lovely"], "good"), (["great"], "good")]
            )
            start = len(" ".join([*tokens, ""]))
            tokens += words
            spans.append([start, len(" ".join(tokens)), label])
        rows.append({"text": " ".join(tokens), "spans": spans})
    return rows


def question_rows(count: int) -> list[dict[str, str]]:
    """Prompts of mixed lengths with short answers."""
    pairs = (("france", "paris"), ("spain", "madrid"), ("italy", "rome"))
    return [
        {"prompt": f"what is the capital of {pairs[n % 3][0]} {'please ' * (n % 7)}{n}", "completion": pairs[n % 3][1]}
        for n in range(count)
    ]
