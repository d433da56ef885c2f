"""The benchmarks: scripts parse, the committed results are complete, the documentation shows what they say."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
SPEEDS = sorted((BENCHMARKS / "results").glob("cpu-*.json"))
LOSSES = sorted((BENCHMARKS / "results").glob("held-out-losses.json"))


@pytest.fixture
def contenders(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import contenders

    return contenders


@pytest.fixture
def summary(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import summary

    return summary


def run(contender: str, seed: int = 0, **values: Any) -> dict[str, Any]:
    measured = {
        "run_seconds": 20.0,
        "process_seconds": 25.0,
        "peak_rss_bytes": 2_000_000_000,
        "step_tokens": [100, 100, 100, 100, 300],
        "step_seconds": [9.0, 9.0, 9.0, 1.0, 1.0],
    }
    return {"contender": contender, "seed": seed, "revision": "abc", "load_before": 0.0} | measured | values


@pytest.mark.parametrize("path", sorted(BENCHMARKS.rglob("*.py")), ids=lambda p: p.relative_to(BENCHMARKS).as_posix())
def test_scripts_parse_and_peers_stand_alone(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    modules |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    if path.parent.name == "peers" or path.stem == "measuring":
        assert not [name for name in modules if name.split(".")[0] in ("tunesmith", "common")]


def test_every_contender_has_a_script_and_a_group(contenders: ModuleType) -> None:
    for contender in contenders.CONTENDERS:
        assert (BENCHMARKS / contender.script).is_file()
        assert contender.group in contenders.GROUPS
    paths = [contender.path for contender in contenders.CONTENDERS]
    assert len(set(paths)) == len(paths)
    for name in contenders.GROUPS:  # what the others are compared with is a peer as it comes
        assert next(c for c in contenders.CONTENDERS if c.group == name).is_peer


def test_an_unknown_contender_is_refused_with_the_known_ones() -> None:
    command = [sys.executable, str(BENCHMARKS / "cpu.py"), "--only", "lora/trl-imagined"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "lora/trl-imagined" in done.stderr and "lora/trl-tuned" in done.stderr


def test_steady_speed_leaves_out_the_warm_up_and_weighs_by_tokens(summary: ModuleType) -> None:
    assert summary.steady(run("lora/tunesmith")) == pytest.approx(400 / 2)
    assert summary.median_step(run("lora/tunesmith")) == pytest.approx((100 + 300) / 2)
    short = run("lora/tunesmith", step_tokens=[100, 100], step_seconds=[1.0, 3.0])
    assert summary.steady(short) == pytest.approx(200 / 4)


def test_ratios_compare_with_the_groups_first(summary: ModuleType) -> None:
    runs = [
        run("lora/trl-default", seed, run_seconds=seconds, held_out_loss=loss)
        for seed, (seconds, loss) in enumerate([(90.0, 1.5), (100.0, 1.6), (170.0, 1.7)])
    ]
    runs += [
        run("lora/tunesmith", seed, run_seconds=20.0, peak_rss_bytes=10**9, held_out_loss=1.5 + 0.1 * seed)
        for seed in (2, 0, 1)
    ]
    runs.append(run("lora/tunesmith", 3, error="killed"))
    found = summary.summarise(runs)["lora"]
    assert found["trl-default"]["run_seconds"] == 100.0
    ours = found["tunesmith"]
    assert ours["runs"] == 3
    assert ours["times_first"]["whole_run_tokens_per_second"] == pytest.approx(5.0)
    assert ours["times_first"]["peak_rss_bytes"] == pytest.approx(0.5)
    assert ours["times_first"]["held_out_loss_difference"] == pytest.approx(0.0)
    assert ours["held_out_loss"] == pytest.approx([1.5, 1.6, 1.7])


def test_the_interval_of_an_accuracy_is_wilsons(summary: ModuleType) -> None:
    from scipy.stats import binomtest

    wanted = binomtest(835, 1000).proportion_ci(0.95, method="wilson")
    assert summary.wilson(0.835, 1000) == pytest.approx((wanted.low, wanted.high), abs=1e-5)


@pytest.mark.parametrize("path", SPEEDS + LOSSES, ids=lambda p: p.name)
def test_committed_results_are_complete(path: Path, contenders: ModuleType, summary: ModuleType) -> None:
    results = json.loads(path.read_text(encoding="utf-8"))
    assert {"date", "machine", "versions", "settings", "workloads", "runs", "summary"} <= set(results)
    assert {"processor", "cores", "threads", "memory", "flags"} <= set(results["machine"])
    known = {contender.path for contender in contenders.CONTENDERS}
    for one in results["runs"]:
        assert one["contender"] in known
        assert {"seed", "revision", "load_before"} <= set(one)
        assert "error" in one or {"run_seconds", "process_seconds", "peak_rss_bytes", "versions"} <= set(one)
    assert results["summary"] == summary.summarise(results["runs"])


def test_the_documentation_shows_the_newest_results(summary: ModuleType) -> None:
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    for path in SPEEDS[-1:] + LOSSES:
        results = json.loads(path.read_text(encoding="utf-8"))
        assert summary.tables(results).strip() in page, "run `python benchmarks/cpu.py --docs`"
