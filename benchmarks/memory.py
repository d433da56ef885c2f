"""What recomputed activations and moments in 8 bits save, and what they cost: SmolLM2-135M, all parameters.

    python benchmarks/memory.py     four runs of a few updates on gsm8k; writes results/memory.json

Each run is a process of its own that makes the same updates on batches of 16 in one pass. Plan and measurement stand
side by side, and so do the losses: recomputing may change nothing. The data lie beside the project.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from common import RESULTS_FOLDER, SHARED, TUNESMITH

from tunesmith import environment
from tunesmith.disk import write_json

DATA = SHARED / "gsm8k" / "train.jsonl"
RESULT = RESULTS_FOLDER / "memory.json"
STEPS = 5
WAYS: dict[str, dict[str, str]] = {
    "plain": {},
    "recompute": {"recompute": "on"},
    "adamw-8bit": {"optimizer": "adamw-8bit"},
    "both": {"recompute": "on", "optimizer": "adamw-8bit"},
}


def main() -> None:
    found = {}
    for name, settings in WAYS.items():
        with tempfile.TemporaryDirectory() as folder:
            found[name] = run(settings, Path(folder))
        print(name, {key: value for key, value in found[name].items() if key != "losses"}, flush=True)
    write_json(RESULT, {"environment": environment.describe(), "steps": STEPS, "ways": found})


def run(settings: dict[str, str], folder: Path) -> dict[str, Any]:
    """One run in a process of its own; the first two updates, which compile the optimizer, are not timed."""
    recipe = {
        "task": "text-generation",
        "model": "smollm2-135m-instruct",
        "method": "full",
        "data": {
            "train": str(DATA),
            "columns": {"prompt": "question", "completion": "answer"},
            "validation": 0.0,
            "test": 0.0,
            "max_rows": 16 * STEPS,
        },
        "training": {"epochs": 1, "batch_size": 16, "micro_tokens": 8192, **settings},
    }
    (folder / "recipe.json").write_text(json.dumps(recipe), encoding="utf-8")
    line = [*TUNESMITH, "tune", str(folder / "recipe.json"), "--json", "--run-dir", str(folder / "run")]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    plan = json.loads((folder / "run" / "plan.json").read_text(encoding="utf-8"))
    events = [json.loads(text) for text in (folder / "run" / "events.jsonl").read_text("utf-8").splitlines()]
    steps = [event for event in events if event["type"] == "step"]
    timed = steps[2:]
    return {
        "tokens_per_second": round(sum(s["tokens"] for s in timed) / sum(s["seconds"] for s in timed)),
        "peak_bytes": plan["measured"]["memory_bytes"],
        "planned_bytes": plan["planned"]["expected"]["memory_bytes"],
        "losses": [step["loss"] for step in steps],
    }


if __name__ == "__main__":
    main()
