"""A run's model for other programs, and the proof that they answer as the run does."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import nn

from tunesmith import catalog, disk
from tunesmith.compression import gguf_file, llama_cpp, verify
from tunesmith.compression.quantize import is_quantized, load_original
from tunesmith.compression.verify import Verified
from tunesmith.data.prepare import prepare
from tunesmith.errors import ResourceError, UsageError
from tunesmith.evaluation.evaluate import licence_of
from tunesmith.evaluation.held_out import held_out, some_rows
from tunesmith.evaluation.model_card import write_model_card
from tunesmith.events import Listener, Notice, Phase, nobody
from tunesmith.models.heads import SentenceClassifier
from tunesmith.models.load import output_names
from tunesmith.models.model import Model
from tunesmith.models.saving import ONNX_FILE, ArtefactNotes, load_artefact, notes_of, read_notes, save_artefact
from tunesmith.prediction import answering
from tunesmith.prediction.setting import Setting
from tunesmith.recipe import Recipe
from tunesmith.runs import Run
from tunesmith.tasks import TASKS

Format = Literal["safetensors", "adapter", "gguf", "onnx"]
FORMATS: dict[Format, str] = {
    "safetensors": "the whole model, adapters in its weights, as transformers loads it",
    "adapter": "the adapter alone, as PEFT loads it",
    "gguf": "one file with tokenizer and chat template for llama.cpp, and a Modelfile for Ollama",
    "onnx": "an encoder, or a small decoder, as a graph for ONNX Runtime",
}
EXPORTS = "exports"
VERIFICATION = "verification.json"
ROWS = 8


def export_run(
    opened: Run,
    to: Format,
    *,
    target: Path | None = None,
    outtype: str = "f16",
    rows: int = ROWS,
    on_event: Listener = nobody,
) -> dict[str, Any]:
    """Write a run's model for other programs and compare their answers with the run's.

    Args:
        opened: A finished run.
        to: One of :data:`FORMATS`.
        target: Folder of the result; default: ``exports/FORMAT`` in the run's.
        outtype: Of GGUF: one of :data:`tunesmith.compression.gguf_file.FORMATS`.
        rows: Test rows to compare on.
        on_event: Told everything that happens.

    Returns:
        What ``tunesmith export --json`` prints: ``run``, ``export``, ``to``, ``files``, ``bytes``, ``verified``.

    Raises:
        UsageError: The model cannot be written so, or something is in the way.
        MissingExtraError: A package is not installed.
        ResourceError: The disk is full; nothing is left under the target's name then.
    """
    if to not in FORMATS:
        raise UsageError(f"unknown format {to!r}", where="--to", fix=f"one of {', '.join(FORMATS)}")
    summary = opened.summary()
    target = target or opened.path / EXPORTS / (f"gguf-{outtype}" if to == "gguf" else to)
    if target.exists():
        raise UsageError("there is something already", where=str(target), fix="remove it, or name another --dir")
    notes = read_notes(opened.model_folder)
    _refuse_impossible(opened, to, notes)
    on_event(Phase(step="model", message=f"the model of {opened.id}"))
    model = load_artefact(opened.model_folder, on_event=on_event)[0] if to == "adapter" else load_original(opened)
    texts = _texts(opened.recipe, model, rows, on_event)
    target.parent.mkdir(parents=True, exist_ok=True)
    found: list[Verified] = []

    def fill(staging: Path) -> None:
        staging.mkdir(parents=True)
        on_event(Phase(step="tune", message=f"writing {to}: {FORMATS[to]}"))
        loading = _WRITERS[to](opened, model, staging, outtype)
        on_event(Phase(step="evaluate", message=f"asking its consumers about {len(texts)} test rows"))
        found.extend(_verified(to, model, staging, texts, outtype, on_event))
        disk.write_json(staging / VERIFICATION, [one.as_dict() for one in found])
        card_notes = notes_of(model, task=notes.task, system_prompt=notes.system_prompt)
        write_model_card(staging, summary, licence_of(opened.recipe), notes=card_notes, loading=loading,
                         more=_more(opened.recipe, found))  # fmt: skip

    try:
        disk.write_folder(target, fill)
    except OSError as error:
        raise ResourceError(
            f"cannot write the export: {error}", where=str(target), fix="free some disk space"
        ) from error
    files = sorted(path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file())
    return {
        "run": str(opened.path),
        "export": str(target),
        "to": to,
        "files": files,
        "bytes": sum((target / file).stat().st_size for file in files),
        "verified": [one.as_dict() | {"text": str(one)} for one in found],
    }


def _refuse_impossible(opened: Run, to: Format, notes: ArtefactNotes) -> None:
    """Say what cannot be written before anything is loaded."""
    if is_quantized(opened, notes):
        raise UsageError(
            "quantized models are in a form of our own, which other programs do not read",
            where=str(opened.path),
            fix="export the run that it was made from (GGUF has 8-bit formats of its own)",
        )
    if to == "adapter" and not notes.adapter:
        raise UsageError("the run trained no adapter", where=str(opened.path), fix="use `--to safetensors`")


def _texts(recipe: Recipe, model: Model, rows: int, on_event: Listener) -> list[list[int]]:
    """Tokens of some rows that were not trained on, as the model is given them."""
    data = prepare(recipe.of_stage(recipe.stages[-1]) if recipe.stages else recipe, on_event=nobody)
    chosen = some_rows(held_out(data, on_event) or data.train, rows)
    setting = Setting(TASKS[recipe.task], data.labels, recipe.system_prompt, recipe.evaluate.generation, 0, on_event)
    return answering.inputs(model, chosen, setting)


# --- writing: each says how the result is loaded ----------------------------------------------------------------------


def _write_safetensors(opened: Run, model: Model, folder: Path, outtype: str) -> list[str] | None:
    notes = read_notes(opened.model_folder)
    save_artefact(model, folder, task=notes.task, system_prompt=notes.system_prompt)
    return None


def _write_adapter(opened: Run, model: Model, folder: Path, outtype: str) -> list[str] | None:
    for path in opened.model_folder.iterdir():
        copy = shutil.copytree if path.is_dir() else shutil.copy2
        copy(path, folder / path.name)
    return None


def _write_gguf(opened: Run, model: Model, folder: Path, outtype: str) -> list[str]:
    gguf_file.refuse_unknown(model, outtype)
    file = gguf_name(outtype)
    system_prompt = read_notes(opened.model_folder).system_prompt
    gguf_file.write_gguf(model, folder / file, outtype, name=opened.id, licence=licence_of(opened.recipe))
    disk.write_text(folder / "Modelfile", gguf_file.modelfile(file, model, system_prompt))
    return [
        "```bash", f"llama-cli -m {file}", "ollama create NAME -f Modelfile", "```", "",
        "```python", "from transformers import AutoModelForCausalLM",
        f'model = AutoModelForCausalLM.from_pretrained(".", gguf_file="{file}")', "```", "",
    ]  # fmt: skip


def gguf_name(outtype: str) -> str:
    """The file's name."""
    return f"model-{outtype}.gguf"


