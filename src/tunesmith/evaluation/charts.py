"""Charts of the report as inline SVG: text stays text, and colours are the page's own, in light and in dark.

Matplotlib draws with stand-in colours that are then replaced by CSS variables. It is imported inside functions only.
"""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from tunesmith.evaluation.calibration import ReliabilityBin
    from tunesmith.evaluation.intervals import Interval
    from tunesmith.evaluation.metrics import Metric
    from tunesmith.events import Step, Validated

# Stand-ins; none is pure black, which Matplotlib would leave out as the default.
INK, MUTED, LINE, ACCENT, PAPER, WARM = "#010101", "#020202", "#030303", "#040404", "#050505", "#060606"
VARIABLES = {INK: "ink", MUTED: "muted", LINE: "line", ACCENT: "accent", PAPER: "paper", WARM: "warm"}
MOST_POINTS = 600
LENGTH_BINS = 30

STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "axes.unicode_minus": True,
    "font.size": 9.5,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 9.5,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.8,
}


def comparison_chart(titles: Sequence[str], values: Sequence[Interval], metric: Metric, confidence: float) -> str:
    """Dots with whiskers, the best on top; the tuned model's interval is shaded across all lines.

    Args:
        titles: Names of the systems, the tuned model first.
        values: Their values.
        metric: What was measured.
        confidence: Coverage of the intervals.
    """
    sign = 1 if metric.higher_is_better else -1
    order = sorted(range(len(titles)), key=lambda number: sign * values[number].value)
    summary = "; ".join(f"{titles[number]}: {values[number]}" for number in reversed(order))
    with new_figure(9.2, 0.75 + 0.42 * len(titles)) as figure:
        axes = figure.add_subplot()
        axes.axvspan(values[0].low, values[0].high, color=ACCENT, alpha=0.10, linewidth=0)
        for line, number in enumerate(order):
            value, ours = values[number], number == 0
            colour = ACCENT if ours else MUTED
            axes.plot([value.low, value.high], [line, line], color=colour, linewidth=3.2 if ours else 2.0)
            axes.plot(value.value, line, "o", color=colour, markersize=9 if ours else 6.5)
            axes.annotate(
                str(value), (1.02, line), xycoords=("axes fraction", "data"), va="center", color=INK if ours else MUTED
            )
        axes.set_yticks(range(len(order)), [_short(titles[number], 46) for number in order], color=INK)
        for label, number in zip(axes.get_yticklabels(), order, strict=True):
            label.set_fontweight("bold" if number == 0 else "normal")
        axes.set_ylim(-0.6, len(order) - 0.4)
        axes.margins(x=0.04)
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="both", length=0)
        axes.spines["left"].set_visible(False)
        better = "further right is better" if metric.higher_is_better else "further left is better"
        axes.set_xlabel(f"{metric.title} with {confidence:.0%} interval: {better}")
        return as_svg(figure, "comparison", f"{metric.title} of each system. {summary}.")


