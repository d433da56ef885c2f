"""GRPO on sums in words (SVAMP): SmolLM2-135M, rewarded if the last number of its answer is right.

    python benchmarks/svamp.py --out runs/svamp            again, it goes on where it was stopped
    python benchmarks/svamp.py --out runs/svamp --quick    a few steps; writes no results
    python benchmarks/svamp.py --picture                   draw the committed results' curve for the documentation

Eight answers to each of eight problems a step; LoRA of rank 16. Held out: 150 of the 1,000 problems, asked greedily.
Settings were not chosen on them. Results go to `results/svamp.json`; the data lie beside the project.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from common import OUTCOME, RESULTS_FOLDER, ROOT, SHARED, run_or_resume, write_rows
from rlhf import curve

from tunesmith import disk, environment
from tunesmith.evaluation.charts import policy_chart
from tunesmith.evaluation.curve_chart import on_its_own

SOURCE = SHARED / "svamp" / "SVAMP.json"
RESULTS = RESULTS_FOLDER / "svamp.json"
PICTURE = ROOT / "docs" / "assets" / "svamp.svg"
KEPT = (*OUTCOME, "reinforcement", "side_by_side")


def problems(folder: Path) -> str:
    """The problems as prompts with their answer; the file."""
    rows = [
        {"prompt": f"{row['Body'].rstrip('. ')}. {row['Question']}", "completion": f"{row['Answer']:g}"}
        for row in json.loads(SOURCE.read_text(encoding="utf-8"))
    ]
    return write_rows(folder / "problems.jsonl", rows)


def recipe(folder: Path, quick: bool) -> dict[str, Any]:
    """The recipe: rewards of 1 for the right number alone."""
    return {
        "task": "text-generation",
        "model": "smollm2-135m-instruct",
        "method": "verifiable-reward",
        "system_prompt": "Work it out in one short sentence, and end with the number.",
        "data": {"train": problems(folder), "validation": 0.05, "test": 0.15, "max_length": 256},
        "parameters": {"kind": "lora", "rank": 16},
        "training": {
            "max_steps": 2 if quick else 40,
            "batch_size": 2 if quick else 8,
            "learning_rate": 2e-4,
            "schedule": "constant",
            "warmup": 0.05,
            "dropout": 0,
            "eval_steps": 20,
            "checkpoint_steps": 5,
            "rewards": [{"kind": "number"}],
            "rollouts": {"max_new_tokens": 48, "validation_prompts": 48},
        },
        "evaluate": {"baselines": ["base"], "limit": 8 if quick else 150},
    }


def main() -> None:
    """Train, measure, and keep the curve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "svamp")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--picture", action="store_true")
    given = parser.parse_args()
    if given.picture:
        known = json.loads(RESULTS.read_text(encoding="utf-8"))
        disk.write_text(PICTURE, on_its_own(policy_chart(known["curve"])))
        return
    run = run_or_resume(recipe(given.out, given.quick), given.out / "run")
    summary = run.summary()
    print(summary["verdict"])
    if not given.quick:
        found = {key: summary[key] for key in KEPT} | {"recipe": run.recipe.to_yaml(), "curve": curve(run)}
        disk.write_json(RESULTS, {"environment": environment.describe()} | found)


if __name__ == "__main__":
    main()
