"""The model card: what the artefact is, how good it is, and how to load it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunesmith import disk
from tunesmith.lineage import as_text
from tunesmith.models.load import output_names
from tunesmith.models.saving import ONNX_FILE, ArtefactNotes, auto_class, read_notes
from tunesmith.recipe import PICTURES

LOAD_ADAPTER = """\
from peft import {auto}
model = {auto}.from_pretrained("{folder}")
"""
LOAD_ADAPTER_WITH_HEAD = """\
from peft import PeftModel
from transformers import {auto}
model = PeftModel.from_pretrained({auto}.from_pretrained("{base}", num_labels={outputs}), "{folder}")
"""
LOAD_MODEL = """\
from transformers import {auto}
model = {auto}.from_pretrained("{folder}")
"""
LOAD_SENTENCE = """\
from sentence_transformers import SentenceTransformer
logits = SentenceTransformer("{folder}").encode(["some text"])  # columns: {labels}
"""


def write_model_card(
    folder: Path,
    summary: dict[str, Any],
    licence: str | None,
    *,
    notes: ArtefactNotes | None = None,
    loading: Sequence[str] | None = None,
    more: Sequence[str] = (),
) -> Path:
    """Write ``README.md`` beside the weights.

    Args:
        folder: The run's ``model`` folder.
        summary: The run's summary.
        licence: Of the base model, if it is known.
        notes: About the model; default: those in ``folder``.
        loading: Lines that say how programs other than ours load it; default: by the formats of transformers and PEFT.
        more: Lines before the intended use.
    """
    notes = notes or read_notes(folder)
    text = "\n".join(
        [
            f"# {notes.base}, tuned for {notes.task}",
            "",
            f"Made by Tunesmith from the base model `{notes.base}` by the method `{summary['method']}`: "
            f"{summary['trainable_parameters']:,} of {summary['total_parameters']:,} parameters were trained.",
            *([f"Lineage: {as_text(summary['lineage'], 'this model')}.", ""] if summary.get("lineage") else []),
            f"Licence of the base model: {licence or 'not known here; ask its publisher'}. "
            "The tuned model may be bound by it, and by the licence of the training data.",
            "",
            "## Results",
            "",
            summary["verdict"],
            "",
            *(_table(summary) if summary["metrics"] else []),
            "",
            "## How to load it",
            "",
            "```python",
            "import tunesmith",
            f'tunesmith.load("{summary["run"]}").predict(["some text"])',
            "```",
            "",
            *(_plain_loading(notes, folder) if loading is None else loading),
            *_thresholds(notes),
            *more,
            "## Intended use",
            "",
            "Texts like those it was trained on. On other texts measure first: `tunesmith eval RUN --data FILE`.",
            "",
        ]
    )
    path = folder / "README.md"
    disk.write_text(path, text)
    return path


def _table(summary: dict[str, Any]) -> list[str]:
    names = list(summary["metrics"])
    rows = [("**this model**", summary["metrics"]), *summary["baselines"].items()]
    return [
        f"| system | {' | '.join(names)} |",
        f"|---|{'---|' * len(names)}",
        *(f"| {system} | {' | '.join(_cell(values.get(name)) for name in names)} |" for system, values in rows),
    ]


def _cell(value: dict[str, float] | None) -> str:
    return "" if value is None else f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def _thresholds(notes: ArtefactNotes) -> list[str]:
    """From where on labels are given, which no format of others has a place for."""
    if notes.thresholds is None:
        return []
    cuts = ", ".join(f"`{name}` {cut:.3f}" for name, cut in zip(notes.labels or [], notes.thresholds, strict=True))
    return [f"A label is given from this probability on, which other programs do not know: {cuts}.", ""]


def _plain_loading(notes: ArtefactNotes, folder: Path) -> list[str]:
    """Without Tunesmith: the formats are those of transformers, PEFT and sentence-transformers."""
    if notes.task in PICTURES or notes.narrow or (folder / ONNX_FILE).is_file():
        return ["Its form is Tunesmith's own: other programs do not read it.", ""]
    if notes.pooling and not (folder / "2_Dense").is_dir():
        return ["Other programs read the encoder (transformers, sentence-transformers), and not its head.", ""]
    if notes.pooling and not notes.adapter:
        code = LOAD_SENTENCE.format(folder=".", labels=", ".join((notes.labels or [])[:5]))
    elif notes.pooling:
        return ["The adapter is in PEFT's format; the linear head is in `2_Dense`, on mean-pooled tokens.", ""]
    else:
        kind, writes = auto_class(notes.form), notes.form in ("generate", "seq2seq")
        if notes.adapter and not writes:
            outputs, base = len(output_names(notes.form, notes.labels)), notes.base_name or notes.base_folder
            auto = f"AutoModelFor{kind}"
            code = LOAD_ADAPTER_WITH_HEAD.format(auto=auto, base=base, outputs=outputs, folder=".")
        elif notes.adapter:
            code = LOAD_ADAPTER.format(auto=f"AutoPeftModelFor{kind}", folder=".")
        else:
            code = LOAD_MODEL.format(auto=f"AutoModelFor{kind}", folder=".")
    return ["Or without Tunesmith, in this folder:", "", "```python", code.rstrip(), "```", ""]
