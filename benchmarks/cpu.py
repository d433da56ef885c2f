"""Race Tunesmith against its peers on this machine's processor.

    python benchmarks/cpu.py                     speed and memory; writes results/cpu-DATE.json and the docs' tables
    python benchmarks/cpu.py --losses            what was learnt after 200 updates (hours); results/held-out-losses.json
    python benchmarks/cpu.py --only lora         one group, or `lora/trl-tuned` for one contender of it
    python benchmarks/cpu.py --continue          measure only what the newest results lack
    python benchmarks/cpu.py --quick             a few steps of each, to see that everything runs; writes no results

The peers get an environment of their own, `.benchmark-env/`, made with pip on first use. Every run is a process of its
own; contenders take turns, one run of each a round, so that a machine that slows down slows all of them.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import BENCHMARKS, RESULTS_FOLDER, ROOT, SHARED
from contenders import CONTENDERS, GROUPS, Contender
from summary import NOT_MEASURED, summarise, tables

from tunesmith import catalog, environment
from tunesmith.disk import write_json, write_text
from tunesmith.models.precision import cpu_flags

PEERS = ROOT / ".benchmark-env"
PEER_PACKAGES = [
    "torch==2.13.0",
    "trl==1.16.*",
    "transformers",
    "peft",
    "accelerate",
    "datasets",
    "scikit-learn",
    "sentence-transformers",
]
"""The rest of their versions comes from `constraints.txt`: what both sides use is the same release."""
LOSSES = RESULTS_FOLDER / "held-out-losses.json"
DOCS = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- generated: benchmarks/cpu.py --docs -->", "<!-- end of generated part -->"
MODELS = {"tokens": "smollm2-135m-instruct", "texts": "minilm-l6"}


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        steps: Overrides the groups' updates; ``None`` keeps them.
        repeats: Runs of each contender, with seeds 0, 1, ...
        conversations: Those that the decoder's groups draw from.
        snippets: Training texts of the encoder's groups.
        held_out: Rows that are held out, of conversations and of snippets.
    """

    steps: int | None
    repeats: int
    conversations: int = 1600
    snippets: int = 4000
    held_out: tuple[int, int] = (200, 1000)


def main() -> int:
    args = arguments()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))  # takes the running contender along
    if args.docs:
        return write_docs()
    chosen = choose(args.only, "loss" if args.losses else "speed")
    plan = Plan(args.steps, args.repeats)
    out = args.out or (LOSSES if args.losses else of_speeds(newest=args.resume))
    if args.quick:
        plan = Plan(args.steps or 5, 1, conversations=80, snippets=80, held_out=(16, 40))
        out = args.out or PEERS / "quick.json"
    if any(contender.is_peer for contender in chosen):
        make_peer_environment()
    results = start(plan, chosen, out if args.resume else None)
    tokens = results["workloads"].get("tokens")
    if tokens and args.losses and "untuned_loss" not in tokens:
        tokens["untuned_loss"] = untuned_loss(tokens)
    failed = 0
    for seed in range(plan.repeats):
        turn = seed % len(chosen)
        for contender in chosen[turn:] + chosen[:turn]:
            if any(run["contender"] == contender.path and run["seed"] == seed for run in results["runs"]):
                continue
            run = measure(contender, seed, plan, results["workloads"][GROUPS[contender.group].workload])
            failed += "error" in run
            results["runs"].append(run)
            results["summary"] = summarise(results["runs"])
            write_text(out, as_text(results))
    print("\n" + tables(results), file=sys.stderr)
    print(out)
    if out.parent == RESULTS_FOLDER:
        write_docs()
    return 1 if failed else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, help="updates of each training run (default: the group's own)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each contender, each with its own seed")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="groups, or `group/contender`")
    parser.add_argument("--losses", action="store_true", help="the groups that tell what was learnt, not how fast")
    parser.add_argument("--quick", action="store_true", help="a few steps on a few rows; writes no results")
    parser.add_argument("--continue", dest="resume", action="store_true", help="keep what the newest file has")
    parser.add_argument("--out", type=Path, help="results file (default: benchmarks/results/cpu-DATE.json)")
    parser.add_argument("--docs", action="store_true", help="only write the newest results into docs/benchmarks.md")
    return parser.parse_args()


def choose(names: list[str], counts: str) -> list[Contender]:
    """Contenders of the groups in which this counts, by group or path; all of them without names."""
    contenders = [contender for contender in CONTENDERS if GROUPS[contender.group].counts == counts]
    known = {name for contender in contenders for name in (contender.group, contender.path)}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise SystemExit(f"unknown: {', '.join(unknown)}. Known: {', '.join(sorted(known))}")
    return [c for c in contenders if not names or c.group in names or c.path in names]


