"""Task after task on real data, and what the remedies against forgetting are worth.

    python benchmarks/sequential.py                    sentence_polarity -> banking77 -> wnut17 with MiniLM-L6
    python benchmarks/sequential.py --only replay      one of the remedies
    python benchmarks/sequential.py --rows 200         a slice, to see that everything runs; writes no results

Settings of the remedies are the defaults, not tuned for these tasks. Results go to `results/sequential.json`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT / "src"))

from tunesmith import environment, pipeline, recipe_file  # noqa: E402
from tunesmith.disk import write_json, write_text  # noqa: E402
from tunesmith.progress import shown  # noqa: E402

MOST_ROWS = 4000
"""Rows of each task that are learned from."""
SHARED = ROOT.parent / "shared" / "data"
RESULTS = HERE / "results" / "sequential.json"
REMEDIES: dict[str, dict[str, Any]] = {
    "none": {},
    "replay": {"replay": 0.2},
    "l2": {"hold": "l2"},
    "ewc": {"hold": "ewc"},
    "separate adapters": {"adapters": "separate"},
}


def stages(folder: Path, rows: int | None) -> list[dict[str, Any]]:
    """The three tasks, each with its own data."""
    lines = []
    for ending, label in (("pos", "positive"), ("neg", "negative")):
        text = (SHARED / "sentence_polarity" / f"rt-polarity.{ending}").read_text(encoding="utf-8")
        lines += [json.dumps({"text": line.strip(), "label": label}) for line in text.splitlines() if line.strip()]
    polarity = folder / "polarity.jsonl"
    write_text(polarity, "\n".join(lines) + "\n")
    bank, entities = SHARED / "banking77", SHARED / "wnut17"
    some = {"max_rows": rows or MOST_ROWS}
    return [
        {"name": "polarity", "data": {"train": str(polarity), **some}},
        {
            "name": "banking77",
            "data": {
                "train": str(bank / "train.csv"),
                **({} if rows else {"test": str(bank / "test.csv")}),  # a slice lacks some of the test's intents
                "columns": {"label": "category"},
                **some,
            },
        },
        {
            "name": "wnut17",
            "task": "token-classification",
            "data": {
                "train": str(entities / "wnut17train.conll"),
                "validation": str(entities / "emerging.dev.conll"),
                "test": str(entities / "emerging.test.annotated"),
                "format": "conll",
                **some,
            },
        },
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=sorted(REMEDIES))
    parser.add_argument("--rows", type=int)
    chosen = parser.parse_args()
    known = json.loads(RESULTS.read_text(encoding="utf-8"))["remedies"] if RESULTS.is_file() else {}
    for name, settings in REMEDIES.items():
        if chosen.only not in (None, name):
            continue
        with tempfile.TemporaryDirectory() as folder:
            found = run_one(settings, Path(folder), chosen.rows)
        matrix = [[None if cell is None else round(cell["value"], 3) for cell in line] for line in found["matrix"]]
        print(name, matrix, "forgetting", found.get("forgetting"), f"{found['seconds']:.0f} s")
        known[name] = found
        if chosen.rows is None:
            write_json(RESULTS, {"environment": environment.describe(), "remedies": known})


def run_one(settings: dict[str, Any], folder: Path, rows: int | None) -> dict[str, Any]:
    """All stages with one remedy."""
    tree = {
        "task": "text-classification",
        "model": "minilm-l6",
        "method": "sequential",
        "stages": stages(folder, rows),
        "sequence": settings,
        "parameters": {"kind": "lora"} if "adapters" in settings else {"kind": "full"},
        "training": {"epochs": 1 if rows else 2, "dropout": 0.0},
        "evaluate": {"baselines": [], **({"limit": 100} if rows else {})},
    }
    with shown() as on_event:
        run = pipeline.run(recipe_file.parse(tree), run_dir=folder / "run", on_event=on_event)
    summary = run.summary()
    return dict(summary["sequence"]) | {"seconds": summary["tuning_seconds"], "sequence": settings}


if __name__ == "__main__":
    main()
