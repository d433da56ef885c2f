"""Summaries (SciTLDR) and shell commands (tldr pages, split by tool) with SmolLM2-135M and LoRA.

    python benchmarks/tasks/writing.py                   both, as the results were made
    python benchmarks/tasks/writing.py --only scitldr
    python benchmarks/tasks/writing.py --quick           a few updates and test rows; writes no results

SciTLDR: ROUGE-1 against the first sentence, the best extract, and the untuned model with 0 and 2 examples; the test
rows have 2 to 4 references. Commands: exact match and chrF against the untuned model with 0 and 5 examples, on tools
that no training row names. Settings were not chosen on test rows. Results go to `benchmarks/results/writing.json`; the
data lie beside the project (`../shared/data`).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import KEPT, RESULTS_FOLDER, SHARED, results_in, run_or_resume, write_rows

from tunesmith import environment
from tunesmith.disk import write_json

RESULT = RESULTS_FOLDER / "writing.json"


def scitldr(folder: Path) -> dict[str, Any]:
    """Abstracts of papers and one-line summaries; the files are read as they are."""
    parts = {part: str(SHARED / "scitldr" / f"{name}.jsonl") for part, name in PARTS.items()}
    return {
        "task": "summarization",
        "data": {**parts, "max_length": 768, "max_rows": 1000},
        "training": {"epochs": 1, "batch_size": 16},
        "evaluate": {
            "baselines": ["base", {"few-shot": 2}, "lead", "oracle"],
            "limit": 200,
            "generation": {"max_new_tokens": 64},
        },
    }


def tldr_pages(folder: Path) -> dict[str, Any]:
    """What a command shall do, and the command; the tool is named, for many do things of the same description."""
    lines = (SHARED / "tldr_pages" / "tldr_en_pairs.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [
        {"tool": row["tool"], "prompt": f"{row['tool']}: {row['instruction']}", "completion": row["response"]}
        for row in map(json.loads, lines)
    ]
    return {
        "task": "text-generation",
        "system_prompt": "Answer with the shell command alone.",
        "data": {
            "train": write_rows(folder / "commands.jsonl", rows),
            "group_by": "tool",
            "validation": 0.02,
            "test": 0.1,
            "max_length": 256,
            "max_rows": 4000,
        },
        "training": {"epochs": 1, "batch_size": 32},
        "evaluate": {
            "baselines": ["base", {"few-shot": 5}],
            "metric": "exact_match",
            "limit": 300,
            "generation": {"max_new_tokens": 48},
        },
    }


PARTS = {"train": "train", "validation": "dev", "test": "test"}
SETS = {"scitldr": scitldr, "tldr_pages": tldr_pages}


def run_one(name: str, folder: Path, quick: bool) -> dict[str, Any]:
    """One data set: tune, measure, compare."""
    tree = {"model": "smollm2-135m-instruct", "method": "peft"} | SETS[name](folder)
    if quick:
        tree["data"] |= {"max_rows": 400, "validation": 0.02, "test": 0.1}
        tree["training"] |= {"max_steps": 4, "batch_size": 4}
        tree["evaluate"] |= {"limit": 12, "resamples": 200}
    run = run_or_resume(tree, folder / "run")
    summary = run.summary()
    print(f"{name}: {summary['verdict']}")
    report = json.loads((run.path / "report.json").read_text(encoding="utf-8"))
    speeds = {system["name"]: system["written_tokens_per_second"] for system in report["systems"]}
    recipe = run.recipe.to_yaml().replace(str(SHARED), "../shared/data").replace(str(folder), ".")
    return {key: summary[key] for key in KEPT} | {"written_tokens_per_second": speeds, "recipe": recipe}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=sorted(SETS))
    parser.add_argument("--quick", action="store_true")
    asked = parser.parse_args()
    known = results_in(RESULT, sets={})["sets"]
    for name in [asked.only] if asked.only else sorted(SETS):
        with tempfile.TemporaryDirectory() as folder:
            known[name] = run_one(name, Path(folder), asked.quick)
        if not asked.quick:
            write_json(RESULT, {"environment": environment.describe(), "sets": known})


if __name__ == "__main__":
    main()
