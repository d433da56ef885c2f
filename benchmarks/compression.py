"""What quantizing and exporting real models comes to on this machine: size, speed, quality.

    python benchmarks/compression.py PART... [--data FOLDER] [--work FOLDER] [--out benchmarks/results/compression.json]

Parts: ``perplexity`` (SmolLM2-135M as it comes, on biomedical abstracts, every kind), ``minilm`` (tuned on
sentence_polarity, every kind), ``gguf`` (SmolLM2 tuned on shell commands, as GGUF, read back), ``qat`` (MiniLM tuned
with and without the rounding of 4 bits, then quantized to it). Each part is written to the file when it is done, so
they can run one by one; of ``perplexity`` each kind is.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from pathlib import Path
from typing import Any

from common import RESULTS_FOLDER, SHARED, SIDES, results_in, snippets, write_rows

import tunesmith
from tunesmith import disk, environment, runs
from tunesmith.compression.settings import Quantize

TEXTS, TOKENS = 16, 192
CONTINUED = "smollm2-135m-instruct"


def perplexity(args: argparse.Namespace) -> dict[str, Any]:
    """Perplexity, bytes and speed of every kind, and of bf16."""
    import torch

    from tunesmith import catalog
    from tunesmith.compression import speed
    from tunesmith.compression.modules import layers_of, narrow_layers
    from tunesmith.compression.sensitivity import calibrate, ways_of
    from tunesmith.compression.settings import KINDS
    from tunesmith.data.rows import Origin, Row
    from tunesmith.models import inference
    from tunesmith.models.load import load_model
    from tunesmith.models.model import Model
    from tunesmith.prediction.setting import Setting
    from tunesmith.recipe import Generation
    from tunesmith.tasks import TASKS

    folder = catalog.model_folder(CONTINUED)
    abstracts = json.loads((args.data / "pubmedqa" / "ori_pqal.json").read_text(encoding="utf-8"))
    texts = [" ".join(entry["CONTEXTS"]) for entry in list(abstracts.values())[: 2 * TEXTS]]

    def fresh(dtype: torch.dtype = torch.float32) -> Model:
        return load_model(folder, name=CONTINUED, form="generate", dtype=dtype)

    original = fresh()
    examples = [original.tokenizer(text)["input_ids"][:TOKENS] for text in texts]
    measured_on, calibrated_on = examples[:TEXTS], texts[TEXTS:]

    def measure(model: Model) -> float:
        weights = [[0.0] + [1.0] * (len(ids) - 1) for ids in measured_on]
        nats = inference.answer_nats(model, measured_on, weights)
        return math.exp(float(nats.sum()) / sum(len(ids) - 1 for ids in measured_on))

    beside = {"fp32": original, "bf16": fresh(torch.bfloat16)}
    found: dict[str, Any] = {
        name: {"perplexity": measure(model), "bytes": speed.memory_bytes(model.network)}
        for name, model in beside.items()
    }
    prompts = [ids[:24] for ids in measured_on[:8]]
    for kind in args.kinds or [kind for kind in KINDS if kind not in ("fp8", "onnx-int8")]:
        model = fresh()
        layers = layers_of(model)
        seen = {}
        if kind in ("int8", "int8-static"):
            rows = [Row({"text": text[:800]}, Origin("calibration", n)) for n, text in enumerate(calibrated_on, 1)]
            setting = Setting(TASKS["language-modeling"], None, None, Generation())
            seen = calibrate(model, layers, rows, setting)
        narrow_layers(model, layers, kind, seen)
        disk = sum(tensor.nbytes for tensor in {t.data_ptr(): t for t in model.network.state_dict().values()}.values())
        value = measure(model)
        speeds = speed.measure_in_turns(beside | {kind: model}, prompts)
        found[kind] = {
            "perplexity": value,
            "perplexity_over_bf16": value / found["bf16"]["perplexity"],
            "times_as_fast_as_bf16": {
                str(one.batch): other.seconds / one.seconds
                for one, other in zip(speeds[kind], speeds["bf16"], strict=True)
            },
            "bytes_on_disk": disk,
            "bytes_in_memory": speed.memory_bytes(model.network),
            "ways": ways_of(model),
            "speed": {name: speed.as_dict(lines) for name, lines in speeds.items()},
        }
        print(kind, json.dumps(found[kind]), flush=True)
        _keep(args, "perplexity", found)
        del model
    return found


def minilm(args: argparse.Namespace) -> dict[str, Any]:
    """A sentence encoder tuned on film reviews, in every kind that it can be in."""
    folder = args.work / "minilm"
    run = _tuned(
        folder,
        rows=_polarity(args, folder),
        task="text-classification",
        model="minilm-l6",
        method="full",
        training={"epochs": 1, "dropout": 0.0},
        evaluate={"baselines": ["majority"]},
    )
    kinds = ("int8", "int8-static", "int8-weights", "int4-weights", "onnx-int8")
    return {kind: _quantized(run, Quantize(to=kind, rows=32)) for kind in kinds}


def gguf(args: argparse.Namespace) -> dict[str, Any]:
    """A tuned language model as GGUF, read back by transformers and by llama.cpp if that is installed."""
    from tunesmith.compression.export import export_run

    folder = args.work / "writer"
    run = _tuned(
        folder,
        rows=_commands(args, folder),
        task="text-generation",
        model=CONTINUED,
        method="peft",
        training={"max_steps": args.steps, "batch_size": 4},
        evaluate={"baselines": [], "limit": 10, "generation": {"max_new_tokens": 1}},
    )
    found = {}
    for kind in ("f16", "q8_0"):
        target = folder / f"gguf-{kind}"
        shutil.rmtree(target, ignore_errors=True)
        made = export_run(run, "gguf", target=target, outtype=kind, rows=3)
        found[kind] = {"bytes": made["bytes"], "verified": made["verified"]}
        if kind == "f16":
            found[kind]["against_weights_in_f16"] = _against_f16(run, target)
        print(kind, json.dumps(found[kind]), flush=True)
    return found


def _against_f16(run: runs.Run, target: Path) -> dict[str, Any]:
    """What the file's own rounding to 16 bits does not explain of the difference: nothing should be left."""
    from tunesmith.compression import verify
    from tunesmith.compression.export import gguf_name
    from tunesmith.compression.quantize import load_original
    from tunesmith.data.prepare import prepare

    model = load_original(run)
    for parameter in model.network.parameters():
        if parameter.dim() > 1:
            parameter.data = parameter.data.half().float()
    texts = [model.tokenizer(row.fields["prompt"])["input_ids"] for row in list(prepare(run.recipe).test)[:3]]
    theirs = verify.in_transformers(model, target, gguf_name("f16"))
    return verify.compare("transformers", theirs, verify.own_scores(model), texts).as_dict()


