"""Few-shot learning against the setfit package: banking77 with 8 examples of each intent, MiniLM-L6, several seeds.

    python benchmarks/few_shot.py --peer-python PEERS/bin/python --out runs/few-shot
    python benchmarks/few_shot.py --peer-python ... --out ... --sampling undersampling      fewer pairs for setfit

Both learn from the same rows and are measured on the same ones. setfit's default draws as many pairs of the same label
as there are pairs of different ones (some 375,000 here), which takes hours on a CPU: `--peer-steps` ends it earlier,
and the result says so. What is done is not done again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from acceptance import banking77
from common import BENCHMARKS, write_rows

from tunesmith import catalog, environment, pipeline, recipe_file
from tunesmith.data.prepare import prepare
from tunesmith.disk import write_json
from tunesmith.learning_curve import over_seeds
from tunesmith.progress import shown
from tunesmith.recipe import Evaluate, Recipe
from tunesmith.runs import open_run, read_answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", type=Path, required=True, help="Python of an environment that has setfit")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--shots", type=int, default=8)
    parser.add_argument("--limit", type=int, default=None, help="test rows")
    parser.add_argument("--sampling", default="oversampling", choices=("oversampling", "undersampling", "unique"))
    parser.add_argument("--peer-steps", type=int, default=-1)
    given = parser.parse_args()
    ours, theirs = [], []
    for seed in range(given.seeds):
        recipe = _recipe(given, seed)
        ours.append(_ours(recipe, given.out / f"ours-{seed}"))
        theirs.append(_theirs(recipe, given, seed, given.out / f"setfit-{given.sampling}-{seed}"))
    settings = Evaluate()
    result: dict[str, Any] = {"shots": given.shots, "sampling": given.sampling, "peer_steps": given.peer_steps}
    for name, found in (("tunesmith", ours), ("setfit", theirs)):
        right = np.asarray([one["right"] for one in found], dtype=np.float64)
        result[name] = {
            "accuracy": over_seeds(right, settings).as_dict(),
            "seeds": right.mean(axis=1).tolist(),
            "seconds": [one["seconds"] for one in found],
        }
    differences = np.asarray([o["right"] for o in ours], dtype=float) - np.asarray([t["right"] for t in theirs])
    result["difference"] = over_seeds(differences, settings).as_dict()
    result["speed_ratio"] = sum(t["seconds"] for t in theirs) / sum(o["seconds"] for o in ours)
    result["machine"], result["versions"] = environment.machine(), environment.versions()
    write_json(given.out / "few_shot.json", result)
    print(json.dumps(result, indent=1))


def _recipe(given: argparse.Namespace, seed: int) -> Recipe:
    data = banking77(given.out)["data"] | {"shots": given.shots, "shots_seed": seed}
    evaluate: dict[str, Any] = {"baselines": [], "limit": given.limit}
    tree = {"task": "text-classification", "model": "minilm-l6", "method": "few-shot", "data": data}
    return recipe_file.parse(tree | {"evaluate": evaluate, "training": {"seed": seed, "dropout": 0}})


def _ours(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Right or wrong on each test row in the order of the keys, and the seconds from data to model."""
    if not (folder / "summary.json").exists():
        with shown() as on_event:
            pipeline.run(recipe, run_dir=folder, on_event=on_event)
    run = open_run(folder)
    answers = sorted(read_answers(run), key=lambda answer: answer.key)
    return {"right": [int(a.answer == a.reference) for a in answers], "seconds": run.summary()["tuning_seconds"]}


def _theirs(recipe: Recipe, given: argparse.Namespace, seed: int, folder: Path) -> dict[str, Any]:
    """The same of setfit, in a process of its own."""
    if not (folder / "result.json").exists():
        data = prepare(recipe)
        test = sorted(data.test, key=lambda row: row.key)[: given.limit]
        for name, rows in (("train", data.train), ("test", test)):
            fields = [{"text": row.fields["text"], "label": row.fields["label"]} for row in rows]
            write_rows(folder / f"{name}.jsonl", fields)
        spec = {
            "model": str(catalog.model_folder("minilm-l6")),
            "train": str(folder / "train.jsonl"),
            "held_out": str(folder / "test.jsonl"),
            "out": str(folder),
            "seed": seed,
            "max_steps": given.peer_steps,
            "sampling_strategy": given.sampling,
        }
        write_json(folder / "spec.json", spec)
        environ = {**os.environ, "PYTHONPATH": str(BENCHMARKS), "HF_HUB_OFFLINE": "1"}
        script = BENCHMARKS / "peers" / "setfit_few_shot.py"
        started = time.time()
        subprocess.run([str(given.peer_python), str(script), str(folder / "spec.json")], env=environ, check=True)
        print(f"setfit, seed {seed}: {time.time() - started:.0f} s", file=sys.stderr)
    found = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return {"right": found["right"], "seconds": found["run_seconds"]}


if __name__ == "__main__":
    main()
