"""Plans against measurements: small real runs on this machine, each in a process of its own.

    python benchmarks/planning.py --measure 400   make runs that are missing, and begin none after so many seconds
    python benchmarks/planning.py --plan          plan each of them anew, after one calibration a kind; writes the page

A kind of run is calibrated by its first run, which is not counted. The measurements do not depend on the plan, so a
changed model of costs is judged by `--plan` alone. The machine is shared with other work: a run's time is the
processors' time of its updates over the threads, as plans mean it; the clock's is written beside it.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import RESULTS_FOLDER, ROOT, SHARED, TUNESMITH, results_in, snippets

from tunesmith.disk import write_json, write_text

DOCS = ROOT / "docs" / "plan-accuracy.md"
TIME_OFF, MEMORY_OFF, MEMORY_UNDER = 0.25, 0.15, 0.05
"""How far a plan may be off; of memory also how far below."""
PATIENCE = 420  # seconds for one run
PRECISION = "fp32"
"""Of all runs, so that those of machines with and without fast bf16 are the same."""


@dataclass(frozen=True)
class Case:
    """One run.

    Attributes:
        kind: By which it is calibrated; the first of each kind is the calibration.
        data: Name of a table below.
        rows: Training rows.
        recipe: Further keys.
    """

    kind: str
    data: str
    rows: int
    recipe: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """For tables."""
        changed = {**self.recipe.get("training", {}), **self.recipe.get("parameters", {})}
        extra = ", ".join(f"{key} {value}" for key, value in changed.items() if key not in ("kind", "max_steps"))
        return f"{self.kind}: {self.data}, {self.rows} rows" + (f", {extra}" if extra else "")


def case(kind: str, data: str, rows: int, parameters: dict[str, Any] | None = None, **training: Any) -> Case:
    """A case, with the keys of its recipe that are not the default."""
    recipe: dict[str, Any] = {"training": {"batch_size": 2, **training} if "SmolLM2" in kind else training}
    return Case(kind, data, rows, {**recipe, **({"parameters": parameters} if parameters else {})})


FULL, LORA, TAG, WRITE, WRITE_FULL = (
    "MiniLM classify full",
    "MiniLM classify LoRA",
    "MiniLM tag full",
    "SmolLM2 write LoRA",
    "SmolLM2 write full",
)
METHODS = {FULL: "full", LORA: "peft", TAG: "full", WRITE: "peft", WRITE_FULL: "full"}
CASES = (
    case(FULL, "banking77", 600),
    case(FULL, "banking77", 1000, batch_size=64),
    case(FULL, "polarity", 500),
    case(FULL, "polarity", 600, dropout=0.0),
    case(LORA, "banking77", 750),
    case(LORA, "banking77", 1300),
    case(LORA, "polarity", 700),
    case(LORA, "polarity", 720, {"kind": "lora", "rank": 64}, batch_size=64),
    case(TAG, "wnut17", 360),
    case(TAG, "wnut17", 720),
    case(TAG, "wnut17", 600, batch_size=8),
    case(WRITE, "tldr", 40),
    case(WRITE, "tldr", 60),
    case(WRITE, "gsm8k", 12),
    case(WRITE, "scitldr", 9),
    case(WRITE_FULL, "tldr", 30),
    case(WRITE_FULL, "gsm8k", 9),
)


def main() -> int:
    """Measure some runs, or plan them all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", type=float, metavar="SECONDS", help="begin no run after so many seconds")
    parser.add_argument("--plan", action="store_true", help="plan all measured runs and write the page")
    parser.add_argument("--result", type=Path, help="the file of results; default: today's")
    args = parser.parse_args()
    path = args.result or RESULTS_FOLDER / f"planning-{datetime.date.today()}.json"
    started = time.monotonic()
    for number, one in enumerate(CASES):
        if args.measure and one.name not in read(path)["runs"] and time.monotonic() - started < args.measure:
            measure(number, path)
    if args.plan:
        plan_all(path)
    return 0


def measure(number: int, path: Path) -> None:
    """Make one run in a fresh process and keep what it took."""
    with tempfile.TemporaryDirectory() as place:
        done = in_process(number, Path(place), "tune", "--run-dir", f"{place}/run")
        if done.returncode:
            print(CASES[number].name, "failed:", done.stderr[-2000:], file=sys.stderr)
            return
        found = json.loads((Path(place) / "run" / "plan.json").read_text(encoding="utf-8"))
    results = read(path)
    results["runs"][CASES[number].name] = found["measured"] | {"then_planned": found["planned"]["expected"]}
    write(path, results)
    print(CASES[number].name, json.dumps(found["measured"]["stages"]), flush=True)