def qat(args: argparse.Namespace) -> dict[str, Any]:
    """Two sentence encoders, tuned alike but for the rounding that one of them felt, both in 4 bits afterwards."""
    folder = args.work / "qat"
    rows = _polarity(args, folder)
    quantized: dict[str, runs.Run] = {}
    found: dict[str, Any] = {}
    for name, aware in (("without", None), ("with", "int4-weights")):
        run = _tuned(
            folder / name,
            rows=rows,
            task="text-classification",
            model="minilm-l6",
            method="full",
            training={"epochs": 2, "dropout": 0.0, "compile": "off", "quantization_aware": aware},
            evaluate={"baselines": ["majority"]},
        )
        found[name] = _quantized(run, Quantize(to="int4-weights", rows=32))
        found[name]["tuning_seconds"] = run.summary()["tuning_seconds"]
        quantized[name] = runs.open_run(run.path / "quantized" / "int4-weights")
    compared = tunesmith.compare(quantized["with"], quantized["without"])
    return found | {"compared": {"verdict": compared.verdict, "rows": compared.rows}}


def _tuned(folder: Path, *, rows: str, **keys: Any) -> runs.Run:
    """A run of these keys; made once."""
    if (folder / "run" / "summary.json").is_file():
        return runs.open_run(folder / "run")
    return tunesmith.tune(rows, run_dir=folder / "run", precision="fp32", **keys)


def _quantized(run: runs.Run, choice: Quantize) -> dict[str, Any]:
    from tunesmith.compression.quantize import quantize

    target = run.path / "quantized" / choice.to
    shutil.rmtree(target, ignore_errors=True)
    summary = quantize(run, choice).summary()
    names = ["bytes", "original_bytes", "memory_bytes", "original_memory_bytes", "metrics", "original_metrics"]
    names += ["speed", "ways", "sensitivity", "verdict"]
    kept = {name: summary[name] for name in names}
    print(choice.to, summary["verdict"], flush=True)
    return kept


def _polarity(args: argparse.Namespace, folder: Path) -> str:
    """Some of the film reviews, as rows."""
    some = {label: snippets(side, args.data)[: args.rows // 2] for side, label in SIDES.items()}
    rows = [{"text": text, "label": label} for label, texts in some.items() for text in texts]
    return write_rows(folder / "rows.jsonl", rows)


def _commands(args: argparse.Namespace, folder: Path) -> str:
    """Instructions and the shell commands that follow them."""
    lines = (args.data / "tldr_pages" / "tldr_en_pairs.jsonl").read_text(encoding="utf-8").splitlines()[:400]
    pairs = [json.loads(line) for line in lines]
    rows = [{"prompt": f"{p['instruction']} ({p['tool']})", "completion": p["response"]} for p in pairs]
    return write_rows(folder / "commands.jsonl", rows)


PARTS = {"perplexity": perplexity, "minilm": minilm, "gguf": gguf, "qat": qat}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=list(PARTS), metavar="PART")
    parser.add_argument("--data", type=Path, default=SHARED)
    parser.add_argument("--work", type=Path, default=Path("runs") / "compression")
    parser.add_argument("--out", type=Path, default=RESULTS_FOLDER / "compression.json")
    parser.add_argument("--rows", type=int, default=2400, help="film reviews")
    parser.add_argument("--steps", type=int, default=4, help="updates of `gguf`")
    parser.add_argument("--kinds", nargs="*", help="of `perplexity`; default: all")
    parser.add_argument("--note", default="", help="about the machine, e.g. that others worked on it too")
    args = parser.parse_args()
    for part in args.parts:
        _keep(args, part, PARTS[part](args))


def _keep(args: argparse.Namespace, part: str, found: dict[str, Any]) -> None:
    """Put results beside those that the file holds already."""
    known = results_in(args.out)
    before = known.get(part, {}).get("results", {})
    about = {"machine": environment.machine(), "versions": environment.versions(), "note": args.note}
    known[part] = about | {"results": before | found}
    disk.write_json(args.out, known)


if __name__ == "__main__":
    main()
