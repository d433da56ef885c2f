"""Learning from bare text on real data: PubMedQA's abstracts, and the questions about them.

    python benchmarks/language.py                     all three
    python benchmarks/language.py --only causal       SmolLM2-135M, LoRA: bits per byte of held-out abstracts
    python benchmarks/language.py --only masked       MiniLM-L6, all parameters: masked loss
    python benchmarks/language.py --only domain       MiniLM-L6: abstracts, then yes/no/maybe, against the latter alone
    python benchmarks/language.py --rows 60           a slice, to see that everything runs; writes no results

General text is Python's reference. Results go to `results/language.json`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from common import KEPT, RESULTS_FOLDER, SHARED, results_in, run_or_resume, write_rows

from tunesmith import environment
from tunesmith.disk import write_json

SOURCE = SHARED / "pubmedqa"
RESULTS = RESULTS_FOLDER / "language.json"


def write_data(folder: Path, limit: int | None) -> dict[str, Path]:
    """Abstracts as documents; questions with their abstract and answer, the test part as the authors have it."""
    rows = json.loads((SOURCE / "ori_pqal.json").read_text(encoding="utf-8"))
    held_out = json.loads((SOURCE / "test_ground_truth.json").read_text(encoding="utf-8"))
    files: dict[str, list[dict[str, str]]] = {"abstracts": [], "train": [], "test": []}
    for key in sorted(rows)[:limit]:
        row = rows[key]
        abstract = " ".join(row["CONTEXTS"])
        files["abstracts"].append({"text": abstract})
        question = {"text": f"{row['QUESTION']} {abstract}", "label": row["final_decision"]}
        files["test" if key in held_out else "train"].append(question)
    paths = {name: folder / f"{name}.jsonl" for name in files}
    for name, lines in files.items():
        write_rows(paths[name], lines)
    return paths


def recipes(paths: dict[str, Path]) -> dict[str, dict[str, Any]]:
    """The three experiments. The corpus of `domain` leaves out the abstracts that are asked about in the test."""
    language = {"task": "language-modeling", "method": "self-supervised", "data": {"train": str(paths["abstracts"])}}
    questions = {"train": str(paths["train"]), "test": str(paths["test"])}
    return {
        "causal": language
        | {
            "model": "smollm2-135m-instruct",
            "parameters": {"kind": "lora", "rank": 16},
            "training": {"epochs": 1, "learning_rate": 5e-4, "dropout": 0.0},
        },
        "masked": language | {"model": "minilm-l6", "training": {"epochs": 6, "learning_rate": 3e-4, "dropout": 0.0}},
        "domain": {
            "task": "text-classification",
            "model": "minilm-l6",
            "method": "domain",
            "data": questions,
            "stages": [
                {
                    "name": "domain",
                    "objective": "masked-lm",
                    "data": {"train": str(paths["train"])},
                    "training": {"epochs": 10, "learning_rate": 3e-4, "dropout": 0.0},
                },
                {"name": "task", "training": {"epochs": 4, "learning_rate": 1e-4}},
            ],
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("causal", "masked", "domain"))
    parser.add_argument("--rows", type=int)
    chosen = parser.parse_args()
    known = results_in(RESULTS, runs={})["runs"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for experiment, tree in recipes(write_data(folder, chosen.rows)).items():
            if chosen.only not in (None, experiment):
                continue
            summary = run_or_resume(tree, folder / experiment).summary()
            print(experiment, summary["verdict"], json.dumps(summary.get("general_text") or summary.get("stages")))
            further = {key: summary[key] for key in ("general_text", "stages") if key in summary}
            known[experiment] = {key: summary[key] for key in KEPT} | further | {"training": tree.get("training")}
            if chosen.rows is None:
                write_json(RESULTS, {"environment": environment.describe(), "runs": known})


if __name__ == "__main__":
    main()
