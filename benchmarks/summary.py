"""From measured runs to medians, ratios and the tables of the documentation. No measuring, no heavy imports."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import mean, median
from typing import Any

from contenders import CONTENDERS, GROUPS, Contender

WARMUP_STEPS = 3
"""Updates that do not count for the steady speed."""
NOT_MEASURED = "No results are committed yet. `python benchmarks/cpu.py` measures, and writes the tables here."

Run = dict[str, Any]
Summary = dict[str, dict[str, dict[str, Any]]]


def summarise(runs: Sequence[Run]) -> Summary:
    """Group -> contender -> medians over its runs, and ratios to the group's first contender that was measured."""
    summary: Summary = {}
    for group in GROUPS:
        found: dict[str, dict[str, Any]] = {}
        for contender in CONTENDERS:
            own = [run for run in runs if run["contender"] == contender.path and "error" not in run]
            if contender.group == group and own:
                found[contender.name] = medians(own)
        for values in found.values():
            values["times_first"] = ratios(values, next(iter(found.values())))
        if found:
            summary[group] = found
    return summary


def medians(runs: Sequence[Run]) -> dict[str, Any]:
    """Medians over the runs of one contender; what its runs did not measure is left out."""
    runs = sorted(runs, key=lambda run: run["seed"])
    values: dict[str, Any] = {
        "runs": len(runs),
        "run_seconds": median(run["run_seconds"] for run in runs),
        "process_seconds": median(run["process_seconds"] for run in runs),
        "peak_rss_bytes": median(run["peak_rss_bytes"] for run in runs),
    }
    if "step_seconds" in runs[0]:
        values["steady_tokens_per_second"] = median(steady(run) for run in runs)
        values["median_step_tokens_per_second"] = median(median_step(run) for run in runs)
        values["whole_run_tokens_per_second"] = median(sum(run["step_tokens"]) / run["run_seconds"] for run in runs)
    for name in ("evaluation_seconds", "fit_seconds", "agreement"):
        if name in runs[0]:
            values[name] = median(run[name] for run in runs)
    if "held_out_loss" in runs[0]:
        values["held_out_loss"] = [run["held_out_loss"] for run in runs]
    if "correct" in runs[0]:
        rows = runs[0]["held_out_rows"]
        share = mean(run["correct"] / rows for run in runs)
        low, high = wilson(share, rows)
        values["accuracy"] = {"value": share, "low": low, "high": high}
    return values


def steady(run: Run) -> float:
    """Real tokens a second after the warm-up: all tokens over all seconds."""
    skipped = WARMUP_STEPS if len(run["step_seconds"]) > WARMUP_STEPS else 0
    return float(sum(run["step_tokens"][skipped:]) / sum(run["step_seconds"][skipped:]))


def median_step(run: Run) -> float:
    """Real tokens a second of the median update after the warm-up."""
    skipped = WARMUP_STEPS if len(run["step_seconds"]) > WARMUP_STEPS else 0
    pairs = zip(run["step_tokens"][skipped:], run["step_seconds"][skipped:], strict=True)
    return float(median(tokens / seconds for tokens, seconds in pairs))


def wilson(share: float, rows: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927); of several seeds' mean it is the interval of one seed, so too wide."""
    centre = (share + z * z / (2 * rows)) / (1 + z * z / rows)
    half = z / (1 + z * z / rows) * math.sqrt(share * (1 - share) / rows + z * z / (4 * rows * rows))
    return centre - half, centre + half


def ratios(values: dict[str, Any], first: dict[str, Any]) -> dict[str, float]:
    """How many times the first contender's speed, and which share of its memory."""
    found = {}
    for name in ("steady_tokens_per_second", "whole_run_tokens_per_second"):
        if name in values and name in first:
            found[name] = values[name] / first[name]
    for name in ("run_seconds", "evaluation_seconds"):
        if name in values and name in first:
            found[f"{name}_saved"] = first[name] / values[name]
    found["peak_rss_bytes"] = values["peak_rss_bytes"] / first["peak_rss_bytes"]
    if "held_out_loss" in values and len(values["held_out_loss"]) == len(first["held_out_loss"]):
        pairs = zip(values["held_out_loss"], first["held_out_loss"], strict=True)
        found["held_out_loss_difference"] = mean(own - other for own, other in pairs)
    return found


# --- tables ----------------------------------------------------------------------------------------------------------

Cell = Callable[[dict[str, Any]], str]


