"""Entities of WNUT-17 with MiniLM-L6: Tunesmith against transformers' Trainer, the same settings in both.

    python benchmarks/tasks/wnut17.py                 5 epochs of all 3,394 sentences, seed 0
    python benchmarks/tasks/wnut17.py --repeats 3     seeds 0, 1 and 2
    python benchmarks/tasks/wnut17.py --speeds        40 updates of each, turn by turn, three times; adds to the results
    python benchmarks/tasks/wnut17.py --quick         a few updates on a few sentences; writes no results

Each contender is a process of its own and leaves the spans that it found; both are measured by the same code, strict
span F1 with bootstrap intervals and a paired comparison. Speed is real tokens, without padding, over the seconds of the
updates; `--speeds` measures it in turns, so that a machine that slows down slows all of them. Results go to
`benchmarks/results/wnut17.json`. The data lie beside the project (`../shared/data/wnut17`).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cpu
from common import RESULTS_FOLDER, SHARED, write_rows

from tunesmith import catalog, environment
from tunesmith.data.conll import read_sentences
from tunesmith.data.problems import Fault
from tunesmith.data.sources import Source
from tunesmith.data.spans import Span
from tunesmith.data.tag_schemes import spans_of_tags
from tunesmith.data.words import token_offsets
from tunesmith.disk import write_json
from tunesmith.evaluation.comparison import System, compare
from tunesmith.evaluation.metrics import measure
from tunesmith.prediction.outputs import Outputs, Truth
from tunesmith.recipe import Evaluate

DATA = SHARED / "wnut17"
WORK = cpu.PEERS / "work" / "wnut17"
RESULT = RESULTS_FOLDER / "wnut17.json"
LABELS = ["corporation", "creative-work", "group", "location", "person", "product"]
SETTINGS = {"epochs": 5, "batch_size": 32, "learning_rate": 1e-4, "max_length": 128, "labels": LABELS}
CONTENDERS: dict[str, tuple[str, dict[str, Any]]] = {
    "tunesmith": ("ours/tag.py", {}),
    "tunesmith, dropout 0": ("ours/tag.py", {"dropout": 0.0}),
    "hf-trainer": ("peers/hf_tag.py", {}),
    "hf-trainer, dropout 0": ("peers/hf_tag.py", {"dropout": 0.0}),
}
LEARNING = ("tunesmith", "tunesmith, dropout 0", "hf-trainer")
"""Those that learn in full, and are compared by what they find."""
SPEED_ROUNDS, SPEED_UPDATES, WARM_UP = 3, 40, 10
"""Of each round's updates the first are left out: memory grows, and products are prepared."""


def sentences(name: str, limit: int | None) -> list[dict[str, Any]]:
    """The sentences of a file, with tokens and tags."""
    found = list(read_sentences(Source(name, "conll", DATA / name), "utf-8"))
    for fault in (item for item in found if isinstance(item, Fault)):
        raise SystemExit(f"{fault.origin}: {fault.message}")
    rows = [item[0] for item in found if not isinstance(item, Fault)]
    return rows[:limit]


def spans_of(row: dict[str, Any], tags: list[str]) -> list[Span]:
    """Tags of a sentence's tokens as spans of characters."""
    places = token_offsets(row["tokens"])
    return [Span(places[first][0], places[end - 1][1], label) for first, end, label in spans_of_tags(tags)]


def run(name: str, seed: int, train: Path, test: Path, steps: int | None) -> tuple[dict[str, Any], Path]:
    """One contender in a process of its own; its measurements, and the folder with its answers."""
    script, options = CONTENDERS[name]
    folder = WORK / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model = catalog.model_folder("minilm-l6")
    spec = SETTINGS | {"model": str(model), "train": str(train), "held_out": str(test), "steps": steps}
    load = round(os.getloadavg()[0], 2)  # near 0 on a machine that does nothing else
    print(f"{name}, seed {seed} ...", file=sys.stderr, flush=True)
    measured = cpu.execute(script, spec | {"seed": seed, "options": options, "out": str(folder)}, peer=False, extra={})
    speed = rate(measured)
    kept = ("run_seconds", "evaluation_seconds", "peak_rss_bytes", "precision", "threads", "versions")
    head = {"seed": seed, "load_before": load, "tokens_per_second": speed}
    return head | {n: measured[n] for n in kept} | {"after_warm_up": rate(measured, WARM_UP)}, folder


