"""Distillation on real data: what a smaller student keeps of its teacher, and what the teacher was good for.

    python benchmarks/distill.py --out runs/distill                     all of it; what is done is not done again
    python benchmarks/distill.py --out ... --only banking77 --seeds 1   one draw of the student's rows instead of three
    python benchmarks/distill.py --out ... --rows 300                   a slice, to see that it runs; writes no results

banking77: MiniLM-L6 with a head fitted on all 9,010 training rows teaches MiniLM-L3, which has 16 of each intent; three
draws of these, each against the same student on their labels alone. (Tuning all of MiniLM-L6 gave 0.931 too, see
`results/acceptance.json`, and takes half an hour on a slow machine.)
pubmedqa: SmolLM2 cut to 15 of its 30 layers, taught by the whole of it on some abstracts, against the same cut student
without a teacher. A run that is stopped goes on where it was. Results go to `results/distill.json`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from acceptance import banking77
from common import RESULTS_FOLDER, results_in, run_or_resume
from language import write_data

from tunesmith import environment
from tunesmith.data.prepare import prepare
from tunesmith.disk import write_json
from tunesmith.learning_curve import over_seeds
from tunesmith.models.saving import load_artefact
from tunesmith.prediction.answering import answer
from tunesmith.prediction.setting import Setting
from tunesmith.recipe import Evaluate, Generation
from tunesmith.runs import Run, open_run, read_answers
from tunesmith.tasks import TASKS

RESULTS = RESULTS_FOLDER / "distill.json"
DISTILLATION = {"label_weight": 0.2, "temperature": 4.0}
TRAINING = {
    "epochs": 3,
    "learning_rate": 2e-4,
    "batch_size": 32,
    "dropout": 0,
    "compile": "off",
    "checkpoint_steps": 50,
}
STAGES = [
    {"name": "probe", "parameters": {"kind": "none"}},
    {"name": "tune", "parameters": {"kind": "layers", "layers": "last 3"}},  # all three: the embeddings stay
]
SHOTS = 16
TEXTS = 100
BASELINES = ["teacher", "without-teacher"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", choices=("banking77", "pubmedqa"))
    parser.add_argument("--seeds", type=int, default=3, help="of banking77")
    parser.add_argument("--rows", type=int)
    given = parser.parse_args()
    known = results_in(RESULTS, sets={})["sets"]
    if given.only != "pubmedqa":
        known["banking77"] = labels(given.out, given.seeds, given.rows) | {"environment": environment.describe()}
    if given.only != "banking77":
        known["pubmedqa"] = text(given.out, given.rows) | {"environment": environment.describe()}
    print(json.dumps(known, indent=1))
    if given.rows is None:
        write_json(RESULTS, {"sets": known})


def labels(out: Path, seeds: int, rows: int | None) -> dict[str, Any]:
    """MiniLM-L6 teaches MiniLM-L3 the intents of bank customers."""
    data = banking77(out)["data"]
    if rows:
        data = {"train": data["train"], "columns": data["columns"], "max_rows": rows}
    common = {"task": "text-classification", "data": data}
    first = common | {"model": "minilm-l6", "method": "features", "evaluate": {"baselines": []}}
    teacher = done(first, out / "teacher")
    found = []
    for seed in range(seeds):
        fewer = data | {"shots": 2 if rows else SHOTS, "shots_seed": seed}
        own = TRAINING | {"seed": seed, "distillation": DISTILLATION | {"teacher": str(teacher.path)}}
        tree = {"model": "minilm-l3", "method": "distillation", "data": fewer, "stages": STAGES, "training": own}
        tree = common | tree
        found.append(done(tree | {"evaluate": {"baselines": BASELINES}}, out / f"student-{seed}"))
    distilled = np.asarray([right(run) for run in found])
    alone = np.asarray([right_without_teacher(run) for run in found])
    settings = Evaluate()
    return {
        "distillation": DISTILLATION,
        "training": TRAINING,
        "seeds": [run.summary()["distillation"] for run in found],
        "distilled": over_seeds(distilled, settings).as_dict(),
        "alone": over_seeds(alone, settings).as_dict(),
        "difference": over_seeds(distilled - alone, settings).as_dict(),
        "tuning_seconds": [run.summary()["tuning_seconds"] for run in found],
        "teacher_seconds": teacher.summary()["tuning_seconds"],
        "peak_memory_bytes": max(run.summary()["peak_memory_bytes"] for run in found),
    }


def text(out: Path, rows: int | None) -> dict[str, Any]:
    """SmolLM2 teaches half of itself the language of abstracts: surprise at held-out ones, in bits per byte."""
    paths = write_data(out, rows)
    own = {"label_weight": 0.5, "cache": "sampled", "kept_tokens": 64}
    training = {"epochs": 1, "learning_rate": 3e-4, "batch_size": 4, "dropout": 0, "compile": "off"}
    tree = {
        "task": "language-modeling",
        "model": "smollm2-135m-instruct",
        "student": {"layers": 15},
        "method": "distillation",
        "data": {
            "train": str(paths["abstracts"]),
            "max_rows": rows or TEXTS,
            "max_length": 256,
            "validation": 0.05,
            "test": 0.2,
        },
        "training": training | {"distillation": own},
        "evaluate": {"baselines": ["base", *BASELINES], "limit": 20, "general": None},
    }
    summary = done(tree, out / "half").summary()
    kept = ("distillation", "tuning_seconds", "tokens", "tokens_per_second", "peak_memory_bytes")
    return {"settings": own, "training": training} | {name: summary[name] for name in kept}


def done(tree: dict[str, Any], folder: Path) -> Run:
    """The finished run of a recipe; one that was begun goes on."""
    if (folder / "summary.json").exists():
        return open_run(folder)
    return run_or_resume(tree, folder)


def right(run: Run) -> list[int]:
    """Right or wrong on each test row, in the order of the keys."""
    return [int(a.answer == a.reference) for a in sorted(read_answers(run), key=lambda answer: answer.key)]


def right_without_teacher(run: Run) -> list[int]:
    """The same of the student that was trained beside it on labels alone."""
    kept = run.path / "without-teacher" / "right.json"
    if not kept.exists():
        rows = sorted(prepare(run.recipe).test, key=lambda row: row.key)
        model, notes = load_artefact(run.path / "without-teacher" / "model")
        task = TASKS["text-classification"]
        outputs = answer(model, rows, Setting(task, notes.labels, None, Generation()))
        assert outputs.probabilities is not None and notes.labels
        chosen = [notes.labels[number] for number in outputs.probabilities.argmax(1)]
        write_json(kept, [int(one == task.target_text(row)) for one, row in zip(chosen, rows, strict=True)])
    found: list[int] = json.loads(kept.read_text(encoding="utf-8"))
    return found


if __name__ == "__main__":
    main()
