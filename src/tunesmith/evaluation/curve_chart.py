"""The picture of a learning curve: an SVG of its own, readable on light and on dark pages."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tunesmith.evaluation import charts

if TYPE_CHECKING:
    from tunesmith.learning_curve import Point

COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb")
"""Paul Tol's bright scheme, which colour-blind readers can tell apart."""

MARKERS = "osD^vPX"
ON_ITS_OWN = {"ink": "#444", "muted": "#777", "line": "#aaa", "accent": "#4477aa", "paper": "#fff", "warm": "#ee6677"}


def curve_chart(points: Sequence[Point], target: float, confidence: float) -> str:
    """Accuracy over the number of labels, a line a way with its interval as a band, and the target.

    Args:
        points: Of all ways.
        target: Drawn as a dashed line.
        confidence: Coverage of the intervals.
    """
    ways = list(dict.fromkeys(point.way for point in points))
    with charts.new_figure(8.0, 4.6) as figure:
        axes = figure.add_subplot()
        axes.axhline(target, color=charts.MUTED, linewidth=1, linestyle="--")
        for number, way in enumerate(ways):
            own = sorted((point for point in points if point.way == way), key=lambda point: point.labels)
            colour, labels = COLOURS[number % len(COLOURS)], [point.labels for point in own]
            axes.fill_between(labels, [p.low for p in own], [p.high for p in own], color=colour, alpha=0.13, lw=0)
            marker = MARKERS[number % len(MARKERS)]
            axes.plot(labels, [p.value for p in own], marker=marker, color=colour, markersize=5.5, label=way)
        axes.set_xscale("log", base=2)
        ticks = sorted({point.labels for point in points})
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel("labelled examples")
        axes.set_ylabel(f"accuracy with {confidence:.0%} interval")
        axes.annotate(f"target {target:.3f}", (ticks[0], target), (0, 4), textcoords="offset points", fontsize=8.5)
        axes.legend(loc="lower right", fontsize=9)
        best = "; ".join(f"{way}: {max(p.value for p in points if p.way == way):.3f} at best" for way in ways)
        text = charts.as_svg(figure, "curve", f"Accuracy over the number of labelled examples. {best}.")
    return on_its_own(text)


def on_its_own(svg: str) -> str:
    """A chart that was drawn for a page of the report, as a picture without one."""
    text = re.sub(r"var\(--(\w+)\)", lambda name: ON_ITS_OWN[name[1]], svg)
    return text.replace("<svg ", '<svg font-family="sans-serif" ', 1) + "\n"