def _write_onnx(opened: Run, model: Model, folder: Path, outtype: str) -> list[str]:
    from tunesmith.compression.onnx_model import require_onnx, write_graph

    require_onnx()
    if model.form in ("seq2seq", "mask"):
        raise UsageError(
            f"only encoders with a head and decoders become ONNX graphs here, and this model's form is `{model.form}`",
            where="--to",
            fix="use `--to safetensors`",
        )
    write_graph(model, folder / ONNX_FILE)
    model.tokenizer.save_pretrained(folder)
    columns = "The last row of `logits` tells the next token; there is no cache of keys and values."
    if model.form != "generate":
        disk.write_json(folder / "labels.json", output_names(model.form, model.labels))
        columns = "Columns of `logits` are in the order of `labels.json`."
    return [
        "```python", "import onnxruntime, transformers",
        'tokens = transformers.AutoTokenizer.from_pretrained(".")(["some text"], return_tensors="np")',
        f'session = onnxruntime.InferenceSession("{ONNX_FILE}")',
        '[logits] = session.run(["logits"], {name: tokens[name] for name in ("input_ids", "attention_mask")})',
        "```", "", columns, "",
    ]  # fmt: skip


_WRITERS: dict[str, Callable[[Run, Model, Path, str], list[str] | None]] = {
    "safetensors": _write_safetensors,
    "adapter": _write_adapter,
    "gguf": _write_gguf,
    "onnx": _write_onnx,
}


def _verified(
    to: str, model: Model, folder: Path, texts: Sequence[Sequence[int]], outtype: str, on_event: Listener
) -> list[Verified]:
    """The answers of each consumer that is installed."""
    unread = _not_compared(to, model)
    if unread:
        on_event(Notice(level="warning", message=f"written, but not compared: {unread}"))
        return []
    ours = verify.own_scores(model)
    if to == "adapter":
        return [verify.compare("peft", verify.in_peft(model, folder), ours, texts)]
    if to == "onnx":
        return [verify.compare("onnxruntime", verify.in_onnxruntime(folder / ONNX_FILE), ours, texts)]
    if to == "safetensors":
        return [verify.compare("transformers", verify.in_transformers(model, folder), ours, texts)]
    file = gguf_name(outtype)
    found = [verify.compare("transformers", verify.in_transformers(model, folder, file), ours, texts, "gguf_file=")]
    try:
        if llama_cpp.installed():
            return [*found, verify.in_llama_cpp(model, folder / file, texts)]
        missing, fix = f"the package {llama_cpp.PACKAGE!r} is not installed", "pip install 'tunesmith[llama-cpp]'"
    except ResourceError as error:
        missing, fix = error.what, ""
    on_event(Notice(level="warning", message=f"not compared with llama.cpp: {missing}", fix=fix or None))
    return found


def _not_compared(to: str, model: Model) -> str | None:
    """Why no other program is asked for its answers."""
    if to in ("safetensors", "adapter") and model.form == "seq2seq":
        return "encoder-decoders are not asked here"
    classical = isinstance(model.network, SentenceClassifier) and not isinstance(model.network.classifier, nn.Linear)
    if to == "safetensors" and classical:
        return "other programs read the encoder, and not its head, which is no linear one"
    return None


def _more(recipe: Recipe, found: Sequence[Verified]) -> list[str]:
    """For the model card: the licences of the data, and what was verified."""
    known = {entry.name: entry.licence for entry in catalog.entries()}
    data = [f"`{Path(name).name}`: {known.get(name) or 'licence not known here'}" for name in recipe.data.train]
    lines = ["## Training data", "", *(f"- {line}" for line in data), ""]
    if found:
        lines += ["## Verified", "", "Against the run's own model, on test rows:", ""]
        lines += [*(f"- {one}" for one in found), ""]
    return lines
