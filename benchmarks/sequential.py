"""Task after task on real data with MiniLM-L6, and what the remedies against forgetting are worth.

    python benchmarks/sequential.py                         both chains, with every remedy
    python benchmarks/sequential.py --only mixed/replay     one remedy of a chain
    python benchmarks/sequential.py --rows 200              a slice, to see that everything runs; writes no results

The chain `mixed` is sentence_polarity -> banking77 -> wnut17, all parameters; `labels` is sentence_polarity -> half of
banking77's intents -> the other half with LoRA, for adapters can be merged only where no task's head is inside of them.
There is no dropout, and one example is replayed for five of a stage; all else is the defaults. Nothing was tuned for
these tasks. Results go to `results/sequential.json`.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from pathlib import Path
from typing import Any

from common import RESULTS_FOLDER, SHARED, polarity_rows, results_in, run_or_resume, write_rows

from tunesmith import environment
from tunesmith.disk import write_json

MOST_ROWS = 4000
"""Rows of each task that are used: shares for validation and test are taken from them where a task has no such data of
its own. (WNUT-17 has 3,394 training rows.)"""
RESULTS = RESULTS_FOLDER / "sequential.json"
REMEDIES: dict[str, dict[str, dict[str, Any]]] = {
    "mixed": {
        "none": {},
        "replay": {"replay": 0.2},
        "l2": {"hold": "l2"},
        "ewc": {"hold": "ewc"},
        "separate adapters": {"adapters": "separate"},
    },
    "labels": {
        "none": {},
        "replay": {"replay": 0.2},
        "separate adapters": {"adapters": "separate"},
        "linear": {"adapters": "linear"},
        "ties": {"adapters": "ties"},
        "dare": {"adapters": "dare"},
    },
}


def stages(chain: str, folder: Path, rows: int | None) -> list[dict[str, Any]]:
    """The tasks of a chain, each with its own data."""
    polarity = write_rows(folder / "polarity.jsonl", polarity_rows())
    some = {"max_rows": rows or MOST_ROWS}
    first = {"name": "polarity", "data": {"train": polarity, **some}}
    bank, entities = SHARED / "banking77", SHARED / "wnut17"
    if chain == "labels":
        halves = [intents(folder, some, half) for half in (0, 1)]
        return [first, *halves]
    return [
        first,
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


def intents(folder: Path, some: dict[str, Any], half: int) -> dict[str, Any]:
    """Every other intent of banking77, in alphabetical order, from its first or its second."""
    files: dict[str, Any] = {}
    for name in ("train", "test"):
        with (SHARED / "banking77" / f"{name}.csv").open(encoding="utf-8", newline="") as source:
            found = list(csv.DictReader(source))
        own = sorted({row["category"] for row in found})[half::2]
        rows = [{"text": row["text"], "label": row["category"]} for row in found if row["category"] in own]
        files[name] = write_rows(folder / f"intents-{half + 1}-{name}.jsonl", rows)
    return {"name": f"intents-{half + 1}", "data": files | some}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = [f"{chain}/{name}" for chain, remedies in REMEDIES.items() for name in remedies]
    parser.add_argument("--only", nargs="+", choices=every, default=every)
    parser.add_argument("--rows", type=int)
    chosen = parser.parse_args()
    for path in chosen.only:
        chain, name = path.split("/")
        with tempfile.TemporaryDirectory() as folder:
            found = run_one(chain, REMEDIES[chain][name], Path(folder), chosen.rows)
        matrix = [[None if cell is None else round(cell["value"], 3) for cell in line] for line in found["matrix"]]
        print(path, matrix, "forgetting", found.get("forgetting"), f"{found['seconds']:.0f} s")
        if chosen.rows is None:
            known = results_in(RESULTS, chains={})["chains"]
            known.setdefault(chain, {})[name] = found
            write_json(RESULTS, {"environment": environment.describe(), "chains": known})


def run_one(chain: str, settings: dict[str, Any], folder: Path, rows: int | None) -> dict[str, Any]:
    """All stages with one remedy."""
    tree = {
        "task": "text-classification",
        "model": "minilm-l6",
        "method": "sequential",
        "stages": stages(chain, folder, rows),
        "sequence": settings,
        "parameters": {"kind": "lora" if "adapters" in settings or chain == "labels" else "full"},
        "training": {"epochs": 1 if rows else 2, "dropout": 0.0},
        "evaluate": {"baselines": [], **({"limit": 100} if rows else {})},
    }
    summary = run_or_resume(tree, folder / "run").summary()
    return dict(summary["sequence"]) | {"seconds": summary["tuning_seconds"], "sequence": settings}


if __name__ == "__main__":
    main()