def plan_all(path: Path) -> None:
    """Plan every measured run in a fresh process, after one calibration a kind, and write the page."""
    from tunesmith import environment

    results = read(path)
    results |= {"plans": {}, "planned_on": environment.machine()}
    with tempfile.TemporaryDirectory() as place:
        for number, one in enumerate(CASES):
            if one.name not in results["runs"]:
                continue
            done = in_process(number, Path(place), "plan")
            if done.returncode:
                raise SystemExit(f"{one.name}: {done.stderr[-2000:]}")
            made, measured = json.loads(done.stdout), results["runs"][one.name]
            results["plans"][one.name] = compared(made, measured) | {"calibration": is_calibration(number)}
            print(one.name, json.dumps(results["plans"][one.name]), flush=True)
            if is_calibration(number):
                calibrate(made, measured, Path(place) / "cache")
    write(path, results)
    write_text(DOCS, page(results))


def is_calibration(number: int) -> bool:
    """Whether a run is the first of its kind."""
    return CASES[number].kind not in {one.kind for one in CASES[:number]}


def compared(made: dict[str, Any], measured: dict[str, Any]) -> dict[str, Any]:
    """Plan and measurement of a run, and by how much the plan is off."""
    seconds, memory = made["expected"]["update_seconds"], made["expected"]["memory_bytes"]
    return {
        "planned_seconds": seconds,
        "measured_seconds": round(measured["own_seconds"], 2),
        "clock_seconds": round(measured["seconds"], 2),
        "seconds_off": round(seconds / measured["own_seconds"] - 1, 3),
        "planned_bytes": memory,
        "measured_bytes": measured["memory_bytes"],
        "bytes_off": round(memory / measured["memory_bytes"] - 1, 3),
        "memory_parts": made["memory_parts"],
        "basis": made["stages"][0]["basis"],
    }


def calibrate(made: dict[str, Any], measured: dict[str, Any], cache: Path) -> None:
    """Let later plans of the kind learn from a run, as they would have where it was planned by this version."""
    os.environ["TUNESMITH_CACHE"] = str(cache)
    from tunesmith.planning import calibration
    from tunesmith.planning.result import FLEXIBLE

    flexible = sum(made["memory_parts"][part] for part in FLEXIBLE)
    known = calibration.record(
        calibration.Sample(
            machine=made["machine"],
            kind=made["stages"][0]["kind"],
            planned_seconds=made["expected"]["update_seconds"] / made["stages"][0]["correction"]["seconds"],
            seconds=measured["seconds"],
            own_seconds=measured["own_seconds"],
            planned_bytes=flexible / made["stages"][0]["correction"]["bytes"],
            bytes=measured["memory_bytes"] - sum(made["memory_parts"].values()) + flexible,
            time=time.time(),
        )
    )
    print("calibrated" if known else "NOT calibrated: the run is too short or too odd", flush=True)


def page(results: dict[str, Any]) -> str:
    """The page of the docs."""
    plans = results["plans"]
    counted = {name: plan for name, plan in plans.items() if not plan["calibration"]}
    first = {name: plan for name, plan in plans.items() if plan["calibration"]}
    in_time = sum(abs(plan["seconds_off"]) <= TIME_OFF for plan in counted.values())
    in_memory = sum(-MEMORY_UNDER <= plan["bytes_off"] <= MEMORY_OFF for plan in counted.values())
    missing = [one.name for one in CASES if one.name not in results["runs"]]
    facts, planned_on = results["machine"], results["planned_on"]
    elsewhere = (
        f"They were planned on another machine ({planned_on['processor']}), by its rates: the calibrating runs take up "
        "the difference, so that the times of the second table say nothing and those of the first are still plans "
        "after one calibration. Memory does not depend on it."
    )
    lines = [
        "# How good are the plans?",
        "",
        f"Small real runs on one machine ({facts['processor']}, {facts['threads']} threads, {facts['memory']}), each "
        "in a process of its own, measured once and planned by this version (`python benchmarks/planning.py`). The "
        "first run of each kind calibrates the plans of that kind and is not counted.",
        "",
        f"Of {len(counted)} runs, **{in_time} were planned within {TIME_OFF:.0%} of their time** and **{in_memory} "
        f"within {MEMORY_OFF:.0%} of their memory and not more than {MEMORY_UNDER:.0%} below it**. Misses are in bold.",
        "",
        "The time is the processors' time of the updates over the threads, which is what plans are about and what "
        "other work on the machine changes least; the last column is the clock's. The runs are short, so that their "
        "first updates weigh more than in a long run. The speed of thin products was fitted to the two banking77 runs "
        "of full training, so these two say less than the others.",
        "",
        *([elsewhere, ""] if planned_on != facts else []),
        "| run | planned | measured | off | memory planned | measured | off | by the clock |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
        *(row(name, plan) for name, plan in counted.items()),
        "",
        "The calibrating runs, planned before any run of their kind (by runs of other kinds, but for the first):",
        "",
        "| run | planned | measured | off | memory planned | measured | off | by the clock |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
        *(row(name, plan) for name, plan in first.items()),
        "",
        *([f"Not measured yet: {'; '.join(missing)}.", ""] if missing else []),
    ]
    return "\n".join(lines)