def start(plan: Plan, chosen: list[Contender], before: Path | None) -> dict[str, Any]:
    """The head of the results, with the workloads written to disk; runs of an earlier file under the same settings.

    Raises:
        SystemExit: What stands in that file was measured under other settings, with other versions, or if it is speed
            on another machine.
    """
    needed = {GROUPS[c.group].workload for c in chosen}
    results: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "machine": environment.machine() | {"flags": sorted(cpu_flags())},
        "versions": {name: environment.versions()[name] for name in ("python", "torch", "transformers", "peft")},
        "settings": settings(plan, GROUPS[chosen[0].group].counts),
        "workloads": {name: make_workload(name, plan) for name in sorted(needed)},
        "runs": [],
        "summary": {},
    }
    if before is not None and before.is_file():
        earlier = json.loads(before.read_text(encoding="utf-8"))
        if earlier["settings"] != results["settings"]:
            raise SystemExit(f"{before} was measured under other settings: {earlier['settings']}; leave out --continue")
        fixed = ["versions"] + ["machine"] * (GROUPS[chosen[0].group].counts == "speed")
        if unlike := [name for name in fixed if earlier[name] != results[name]]:
            raise SystemExit(f"{before} was measured with another {unlike[0]}; leave out --continue")
        results |= {name: earlier[name] for name in ("date", "machine")}
        results["workloads"] = results["workloads"] | earlier["workloads"]
        results["runs"] = [run for run in earlier["runs"] if "error" not in run]
    return results


def as_text(results: dict[str, Any]) -> str:
    """The results as JSON, a line a run."""
    head = {name: value for name, value in results.items() if name != "runs"}
    runs = ",\n  ".join(json.dumps(run) for run in results["runs"])
    return f'{json.dumps(head, indent=1)[:-2]},\n "runs": [\n  {runs}\n ]\n}}\n'


def settings(plan: Plan, counts: str) -> dict[str, Any]:
    """What must be equal for runs to stand in one file; more repeats may join."""
    groups = {name: group for name, group in GROUPS.items() if group.counts == counts}
    return {
        "steps": {name: plan.steps or group.steps for name, group in groups.items()},
        "conversations": plan.conversations,
        "snippets": plan.snippets,
        "held_out": list(plan.held_out),
        "groups": {name: group.settings for name, group in groups.items()},
    }


def make_workload(name: str, plan: Plan) -> dict[str, Any]:
    """Write a workload's files."""
    import workload

    folder = PEERS / "data" / name
    model = catalog.model_folder(MODELS[name], on_event=lambda event: None)
    if name == "tokens":
        counts = plan.conversations, plan.held_out[0]
        train, held_out, facts = workload.write_conversations(model, SHARED, folder, *counts)
    else:
        train, held_out, facts = workload.write_snippets(SHARED, folder, plan.snippets, plan.held_out[1])
    files = {"train": str(train.relative_to(ROOT)), "held_out": str(held_out.relative_to(ROOT))}
    return {"model": MODELS[name], **files, "facts": facts}


# --- one run ---------------------------------------------------------------------------------------------------------


def measure(contender: Contender, seed: int, plan: Plan, work: dict[str, Any]) -> dict[str, Any]:
    """Run a contender once; its measurements, or the error with the log's place."""
    group = GROUPS[contender.group]
    folder = PEERS / "work" / f"{contender.group}-{contender.name}-{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    spec = group.settings | {
        "model": str(catalog.model_folder(work["model"])),
        "train": str(ROOT / work["train"]),
        "held_out": str(ROOT / work["held_out"]),
        "steps": (plan.steps or group.steps) if group.workload == "tokens" or plan.steps else None,
        "seed": seed,
        "options": contender.options,
        "out": str(folder),
    }
    run: dict[str, Any] = {"contender": contender.path, "seed": seed, "revision": revision()}
    run["processor"] = environment.machine()["processor"]
    run["load_before"] = round(os.getloadavg()[0], 2)  # near 0 on a machine that does nothing else
    print(f"{contender.path}, seed {seed} ...", end=" ", flush=True, file=sys.stderr)
    try:
        run |= execute(contender.script, spec, peer=contender.is_peer, extra=contender.environment)
        if group.counts == "loss":
            run["held_out_loss"] = held_out_loss(spec)
        if (folder / "vectors.npy").is_file():
            run["agreement"] = agreement(folder / "vectors.npy")
    except RuntimeError as error:
        run["error"] = str(error)
    print(run.get("error") or f"{run['run_seconds']:.1f} s", file=sys.stderr)
    for name in ("model", "tokens", "inductor"):
        shutil.rmtree(folder / name, ignore_errors=True)
    return run


