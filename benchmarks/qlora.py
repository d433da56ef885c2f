"""LoRA on a base in bf16 against LoRA on the same base in 4 and 8 bits: bytes of the base, and the curve of the loss.

    python benchmarks/qlora.py --out benchmarks/results/qlora.json
    python benchmarks/qlora.py --out /tmp/q.json --steps 4 --seeds 1 --cases bf16 int4       does it run?

SmolLM2-135M learns commands of tldr_pages from their descriptions. All cases of a seed see the same batches and begin
with the same adapter, so that their losses are compared update by update; how far two seeds of plain LoRA lie apart is
the noise that they are judged by. Each run is a process of its own. What is done is not done again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import SHARED, results_in
from measuring import peak_rss_bytes

from tunesmith import environment
from tunesmith.disk import write_json

BASE = "smollm2-135m-instruct"
CASES = {"bf16": "none", "int8": "int8", "int4": "int4"}
LAST = 10
"""Updates at the end over which the losses are compared."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cases", nargs="+", default=[*CASES], choices=[*CASES])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--held-out", type=int, default=64, help="rows to measure the loss on in the end")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        case, seed = given.one.split(":")
        write_json(given.out, _run(case, int(seed), given))
        return
    asked = {"steps": given.steps, "batch_size": given.batch_size, "held_out": given.held_out}
    result = results_in(given.out, settings=asked, runs={})
    if result["settings"] != asked:
        result = {"settings": asked, "runs": {}}
    for seed in range(given.seeds):
        for case in given.cases:
            name = f"{case}:{seed}"
            if name not in result["runs"]:
                result["runs"][name] = _in_a_process(name, given)
                result["machine"], result["versions"] = environment.machine(), environment.versions()
                result["compared"] = compared(result["runs"], given.steps)
                write_json(given.out, result)
    print(json.dumps(result["compared"], indent=1))


def _in_a_process(name: str, given: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch) / "one.json"
        options = ["--steps", given.steps, "--batch-size", given.batch_size, "--held-out", given.held_out]
        command = [sys.executable, __file__, "--one", name, "--out", str(place), *map(str, options)]
        load = os.getloadavg()[0]
        subprocess.run(command, check=True)
        found: dict[str, Any] = json.loads(place.read_text(encoding="utf-8"))
        print(name, {key: value for key, value in found.items() if key != "losses"}, file=sys.stderr, flush=True)
        return found | {"load_before": round(load, 1)}


def _run(case: str, seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """One training; returns its losses, bytes and seconds."""
    import torch

    from tunesmith import catalog, objectives
    from tunesmith.data.batches import write_tokens
    from tunesmith.data.renderers import row_renderer
    from tunesmith.events import Step
    from tunesmith.models.build import build_for_training
    from tunesmith.models.quantized import weight_bytes
    from tunesmith.recipe import Data, LoRA, Training
    from tunesmith.tasks import TASKS
    from tunesmith.training.defaults import with_defaults
    from tunesmith.training.loop import Trainer, evaluate_loss

    choice = LoRA(quantization=CASES[case])  # type: ignore[arg-type]
    settings = Training(
        max_steps=given.steps,
        batch_size=given.batch_size,
        seed=seed,
        dropout=0.0,
        compile="off",
        checkpoint_steps=10**6,
    )
    device = torch.device("cpu")
    settings = with_defaults(settings, kind="lora", form="generate", device=device, epoch_examples=10**6)
    model = build_for_training(
        catalog.model_folder(BASE),
        name=BASE,
        form="generate",
        labels=None,
        choice=choice,
        training=settings,
        data=Data(),
        dtype=torch.bfloat16,
        device=device,
    )
    adapter = sum(p.nbytes for _, p in model.trainable())
    in_layers = sum(weight_bytes(block) for block in model.blocks()) - adapter  # all of which lies in the layers
    render = row_renderer(
        model.tokenizer,
        TASKS["text-generation"],
        form="generate",
        labels=None,
        max_length=model.max_length,
        eos_ids=model.eos_ids,
    )
    with tempfile.TemporaryDirectory() as scratch:
        rows = _pairs(given.steps * given.batch_size + given.held_out)
        held_out = write_tokens(rows[: given.held_out], render, Path(scratch) / "held-out")
        train = write_tokens(rows[given.held_out :], render, Path(scratch) / "train")
        losses: list[float] = []

        def hear(event: object) -> None:
            if isinstance(event, Step):
                losses.append(event.loss)

        objective = objectives.make("supervised", settings)
        trainer = Trainer(model, objective, train, None, settings, Path(scratch), on_event=hear)
        before = evaluate_loss(model, objective, held_out, 4096)["loss"]
        started = time.perf_counter()
        trainer.run()
        seconds = time.perf_counter() - started
        after = evaluate_loss(model, objective, held_out, 4096)["loss"]
    return {
        "base_bytes": weight_bytes(model.network) - adapter,
        "layer_bytes": in_layers,
        "peak_rss_bytes": peak_rss_bytes(),
        "seconds": seconds,
        "tokens": train.total_tokens,
        "held_out_before": before,
        "held_out_after": after,
        "losses": losses,
    }


def _pairs(count: int) -> list[Any]:
    """The same rows each time, from all over the set."""
    from tunesmith.data.rows import Origin, Row

    path = SHARED / "tldr_pages" / "tldr_en_pairs.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    chosen = np.random.default_rng(0).permutation(len(lines))[:count].tolist()
    pairs = [(number, json.loads(lines[number])) for number in chosen]
    return [
        Row({"prompt": f"{pair['instruction']} ({pair['tool']})", "completion": pair["response"]}, Origin(path.name, n))
        for n, pair in pairs
    ]


def compared(found: dict[str, Any], steps: int) -> dict[str, Any]:
    """Bytes over those of bf16, and differences in loss beside those of plain LoRA between its own seeds."""
    last = min(LAST, steps)
    ends = {name: float(np.mean(run["losses"][-last:])) for name, run in found.items()}
    seeds = sorted({name.split(":")[1] for name in found})
    plain = [ends[f"bf16:{seed}"] for seed in seeds if f"bf16:{seed}" in ends]
    held = [found[f"bf16:{seed}"]["held_out_after"] for seed in seeds if f"bf16:{seed}" in found]
    result: dict[str, Any] = {
        "seeds": len(plain),
        "bf16_spread_of_seeds": max(plain) - min(plain) if plain else None,
        "bf16_spread_of_seeds_held_out": max(held) - min(held) if held else None,
    }
    for case in [case for case in CASES if case != "bf16" and f"{case}:0" in found and "bf16:0" in found]:
        both = [seed for seed in seeds if f"{case}:{seed}" in found and f"bf16:{seed}" in found]
        pairs = [(found[f"{case}:{seed}"], found[f"bf16:{seed}"]) for seed in both]
        result[case] = {
            "base_bytes_ratio": pairs[0][0]["base_bytes"] / pairs[0][1]["base_bytes"],
            "layer_bytes_ratio": pairs[0][0]["layer_bytes"] / pairs[0][1]["layer_bytes"],
            f"loss_difference_last_{last}": [ends[f"{case}:{seed}"] - ends[f"bf16:{seed}"] for seed in both],
            "held_out_difference": [one["held_out_after"] - other["held_out_after"] for one, other in pairs],
            "held_out_difference_before": [one["held_out_before"] - other["held_out_before"] for one, other in pairs],
            "seconds_ratio": sum(one["seconds"] for one, _ in pairs) / sum(other["seconds"] for _, other in pairs),
        }
    return result


if __name__ == "__main__":
    main()