def tables(results: dict[str, Any]) -> str:
    """A results file as the documentation shows it: what it was measured on, and a table a group."""
    machine = results["machine"]
    revisions = ", ".join(sorted({f"`{run['revision']}`" for run in results["runs"]}))
    lines = [
        f"Measured on {results['date']} at revision {revisions}: {machine['processor']}, "
        f"{machine['threads']} threads, {machine['memory']}, {machine['system']}; "
        + ", ".join(f"{name} {version}" for name, version in results["versions"].items())
        + "."
    ]
    if "tokens" in results["workloads"]:
        lines += ["", _conversations(results["workloads"]["tokens"])]
    for group, found in results["summary"].items():
        lines += ["", f"### {GROUPS[group].what}", "", *_table(group, found)]
    return "\n".join(lines) + "\n"


def _conversations(work: dict[str, Any]) -> str:
    """One sentence on what the language model was trained on."""
    facts, train = work["facts"], work["facts"]["train"]
    low, _, middle, _, high = train["length_quantiles_0_25_50_75_100"]
    untuned = ""
    if "untuned_loss" in work:
        untuned = f" Loss on {facts['held_out']['rows']} held-out ones before any tuning: {work['untuned_loss']:.3f}."
    return (
        f"Conversations from {', '.join(facts['sources'])}: {train['rows']:,} of {low} to {high} tokens "
        f"(median {middle}), {train['share_with_loss']:.0%} of the tokens with loss.{untuned}"
    )


def _table(group: str, found: dict[str, dict[str, Any]]) -> list[str]:
    columns = _columns(group, found)
    lines = [f"| contender | {' | '.join(name for name, _ in columns)} |", "|---|" + "---:|" * len(columns)]
    for name, values in found.items():
        contender = next(c for c in CONTENDERS if c.group == group and c.name == name)
        lines.append(f"| {_label(contender)} | {' | '.join(cell(values) for _, cell in columns)} |")
    return lines


def _label(contender: Contender) -> str:
    name = contender.name if contender.is_peer else f"**{contender.name}**"
    return f"{name}: {contender.what}"


def _columns(group: str, found: dict[str, dict[str, Any]]) -> list[tuple[str, Cell]]:
    """The columns that this group's contenders have figures for."""
    first = next(iter(found.values()))
    runs: tuple[str, Cell] = ("runs", lambda v: str(v["runs"]))
    if GROUPS[group].counts == "loss":
        return [("held-out loss", _losses), ("difference", _difference), runs]
    columns: list[tuple[str, Cell]] = []
    if "steady_tokens_per_second" in first:
        columns += [
            ("tokens/s, steady", lambda v: _with_ratio(v, "steady_tokens_per_second")),
            ("tokens/s, whole run", lambda v: _with_ratio(v, "whole_run_tokens_per_second")),
        ]
    if "accuracy" in first:
        columns.append(("seconds", lambda v: f"{v['run_seconds']:.1f} ({v['times_first']['run_seconds_saved']:.1f}x)"))
    if "evaluation_seconds" in first:
        columns.append(
            (
                "evaluation, seconds",
                lambda v: f"{v['evaluation_seconds']:.1f} ({v['times_first']['evaluation_seconds_saved']:.1f}x)",
            )
        )
    columns.append(("peak memory, GB", lambda v: f"{v['peak_rss_bytes'] / 1e9:.1f}"))
    if "accuracy" in first:
        columns.append(("accuracy", _accuracy))
    if "agreement" in first:
        columns.append(("least cosine to the first's", lambda v: f"{v['agreement']:.4f}"))
    return [*columns, runs]


def _with_ratio(values: dict[str, Any], name: str) -> str:
    return f"{values[name]:,.0f} ({values['times_first'][name]:.1f}x)"


def _losses(values: dict[str, Any]) -> str:
    losses = values["held_out_loss"]
    spread = f" ({min(losses):.3f} to {max(losses):.3f})" if len(losses) > 1 else ""
    return f"{mean(losses):.3f}{spread}"


def _difference(values: dict[str, Any]) -> str:
    """To the first contender's, seed by seed; a dash while they have not run the same seeds."""
    difference = values["times_first"].get("held_out_loss_difference")
    return "-" if difference is None else f"{difference:+.3f}"


def _accuracy(values: dict[str, Any]) -> str:
    share = values["accuracy"]
    return f"{share['value']:.3f} [{share['low']:.3f}, {share['high']:.3f}]"