def training_chart(steps: Sequence[Step], validations: Sequence[Validated], metric: str | None) -> str:
    """Loss, validation metric and learning rate over the updates of all stages.

    Args:
        steps: One event an update.
        validations: One event a validation.
        metric: Name of the validation metric to draw beside the loss, if it was measured.
    """
    offsets = _stage_offsets(steps)
    x = np.array([offsets[step.stage] + step.step for step in steps], dtype=np.float64)
    at = [offsets.get(validation.stage, 0) + validation.step for validation in validations]
    shown = metric is not None and any(metric in validation.metrics for validation in validations)
    rates = [step.learning_rate for step in steps]
    known = any(rates)  # a provider tells none
    with new_figure(9.2, 2.75) as figure:
        panels = figure.subplots(1, 1 + shown + known, squeeze=False)[0]
        _loss_panel(panels[0], x, steps, at, validations)
        if shown and metric is not None:
            _validation_panel(panels[1], at, validations, metric)
        if known:
            _rate_panel(panels[-1], x, rates)
        for panel in panels:
            panel.set_xlabel("updates")
            panel.tick_params(length=0)
            panel.locator_params(axis="both", nbins=5)
            for boundary in sorted(offsets.values())[1:]:
                panel.axvline(boundary, color=MUTED, linewidth=0.8, linestyle=":")
        first, last = steps[0].loss, float(np.mean([step.loss for step in steps[-max(1, len(steps) // 20) :]]))
        return as_svg(
            figure, "training", f"Training loss fell from {first:.3g} to {last:.3g} over {len(steps)} updates."
        )


_POLICY_PANELS = {
    "reward": "Reward",
    "kl": "Divergence, nats an answer",
    "entropy": "Entropy, nats a token",
    "length": "Tokens an answer",
}


def policy_chart(curve: Sequence[Mapping[str, float]]) -> str:
    """What a model that learns from rewards went through: reward, divergence, entropy and length of its answers.

    Args:
        curve: Metrics of one ``step`` each.

    Returns:
        SVG; empty if there are none.
    """
    if not curve:
        return ""
    shown = [name for name in _POLICY_PANELS if all(name in metrics for metrics in curve)]
    x = np.array([metrics["step"] for metrics in curve], dtype=np.float64)
    window = max(1, len(curve) // 12)
    with new_figure(9.2, 2.6) as figure:
        for panel, name in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
            values = np.array([metrics[name] for metrics in curve])
            if window > 1:
                panel.plot(*_thinned(x, values), color=ACCENT, alpha=0.25, linewidth=0.9)
            panel.plot(*_thinned(x, _smoothed(values, window)), color=ACCENT)
            panel.set_title(_POLICY_PANELS[name])
            panel.set_xlabel("steps")
            panel.tick_params(length=0)
            panel.locator_params(axis="both", nbins=4)
        first, last = curve[0]["reward"], curve[-1]["reward"]
        text = f"Mean reward of the answers went from {first:.3g} to {last:.3g} in {len(curve)} steps."
        return as_svg(figure, "policy", text)


def length_chart(lengths: Mapping[str, Sequence[int]]) -> str:
    """How long texts are, in words: one outline for each of two sets, in the same bins.

    Args:
        lengths: What the texts are -> the words of each.
    """
    largest = max((max(found, default=0) for found in lengths.values()), default=0)
    edges = np.linspace(0, max(largest, 1) + 1, min(LENGTH_BINS, largest + 1) + 1)
    with new_figure(6.4, 2.4) as figure:
        axes = figure.add_subplot()
        for (name, found), colour in zip(lengths.items(), (MUTED, ACCENT), strict=True):
            counts, _ = np.histogram(found, bins=edges)
            axes.stairs(counts, edges, color=colour, linewidth=2, label=name)
        axes.set_xlabel("words")
        axes.set_ylabel("test rows")
        axes.legend(frameon=False)
        axes.tick_params(length=0)
        means = "; ".join(f"{name}: {np.mean(found or [0]):.1f} words on average" for name, found in lengths.items())
        return as_svg(figure, "lengths", f"Lengths of texts. {means}.")


def confusion_chart(counts: Sequence[Sequence[int]], rows: Sequence[str], columns: Sequence[str]) -> str:
    """A confusion matrix: shade by share of the true class, figures in rows.

    Args:
        counts: (len(rows), len(columns)).
        rows: True classes.
        columns: Answers.
    """
    from matplotlib.patches import Rectangle

    table = np.asarray(counts, dtype=np.float64)
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    cell = 0.9 if len(rows) <= 4 else 0.46 if len(rows) <= 12 else 0.38
    margin = 0.075 * min(24, max(map(len, rows))) + 0.5
    with new_figure(cell * len(columns) + margin, cell * len(rows) + (margin if len(rows) > 4 else 0.7)) as figure:
        axes = figure.add_subplot()
        for i, j in np.ndindex(table.shape):
            if table[i, j]:
                colour = ACCENT if i == j else WARM
                axes.add_patch(
                    Rectangle((j - 0.48, i - 0.48), 0.96, 0.96, facecolor=colour, alpha=_shade(shares[i, j]))
                )
                ink = PAPER if _shade(shares[i, j]) > 0.6 else INK
                axes.text(j, i, f"{table[i, j]:.0f}", ha="center", va="center", color=ink, fontsize=9)
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xticks(range(len(columns)), [_short(name) for name in columns], color=INK)
        if len(rows) > 4:
            for label in axes.get_xticklabels():
                label.set(rotation=45, horizontalalignment="right", rotation_mode="anchor")
        axes.set_yticks(range(len(rows)), [_short(name) for name in rows], color=INK)
        axes.set_xlabel("answer of the tuned model")
        axes.set_ylabel("truth")
        axes.grid(visible=False)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        right = int(sum(table[i, i] for i in range(len(rows))))
        text = f"Confusion matrix of {len(rows)} classes: {right} of {int(table.sum())} rows lie on the diagonal."
        return as_svg(figure, "confusion", text)


def sequence_chart(values: Sequence[Sequence[float | None]], names: Sequence[str]) -> str:
    """Metric of each task (across) after each stage (down): shade by share of the best that the task ever was.

    Args:
        values: (N, N); ``None`` for tasks that came later.
        names: Of the N stages, and so of their tasks.
    """
    from matplotlib.patches import Rectangle

    size = len(names)
    margin = 0.075 * min(24, max(map(len, names))) + 0.7
    with new_figure(0.9 * size + margin, 0.55 * size + 0.8) as figure:
        axes = figure.add_subplot()
        for i, j in np.ndindex(size, size):
            value = values[i][j]
            if value is None:
                continue
            best = max(abs(line[j] or 0.0) for line in values) or 1.0
            shade = _shade(min(1.0, abs(value) / best) ** 4)  # small losses matter: 0.9 of the best is clearly paler
            axes.add_patch(Rectangle((j - 0.48, i - 0.48), 0.96, 0.96, facecolor=ACCENT, alpha=shade))
            axes.text(j, i, f"{value:.3f}", ha="center", va="center", color=PAPER if shade > 0.6 else INK, fontsize=9)
        axes.set_xlim(-0.5, size - 0.5)
        axes.set_ylim(size - 0.5, -0.5)
        axes.set_xticks(range(size), [_short(name) for name in names], color=INK)
        axes.set_yticks(range(size), [_short(f"after {name}") for name in names], color=INK)
        axes.grid(visible=False)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        return as_svg(figure, "sequence", f"What each of {size} tasks gives after each stage.")


def reliability_chart(bins: Sequence[ReliabilityBin]) -> str:
    """Accuracy against confidence with exact limits, above a histogram of confidence."""
    with new_figure(4.4, 4.4) as figure:
        top, bottom = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [4, 1], "hspace": 0.08})
        top.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle="--")
        filled = [(b, b.accuracy) for b in bins if b.accuracy is not None]
        for b, accuracy in filled:
            top.plot([b.confidence] * 2, [accuracy.low, accuracy.high], color=ACCENT, linewidth=1.4, alpha=0.55)
        top.plot([b.confidence for b, _ in filled], [a.value for _, a in filled], "o", color=ACCENT, markersize=6)
        top.set_ylim(-0.02, 1.02)
        top.set_xlim(-0.02, 1.02)
        top.set_ylabel("share that was right")
        top.annotate(
            "perfectly calibrated", (0.06, 0.11), rotation=45, rotation_mode="anchor", color=MUTED, fontsize=8.5
        )
        bottom.bar(
            [(b.low + b.high) / 2 for b in bins],
            [b.rows for b in bins],
            width=0.9 / len(bins),
            color=ACCENT,
            alpha=0.45,
        )
        bottom.set_ylabel("rows")
        bottom.locator_params(axis="y", nbins=2)
        bottom.set_xlabel("confidence that the model stated")
        for panel in (top, bottom):
            panel.tick_params(length=0)
        worst = max(filled, key=lambda pair: pair[0].rows * abs(pair[1].value - pair[0].confidence))
        text = (
            "Reliability diagram: accuracy against stated confidence. The heaviest gap is among the "
            f"{worst[0].rows} rows near {worst[0].confidence:.2f}, of which {worst[1].value:.2f} were right."
        )
        return as_svg(figure, "reliability", text)


def _loss_panel(
    axes: Axes, x: np.ndarray, steps: Sequence[Step], at: Sequence[int], validations: Sequence[Validated]
) -> None:
    losses = np.array([step.loss for step in steps])
    window = max(1, len(losses) // 25)
    if window > 1:
        axes.plot(*_thinned(x, losses), color=ACCENT, alpha=0.25, linewidth=0.9)
    axes.plot(*_thinned(x, _smoothed(losses, window)), color=ACCENT, label="training")
    pairs = [(place, v.metrics["loss"]) for place, v in zip(at, validations, strict=True) if "loss" in v.metrics]
    if pairs:
        axes.plot(*zip(*pairs, strict=True), "o-", color=WARM, markersize=4, linewidth=1.3, label="validation")
        axes.legend(loc="upper right", fontsize=9)
    axes.set_title("Loss" if window == 1 else f"Loss (mean of {window} updates)")


def _validation_panel(axes: Axes, at: Sequence[int], validations: Sequence[Validated], metric: str) -> None:
    from tunesmith.evaluation.metrics import METRICS

    pairs = [
        (place, v.metrics[metric], v.best) for place, v in zip(at, validations, strict=True) if metric in v.metrics
    ]
    places, values, _ = zip(*pairs, strict=True)
    axes.plot(places, values, "o-", color=WARM, markersize=4, linewidth=1.3)
    best = [pair for pair in pairs if pair[2]]
    if best:
        place, value, _ = best[-1]
        axes.plot(place, value, "o", markersize=11, markerfacecolor="none", markeredgecolor=INK)
        axes.annotate(
            f"best {value:.3f}", (place, value), (0, -16), textcoords="offset points", ha="center", fontsize=9
        )
    axes.margins(x=0.12, y=0.25)
    axes.set_title(f"Validation {METRICS[metric].title.lower() if metric in METRICS else metric}")


def _rate_panel(axes: Axes, x: np.ndarray, rates: Sequence[float]) -> None:
    exponent = int(np.floor(np.log10(max(1e-30, *rates))))
    axes.plot(*_thinned(x, np.asarray(rates) / 10.0**exponent), color=ACCENT)
    axes.set_title("Learning rate" + (f" (in 1e{exponent})" if exponent else ""))


def _stage_offsets(steps: Sequence[Step]) -> dict[str, int]:
    """Updates before each stage, so that stages follow one another on one axis."""
    lengths: dict[str, int] = {}
    for step in steps:
        lengths[step.stage] = max(lengths.get(step.stage, 0), step.step)
    offsets, total = {}, 0
    for stage, length in lengths.items():
        offsets[stage] = total
        total += length
    return offsets


def _smoothed(values: np.ndarray, window: int) -> np.ndarray:
    """Mean over a window around each point, narrower at the ends."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(len(values))
    low, high = np.maximum(ends - window // 2, 0), np.minimum(ends + (window - window // 2), len(values))
    return np.asarray((sums[high] - sums[low]) / (high - low))


def _thinned(x: np.ndarray, y: Sequence[float] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most :data:`MOST_POINTS` points, evenly spread, the last included: more cannot be told apart on a page."""
    places = np.unique(np.linspace(0, len(x) - 1, min(len(x), MOST_POINTS)).astype(int))
    return x[places], np.asarray(y)[places]


def _shade(share: float) -> float:
    return 0.08 + 0.92 * float(share) ** 0.7


def _short(text: str, limit: int = 24) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


@contextmanager
def new_figure(width: float, height: float) -> Iterator[Figure]:
    """A figure of that size in inches under the report's style, untouched by the user's own."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(), warnings.catch_warnings():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)  # type: ignore[arg-type]  # newer stubs list the keys as literals, older take any str
        # Letters that Matplotlib's font lacks are drawn by the browser's: only their measured width is a guess.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield Figure(figsize=(width, height), layout="constrained")


def as_svg(figure: Figure, name: str, description: str) -> str:
    """Write the figure as an ``<svg>`` element that fits into a page beside others.

    Args:
        figure: What was drawn.
        name: Unique on the page; keeps the ids of the charts apart and the same in every run.
        description: What the chart shows, for those who do not see it.
    """
    import matplotlib as mpl

    mpl.rcParams["svg.hashsalt"] = name
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<style .*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r'style="[^"]*"', _page_style, text)
    size = re.search(r'viewBox="0 0 ([\d.]+) ', text)
    assert size is not None  # Matplotlib always writes it
    escaped = html.escape(description)
    head = f'<svg class="chart" role="img" aria-label="{escaped}" style="max-width: {float(size[1]) * 4 / 3:.0f}px" '
    text = re.sub(r'<svg (.*?)(?:width|height)="[\d.]+pt" (.*?)>', r"<svg \1\2>", text, count=1, flags=re.DOTALL)
    text = re.sub(r' (?:width|height)="[\d.]+pt"', "", text, count=2)
    return text.replace("<svg ", head, 1)


def _page_style(style: re.Match[str]) -> str:
    """Replace stand-in colours by the page's variables and leave the font's family to the page."""
    text = re.sub("|".join(VARIABLES), lambda colour: f"var(--{VARIABLES[colour[0]]})", style[0])
    return re.sub(r"font-family: [^;\"]*;? ?", "", text)