def rate(measured: dict[str, Any], left_out: int = 0) -> float:
    """Real tokens a second of the updates behind the first few."""
    return sum(measured["step_tokens"][left_out:]) / max(1e-9, sum(measured["step_seconds"][left_out:]))


def speeds(train: Path, test: Path) -> dict[str, Any]:
    """Tokens a second of each contender, one value a round, and their medians."""
    found: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    loads = []
    for number in range(SPEED_ROUNDS):
        for name in CONTENDERS:
            measured, _ = run(name, number, train, test, SPEED_UPDATES)
            found[name].append(round(measured["after_warm_up"], 1))
            loads.append(measured["load_before"])
    return {
        "machine": environment.machine(),
        "revision": cpu.revision(),
        "updates": SPEED_UPDATES,
        "left_out": WARM_UP,
        "load_before": loads,
        "tokens_per_second": found,
        "median": {name: statistics.median(values) for name, values in found.items()},
    }


def answers(folder: Path, rows: list[dict[str, Any]]) -> list[list[Span]]:
    """The spans that a contender found."""
    if (folder / "spans.json").is_file():
        return [[Span(*span) for span in spans] for spans in json.loads((folder / "spans.json").read_text("utf-8"))]
    tags = json.loads((folder / "tags.json").read_text("utf-8"))
    return [spans_of(row, found) for row, found in zip(rows, tags, strict=True)]


def known_results() -> dict[str, Any]:
    """What was measured before, of which a run replaces its own part."""
    known: dict[str, Any] = json.loads(RESULT.read_text("utf-8")) if RESULT.is_file() else {}
    return known


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=1, help="runs of each contender, each with its own seed")
    parser.add_argument("--speeds", action="store_true", help="measure speeds only, in turns")
    parser.add_argument("--quick", action="store_true", help="8 updates on 256 sentences; writes no results")
    args = parser.parse_args()
    rows, test_rows = (
        sentences(n, 256 if args.quick else None) for n in ("wnut17train.conll", "emerging.test.annotated")
    )
    WORK.mkdir(parents=True, exist_ok=True)
    train, test = WORK / "train.jsonl", WORK / "test.jsonl"
    for path, lines in ((train, rows), (test, test_rows)):
        write_rows(path, lines)
    if args.speeds:
        write_json(RESULT, known_results() | {"speeds": speeds(train, test)})
        print(RESULT)
        return
    right = Truth("spans", [spans_of(row, row["tags"]) for row in test_rows], LABELS)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in LEARNING}
    comparisons = []
    for seed in range(args.repeats):
        systems = []
        for name in LEARNING:
            measured, folder = run(name, seed, train, test, 8 if args.quick else None)
            outputs = Outputs(spans=answers(folder, test_rows))
            metrics = measure(outputs, right, Evaluate())
            runs[name].append(measured | {"metrics": {n: interval.as_dict() for n, interval in metrics.items()}})
            systems.append(System(name, name, "", outputs, metrics))
            print(f"  span F1 {metrics['span_f1']}, {measured['tokens_per_second']:.0f} tokens/s", file=sys.stderr)
        for found in compare(systems[0], systems[1:], right, Evaluate()):
            comparisons.append({"seed": seed, "other": found.system, "difference": found.difference.as_dict()})
            print(f"  tunesmith minus {found.system}: {found.difference.format(signed=True)}", file=sys.stderr)
    if not args.quick:
        head = {"machine": environment.machine(), "settings": SETTINGS, "revision": cpu.revision()}
        write_json(RESULT, known_results() | head | {"runs": runs, "comparisons": comparisons})
        print(RESULT)


if __name__ == "__main__":
    main()
