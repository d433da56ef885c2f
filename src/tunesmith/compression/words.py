"""What quantizing a model came to, in sentences and tables: nothing is sold that was not measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith import words
from tunesmith.evaluation.comparison import Comparison
from tunesmith.evaluation.metrics import METRICS
from tunesmith.evaluation.report import Section

SAME_SPEED = 0.05
"""Ratios nearer to 1 than this are called the same."""


def changes_in_words(kind: str, measured: Mapping[str, Any], found: Comparison) -> str:
    """Size, speed and quality against the original, in one sentence each."""
    share = measured["bytes"] / measured["original_bytes"]
    size = f"{kind}: {share:.2f} of the bytes of {measured['original_dtype']} on disk"
    metric = METRICS[found.metric]
    quality = (
        f"{metric.title} {found.difference.format(signed=True)} against the original"
        f" ({'the interval excludes zero' if found.difference.excludes_zero else 'no difference shown'})"
    )
    return f"{size}; {speed_in_words(measured['speed'])}; {quality}."


def speed_in_words(speeds: Mapping[str, Any]) -> str:
    """How fast at each batch size, and what is slower is called slower."""
    parts = []
    for against in [name for name in speeds if name != "quantized"]:
        ratios = [
            (new["batch"], new["tokens_per_second"] / old["tokens_per_second"])
            for new, old in zip(speeds["quantized"], speeds[against], strict=True)
        ]
        each = " and ".join(f"{_ratio(ratio)} at batch {batch}" for batch, ratio in ratios)
        parts.append(f"{each} than the {against}")
    return "here " + ", and ".join(parts)


def _ratio(ratio: float) -> str:
    if abs(ratio - 1) <= SAME_SPEED:
        return "no faster"
    return f"{ratio:.1f} times as fast" if ratio > 1 else f"SLOWER ({ratio:.2f} of the speed)"


def sections(measured: Mapping[str, Any]) -> list[Section]:
    """Tables of the report."""
    speeds = [
        [name, str(line["batch"]), f"{line['tokens_per_second']:,.1f}", f"{line['seconds'] * 1000:,.1f} ms"]
        for name, lines in measured["speed"].items()
        for line in lines
    ]
    ways = ", ".join(f"{count} by {name}" for name, count in measured["ways"].items())
    size = [
        ["on disk", words.size(measured["bytes"]), words.size(measured["original_bytes"])],
        ["in memory", words.size(measured["memory_bytes"]), words.size(measured["original_memory_bytes"])],
    ]
    found = [
        Section("size", "Size", "Bytes of the weights.", ["", "quantized", "original"], size, size),
        Section(
            "speeds",
            "Speed on this machine",
            f"In turns on the same tokens; the fastest trial. Layers multiply in the way that was fastest here: {ways}."
            if ways
            else "In turns on the same tokens; the fastest trial.",
            ["model", "batch", "tokens/s", "a token or text"],
            speeds,
            measured["speed"],
        ),
    ]
    if measured["sensitivity"]:
        kept = set(measured["kept"])
        rows = [
            [name, f"{value:.3g}", "left as it is" if name in kept else "quantized"]
            for name, value in measured["sensitivity"].items()
        ]
        lead = "How far answers move when one layer alone is quantized, the most sensitive first."
        found.append(Section("layers", "Layers", lead, ["layer", "answers move by", ""], rows, measured["sensitivity"]))
    return found
