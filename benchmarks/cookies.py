"""Pictures of whole and broken cookies with EfficientNet-Lite0: frozen features against the head, last layers, and all.

    python benchmarks/cookies.py --out benchmarks/results/cookies.json
    python benchmarks/cookies.py --out /tmp/c.json --cases features head --seeds 1      a quick look

63 pictures to learn from, 22 to measure on: one picture is 4.5 points, and the intervals say so. The rates are a choice
beforehand, the same for all seeds; no validation rows, so the last weights count. What is done is not done again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from common import SHARED, results_in, run_or_resume

from tunesmith import environment
from tunesmith.disk import write_json

CASES: dict[str, dict[str, Any]] = {
    "features": {"method": "features"},
    "head": {"method": "transfer", "parameters": "head", "training": {"learning_rate": 1e-2}},
    "last-4": {
        "method": "transfer",
        "parameters": {"kind": "layers", "layers": "last 4"},
        "training": {"learning_rate": 3e-4},
    },
    "full": {"method": "full", "training": {"learning_rate": 3e-4}},
    "full-augmented": {"method": "full", "training": {"learning_rate": 3e-4, "augment": ["flip", "crop"]}},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cases", nargs="+", default=[*CASES], choices=[*CASES])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=10)
    given = parser.parse_args()
    result = results_in(given.out, epochs=given.epochs, runs={})
    for case in given.cases:
        for seed in range(given.seeds if case != "features" else 1):
            name = f"{case}:{seed}"
            if name in result["runs"]:
                continue
            result["runs"][name] = _run(case, seed, result["epochs"])
            result["machine"], result["versions"] = environment.machine(), environment.versions()
            write_json(given.out, result)
            print(name, json.dumps(result["runs"][name]), flush=True)


def _run(case: str, seed: int, epochs: float) -> dict[str, Any]:
    cookies = SHARED / "cookies"
    tree: dict[str, Any] = {"task": "image-classification", "model": "efficientnet-lite0", **CASES[case]}
    tree["data"] = {"train": str(cookies / "train"), "test": [str(cookies / "test")], "validation": 0}
    tree["training"] = {"epochs": epochs, "batch_size": 8, "seed": seed, "compile": "off", **tree.get("training", {})}
    tree["evaluate"] = {"baselines": ["majority"]}
    with tempfile.TemporaryDirectory() as scratch:
        run = run_or_resume(tree, Path(scratch) / "run")
        summary, accuracy = run.summary(), run.metrics["accuracy"]
    return {
        "accuracy": accuracy.value,
        "low": accuracy.low,
        "high": accuracy.high,
        "tuning_seconds": round(summary["tuning_seconds"], 2),
        "trainable_parameters": summary["trainable_parameters"],
    }


if __name__ == "__main__":
    main()