def row(name: str, plan: dict[str, Any]) -> str:
    """A line of the table."""
    late = abs(plan["seconds_off"]) > TIME_OFF
    large = not -MEMORY_UNDER <= plan["bytes_off"] <= MEMORY_OFF
    off, memory_off = f"{plan['seconds_off']:+.0%}", f"{plan['bytes_off']:+.0%}"
    cells = [
        name,
        f"{plan['planned_seconds']:.1f} s",
        f"{plan['measured_seconds']:.1f} s",
        f"**{off}**" if late else off,
        f"{plan['planned_bytes'] / 1e9:.2f} GB",
        f"{plan['measured_bytes'] / 1e9:.2f} GB",
        f"**{memory_off}**" if large else memory_off,
        f"{plan['clock_seconds']:.0f} s",
    ]
    return "| " + " | ".join(cells) + " |"


def in_process(number: int, place: Path, command: str, *flags: str) -> subprocess.CompletedProcess[str]:
    """A command of Tunesmith on a case, with a cache of its own that shares the models but no measurements."""
    from tunesmith.catalog import cache

    own = place / "cache"
    own.mkdir(exist_ok=True)
    if not (own / "model").exists():
        (own / "model").symlink_to(cache.root() / "model")
    recipe = place / "recipe.json"
    recipe.write_text(json.dumps(recipe_of(CASES[number], place)), encoding="utf-8")
    environment = os.environ | {"TUNESMITH_CACHE": str(own), "PYTHONPATH": str(ROOT / "src")}
    line = [*TUNESMITH, command, str(recipe), "--json", *flags]
    return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)


def recipe_of(one: Case, place: Path) -> dict[str, Any]:
    """The recipe of a case, with its data written into a folder."""
    task, columns, file = table(one.data, place)
    return {
        "task": task,
        "model": "minilm-l6" if "MiniLM" in one.kind else "smollm2-135m-instruct",
        "method": METHODS[one.kind],
        "data": {
            "train": str(file),
            "columns": columns,
            "validation": 0.0,
            "test": 0.0,
            "max_rows": one.rows,
            "max_length": 256 if "MiniLM" in one.kind else 512,
        },
        "precision": PRECISION,
        **one.recipe,
        "training": {"epochs": 1, **one.recipe["training"]},
    }


def table(name: str, place: Path) -> tuple[str, dict[str, str], Path]:
    """Task, columns and file of a set."""
    if name == "banking77":
        return "text-classification", {"label": "category"}, SHARED / "banking77" / "train.csv"
    if name == "wnut17":
        return "token-classification", {}, SHARED / "wnut17" / "wnut17train.conll"
    if name == "tldr":
        columns = {"prompt": "instruction", "completion": "response"}
        return "text-generation", columns, SHARED / "tldr_pages" / "tldr_en_pairs.jsonl"
    if name == "gsm8k":
        columns = {"prompt": "question", "completion": "answer"}
        return "text-generation", columns, SHARED / "gsm8k" / "train.jsonl"
    file = place / f"{name}.csv"
    with file.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        if name == "polarity":
            writer.writerow(["text", "label"])
            for good, bad in zip(snippets("pos"), snippets("neg"), strict=True):
                writer.writerows([[good.strip(), "good"], [bad.strip(), "bad"]])
            return "text-classification", {}, file
        writer.writerow(["prompt", "completion"])
        with (SHARED / "scitldr" / "train.jsonl").open(encoding="utf-8") as lines:
            for row in map(json.loads, lines):
                writer.writerow(["Summarize: " + " ".join(row["source"]), row["target"][0]])
    return "text-generation", {}, file


def read(path: Path) -> dict[str, Any]:
    """The results so far."""
    if known := results_in(path):
        return known
    from tunesmith import environment

    return {"machine": environment.machine(), "versions": environment.versions(), "runs": {}, "plans": {}}


def write(path: Path, results: dict[str, Any]) -> None:
    """Keep the results."""
    write_json(path, results)


if __name__ == "__main__":
    sys.exit(main())