def execute(script: str, spec: dict[str, Any], *, peer: bool, extra: dict[str, str]) -> dict[str, Any]:
    """Run a script in a process of its own, in its environment, and read what it measured.

    Raises:
        RuntimeError: It failed; the message ends with the last lines of its log.
    """
    folder = Path(spec["out"])
    write_json(folder / "spec.json", spec)
    python = str(PEERS / "bin" / "python") if peer else sys.executable
    places = [BENCHMARKS] if peer else [BENCHMARKS, ROOT / "src"]
    surroundings = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"} | {
        "PYTHONPATH": os.pathsep.join(str(place) for place in places),
        "HF_HUB_OFFLINE": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),  # empty: compiling is paid for in every run
    }
    log = folder / "log.txt"
    with log.open("a", encoding="utf-8") as sink:
        done = subprocess.run(
            [python, str(BENCHMARKS / script), str(folder / "spec.json")],
            env=surroundings | extra,
            stdout=sink,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode:
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:])
        raise RuntimeError(f"{script} ended with {done.returncode}; see {log.relative_to(ROOT)}\n{tail}")
    measured: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return measured


def held_out_loss(spec: dict[str, Any]) -> float:
    """The tuned model's loss on the held-out rows, in fp32, by the same script for everyone."""
    folder = Path(spec["out"]) / "evaluation"
    folder.mkdir()
    asked = {name: spec[name] for name in ("model", "held_out")}
    asked |= {"tuned": str(Path(spec["out"]) / "model"), "out": str(folder)}
    return float(execute("held_out.py", asked, peer=False, extra={})["loss"])


def untuned_loss(work: dict[str, Any]) -> float:
    """The same of the model before any tuning."""
    folder = PEERS / "work" / "untuned"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    asked = {"model": str(catalog.model_folder(work["model"])), "held_out": str(ROOT / work["held_out"])}
    asked |= {"tuned": "", "out": str(folder)}
    return float(execute("held_out.py", asked, peer=False, extra={})["loss"])


def agreement(vectors: Path) -> float:
    """The least cosine between these sentence vectors and those of the group's first contender, of any seed."""
    first = next(c for c in CONTENDERS if c.group == "features")
    others = sorted((PEERS / "work").glob(f"features-{first.name}-*/vectors.npy"))
    if not others:
        raise RuntimeError(f"run {first.path} first: its vectors are what these are compared with")
    own, wanted = np.load(vectors, allow_pickle=False), np.load(others[0], allow_pickle=False)
    return float((own * wanted).sum(1).min())


# --- around it -------------------------------------------------------------------------------------------------------


def make_peer_environment() -> None:
    """A virtual environment with the peers, made again when the list of packages changes."""
    stamp = PEERS / "packages.json"
    if stamp.is_file() and json.loads(stamp.read_text(encoding="utf-8")) == PEER_PACKAGES:
        return
    print(f"installing the peers into {PEERS.name}/ ...", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", str(PEERS)], check=True)
    install = [str(PEERS / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    subprocess.run([*install, "--constraint", str(ROOT / "constraints.txt"), *PEER_PACKAGES], check=True)
    write_json(stamp, PEER_PACKAGES)


def revision() -> str:
    """The commit that is measured, with `+` if files differ from it."""
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--exclude=*"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    return "unknown"


def of_speeds(*, newest: bool) -> Path:
    """The file for the results of speed: that of today, or the newest one that there is."""
    today = RESULTS_FOLDER / f"cpu-{datetime.date.today().isoformat()}.json"
    return max(RESULTS_FOLDER.glob("cpu-*.json"), default=today) if newest else today


def committed() -> list[dict[str, Any]]:
    """The latest results of speed, whose files are named by date, and those of losses."""
    files = (of_speeds(newest=True), LOSSES)
    return [json.loads(file.read_text(encoding="utf-8")) for file in files if file.is_file()]


def write_docs() -> int:
    """Put the newest results into the documentation."""
    text = DOCS.read_text(encoding="utf-8")
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    shown = "\n".join(tables(results) for results in committed()) or f"{NOT_MEASURED}\n"
    write_text(DOCS, f"{head}{BEGIN}\n\n{shown}\n{END}{tail}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
