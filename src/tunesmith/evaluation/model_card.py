"""The model card: what the artefact is, how good it is, and how to load it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunesmith import disk
from tunesmith.lineage import as_text
from tunesmith.models.saving import ArtefactNotes, read_notes

LOAD_ADAPTER = """\
from peft import {auto}
model = {auto}.from_pretrained("{folder}")
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
            *(_plain_loading(notes) if loading is None else loading),
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


def _plain_loading(notes: ArtefactNotes) -> list[str]:
    """Without Tunesmith: the formats are those of transformers, PEFT and sentence-transformers."""
    if notes.pooling and not notes.adapter:
        code = LOAD_SENTENCE.format(folder=".", labels=", ".join((notes.labels or [])[:5]))
    elif notes.pooling:
        return ["The adapter is in PEFT's format; the linear head is in `2_Dense`, on mean-pooled tokens.", ""]
    else:
        kinds = {
            "generate": "CausalLM",
            "mask": "MaskedLM",
            "seq2seq": "Seq2SeqLM",
            "tag": "TokenClassification",
        }
        kind = kinds.get(notes.form, "SequenceClassification")
        prefix = "AutoPeftModelFor" if notes.adapter else "AutoModelFor"
        code = (LOAD_ADAPTER if notes.adapter else LOAD_MODEL).format(auto=prefix + kind, folder=".")
    return ["Or without Tunesmith, in this folder:", "", "```python", code.rstrip(), "```", ""]
