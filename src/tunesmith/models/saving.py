"""The artefact of a run: what plain transformers, PEFT and sentence-transformers load, and what we read back.

Beside the weights lies ``tunesmith.json`` with what those formats have no place for: the task, how the model answers,
the order of the labels. Nothing needs it but :func:`load_artefact`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError

from tunesmith import catalog
from tunesmith.compression.modules import kept_kinds, load_narrow, save_narrow
from tunesmith.data.shots import Shown
from tunesmith.errors import NotFoundError, ResourceError
from tunesmith.events import Listener, nobody
from tunesmith.models.bases import find_base, name_hub_base
from tunesmith.models.heads import Pooling, SentenceClassifier, pooling_of, save_pooling
from tunesmith.models.image_classifier import ImageClassifier
from tunesmith.models.load import load_model, quiet
from tunesmith.models.model import Form, Model
from tunesmith.models.new_tokens import add_tokens
from tunesmith.models.plain_lora import save_on_the_first_base
from tunesmith.models.quantized import narrow_tables, quantize_base
from tunesmith.models.vision import load_vision
from tunesmith.parameters.fused_lora import fuse
from tunesmith.parameters.settings import Quantization, Quantizer
from tunesmith.recipe import PICTURES

NOTES = "tunesmith.json"
SHOWN = "in_context.json"
ONNX_FILE = "model.onnx"


@dataclass(frozen=True)
class ArtefactNotes:
    """The content of ``tunesmith.json``."""

    task: str
    form: Form
    base: str
    base_folder: str
    labels: list[str] | None
    max_length: int
    adapter: bool
    pooling: Pooling | None
    system_prompt: str | None
    dtype: str
    quantization: Quantization = "none"
    thresholds: list[float] | None = None
    narrow: dict[str, str] | None = None  # name of a quantized module -> its kind
    quantizer: Quantizer = "torchao"
    new_tokens: list[str] | None = None  # of an adapter, whose base does not know them
    base_name: str | None = None  # of the catalog or the hub, by which the base is found on any machine
    base_revision: str | None = None  # its commit on the hub

    @property
    def base_identity(self) -> tuple[str | None, ...]:
        """What adapters on the same base have in common."""
        return (self.base_folder,) if self.base_name is None else (self.base_name, self.base_revision)


def notes_of(model: Model, *, task: str, system_prompt: str | None) -> ArtefactNotes:
    """What is written beside the weights."""
    sentence = model.network if isinstance(model.network, SentenceClassifier) else None
    name, revision = catalog.reference_of(model.folder)
    return ArtefactNotes(
        task=task,
        form=model.form,
        base=model.name,
        base_folder=str(model.folder),
        labels=model.labels,
        max_length=model.max_length,
        adapter=model.has_adapters,
        pooling=sentence.pooling if sentence else None,
        system_prompt=system_prompt,
        dtype=str(model.dtype).removeprefix("torch."),
        quantization=model.quantization,
        quantizer=model.quantizer,
        thresholds=model.thresholds,
        narrow=kept_kinds(model) or None,
        new_tokens=list(model.new_tokens) if model.new_tokens and model.has_adapters else None,
        base_name=name,
        base_revision=revision,
    )


def save_artefact(model: Model, folder: Path, *, task: str, system_prompt: str | None) -> None:
    """Write a tuned model to ``folder``, in the precision in which it was measured.

    With adapters only these (and the head) are written, in PEFT's format; else the whole model in transformers'. A
    sentence encoder gets its pooling and head as sentence-transformers modules.

    Raises:
        ResourceError: The disk is full or not writable.
    """
    notes = notes_of(model, task=task, system_prompt=system_prompt)
    sentence = model.network if isinstance(model.network, SentenceClassifier) else None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if isinstance(model.network, ImageClassifier):
            model.network.save(folder, model.folder)
        elif notes.narrow:
            save_narrow(model, folder)
            model.tokenizer.save_pretrained(folder)
        else:
            # The rows of new tokens are the adapter's; PEFT would keep all of the embeddings besides.
            own_rows: dict[str, Any] = {"save_embedding_layers": False} if notes.new_tokens else {}
            with quiet():
                cast(Any, model.wrapped).save_pretrained(folder, **own_rows)
            model.tokenizer.save_pretrained(folder)
        if model.has_adapters and model.first_weights:
            save_on_the_first_base(folder, model.first_weights)
        if model.has_adapters:
            name_hub_base(folder, model.folder)
        if sentence:
            sentence.save_head(folder, model.max_length)
        elif model.form == "mask" and (pooling := pooling_of(model.folder)):  # it stays a sentence encoder as well
            save_pooling(folder, pooling, int(cast(Any, model.transformer()).config.hidden_size), model.max_length)
        if model.shown is not None:
            model.shown.save(folder / SHOWN)
        write_notes(folder, notes)
    except (OSError, SafetensorError) as error:
        raise ResourceError(
            f"cannot write the model: {error}", where=str(folder), fix="free some disk space, then `tunesmith resume`"
        ) from error


def auto_class(form: Form) -> str:
    """What follows ``AutoModelFor`` in the name of the class by which transformers loads a model of this form."""
    kinds = {"generate": "CausalLM", "mask": "MaskedLM", "seq2seq": "Seq2SeqLM", "tag": "TokenClassification"}
    return kinds.get(form, "SequenceClassification")


def write_notes(folder: Path, notes: ArtefactNotes) -> None:
    """Write ``tunesmith.json``."""
    (folder / NOTES).write_text(json.dumps(asdict(notes), indent=2, ensure_ascii=False), encoding="utf-8")


def read_notes(folder: Path) -> ArtefactNotes:
    """Read ``tunesmith.json``.

    Raises:
        NotFoundError: The folder holds no tuned model.
    """
    try:
        notes = ArtefactNotes(**json.loads((folder / NOTES).read_text(encoding="utf-8")))
        name, revision = catalog.reference_of(Path(notes.base_folder))
    except (OSError, ValueError, TypeError) as error:
        raise NotFoundError(
            f"no tuned model here: {error}", where=str(folder), fix="name a finished run: `tunesmith runs list`"
        ) from error
    # Older notes have no name for the base.
    return notes if notes.base_name else replace(notes, base_name=name, base_revision=revision)


def load_artefact(
    folder: Path, *, device: torch.device | None = None, on_event: Listener = nobody
) -> tuple[Model, ArtefactNotes]:
    """Load what :func:`save_artefact` wrote, ready to answer.

    Args:
        folder: Where it is.
        device: Where to put the model; default: the processor.
        on_event: Hears how an adapter's base is fetched, where it is not at hand.

    Raises:
        NotFoundError: The folder holds no tuned model.
        ResourceError: Files are missing or damaged; for an adapter, the base model is neither where it was nor to be
            had by its name.
    """
    notes = read_notes(folder)
    if notes.task in PICTURES:
        labels = notes.labels or []
        network = load_vision(folder, name=notes.base, labels=labels, device=device)
        model = Model(network, None, "classify", notes.base, folder, 0, labels)
        model.thresholds = notes.thresholds
        return model, notes
    if (folder / ONNX_FILE).is_file():
        from tunesmith.compression.onnx_model import load_onnx

        return load_onnx(folder, notes), notes
    model = load_model(
        find_base(notes, folder, on_event) if notes.adapter else folder,
        name=notes.base,
        form=notes.form,
        labels=notes.labels,
        dtype=getattr(torch, notes.dtype),
        device=device,
        max_length=notes.max_length,
        pooling=notes.pooling,
        empty=notes.narrow is not None,
    )
    if notes.narrow is not None:
        load_narrow(model, notes.narrow, folder)
    quantize_base(model, notes.quantization, notes.quantizer)  # as it was when the adapter learned beside it
    if notes.adapter:
        add_tokens(model, notes.new_tokens or [])
        _add_adapter(model, folder)
    narrow_tables(model)
    if isinstance(model.network, SentenceClassifier) and notes.narrow is None:
        model.network.load_head(folder)
    model.thresholds = notes.thresholds
    if (folder / SHOWN).is_file():
        model.shown = Shown.load(folder / SHOWN)
    model.network.eval()
    return model, notes


def _add_adapter(model: Model, folder: Path) -> None:
    from peft import PeftModel

    with quiet():
        adapted = PeftModel.from_pretrained(cast(Any, model.wrapped), folder, autocast_adapter_dtype=False)
    fuse(adapted)  # as in training: the same operations give the same bits
    model.wrap(adapted)
