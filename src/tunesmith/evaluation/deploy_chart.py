"""Which of several runs to deploy: quality against the time of an answer and against size, with the Pareto front."""

from __future__ import annotations

import html
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tunesmith import disk, runs
from tunesmith.evaluation import charts
from tunesmith.evaluation.curve_chart import COLOURS, MARKERS, on_its_own
from tunesmith.evaluation.intervals import Interval
from tunesmith.evaluation.metrics import METRICS
from tunesmith.runs import Run

ROWS = 8
"""Test rows that are answered one at a time."""
WEIGHTS = (".safetensors", ".onnx")


@dataclass(frozen=True)
class Candidate:
    """One run as it would be deployed.

    Attributes:
        name: For people.
        value: Of the metric that decides.
        seconds: Of one answer, asked alone on this machine: the median over a few test rows.
        bytes: Of the weights, on disk; of an adapter with those of its base.
    """

    name: str
    value: Interval
    seconds: float
    bytes: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"value": self.value.as_dict()}


def measure_candidates(opened: Sequence[Run], table: Sequence[dict[str, Any]]) -> list[Candidate]:
    """Time each run on the same test rows, and weigh it.

    Args:
        opened: Finished runs.
        table: Of :func:`tunesmith.evaluation.run_comparison.compare_runs`, in the same order.
    """
    texts = [stored.input for stored in runs.read_answers(opened[0])[:ROWS]]
    found = []
    for run, line in zip(opened, table, strict=True):
        run.predict(texts[:1])  # loads, and lets layers choose how they multiply
        took = []
        for text in texts:
            started = time.perf_counter()
            run.predict([text])
            took.append(time.perf_counter() - started)
        found.append(Candidate(line["name"], Interval(**line["value"]), statistics.median(took), _bytes(run)))
        run.unload()
    return found


def _bytes(run: Run) -> int:
    from tunesmith.models.bases import find_base
    from tunesmith.models.saving import read_notes

    notes = read_notes(run.model_folder)
    folders = [run.model_folder, *([find_base(notes, run.model_folder)] if notes.adapter else [])]
    return sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.suffix in WEIGHTS)


def pareto_front(costs: Sequence[float], values: Sequence[float], higher_is_better: bool = True) -> list[int]:
    """Indices of those that no other one beats in value without costing more, the cheapest first."""
    sign = 1 if higher_is_better else -1
    front: list[int] = []
    for n in sorted(range(len(costs)), key=lambda n: (costs[n], -sign * values[n])):
        if not front or sign * values[n] > sign * values[front[-1]]:
            front.append(n)
    return front


def deploy_chart(candidates: Sequence[Candidate], metric: str) -> str:
    """The picture, an SVG of its own: two panels, a point a run, the front as a line."""
    about = METRICS[metric]
    better = about.higher_is_better is not False
    panels = (
        ("seconds an answer, asked alone here", [one.seconds for one in candidates]),
        ("megabytes of weights", [one.bytes / 1e6 for one in candidates]),
    )
    values = [one.value.value for one in candidates]
    with charts.new_figure(9.2, 4.2 + 0.22 * len(candidates)) as figure:
        for axes, (label, costs) in zip(figure.subplots(1, 2, sharey=True), panels, strict=True):
            front = pareto_front(costs, values, better)
            axes.plot(
                [costs[n] for n in front], [values[n] for n in front], color=charts.MUTED, linewidth=1.2,
                linestyle="--", drawstyle="steps-post",
            )  # fmt: skip
            for n, one in enumerate(candidates):
                colour = COLOURS[n % len(COLOURS)]
                axes.plot([costs[n]] * 2, [one.value.low, one.value.high], color=colour, linewidth=1.6)
                axes.plot(
                    costs[n], values[n], MARKERS[n % len(MARKERS)], color=colour, markersize=8 if n in front else 5.5,
                    label=one.name,
                )  # fmt: skip
            axes.set_xscale("log")
            axes.set_xlabel(f"{label} (log)")
        first = figure.axes[0]
        first.set_ylabel(f"{about.title}: {'higher' if better else 'lower'} is better")
        figure.legend(*first.get_legend_handles_labels(), loc="outside lower center", fontsize=9)
        told = "; ".join(
            f"{one.name}: {one.value}, {one.seconds * 1000:.1f} ms, {one.bytes / 1e6:.1f} MB" for one in candidates
        )
        text = charts.as_svg(figure, "deploy", f"{about.title} against time and size; the line is the front. {told}.")
    return on_its_own(text)


def write_picture(path: Path, candidates: Sequence[Candidate], metric: str) -> None:
    """Write the picture as SVG, or as a page with a table if the name ends so."""
    svg = deploy_chart(candidates, metric)
    if path.suffix.lower() not in (".html", ".htm"):
        disk.write_text(path, svg)
        return
    rows = "".join(
        f"<tr><td>{html.escape(one.name)}</td><td>{one.value}</td><td>{one.seconds * 1000:.1f} ms</td>"
        f"<td>{one.bytes / 1e6:.1f} MB</td></tr>"
        for one in candidates
    )
    head = f"<tr><th>run</th><th>{html.escape(METRICS[metric].title)}</th><th>an answer</th><th>weights</th></tr>"
    style = "body{font:15px sans-serif;max-width:60em;margin:2em auto}td,th{padding:.3em 1em;text-align:left}"
    disk.write_text(
        path,
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Which to deploy</title><style>{style}</style>'
        f"<h1>Which to deploy</h1>{svg}<table>{head}{rows}</table></html>\n",
    )
