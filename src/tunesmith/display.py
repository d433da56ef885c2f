"""What people see of a run, a comparison and a plan: the same tables in a terminal and in a notebook."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

from tunesmith import words

if TYPE_CHECKING:
    from tunesmith.api import RunComparison
    from tunesmith.planning import Plan

DEVICES = "Several devices (this version trains on one: a forecast, checked against no measurement)"
"""Title of what :func:`of_devices` gives."""


AVERAGES = {
    "average": "average of all tasks at the end",
    "backward_transfer": "what later stages added to earlier tasks (backward transfer)",
    "forgetting": "how far earlier tasks fell from their best (forgetting)",
}
"""What is said of tasks in turn as a whole, by its name in ``summary.json``."""


class Table(NamedTuple):
    """Cells are texts or what `str` makes one of; ``None`` is an empty cell."""

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]


def of_run(summary: Mapping[str, Any]) -> Table:
    """The tuned model's metrics, and below them its baselines'."""
    systems = {f"{summary['method']} (tuned)": summary["metrics"], **summary["baselines"]}
    names = list(summary["metrics"])
    rows = [
        (system, *(words.interval(values[name]) if name in values else None for name in names))
        for system, values in systems.items()
    ]
    return Table(("system", *names), rows)


def of_stages(summary: Mapping[str, Any]) -> list[Table]:
    """What a run says of its stages: what it knows of each task after every one, and what language stages gave."""
    tables = []
    if found := summary.get("sequence"):
        names = found["stages"]
        columns = (f"{name}: {metric}" for name, metric in zip(names, found["metrics"], strict=True))
        matrix = [
            (f"after {name}", *("" if cell is None else words.interval(cell) for cell in line))
            for name, line in zip(names, found["matrix"], strict=True)
        ]
        totals = [
            (title, words.interval(found[name], signed=name != "average"))
            for name, title in AVERAGES.items()
            if name in found
        ]
        tables += [Table(("tasks in turn", *columns), matrix), Table(("all tasks", "value"), totals)]
    if gains := summary.get("stages"):
        lines = [
            (
                f"{gain['stage']}: {gain['metric']} of {gain['documents']} held-out documents",
                words.interval(gain["before"]) if "before" in gain else "–",
                words.interval(gain["after"]),
                words.interval(gain["change"], signed=True) if "change" in gain else "–",
            )
            for gain in gains
        ]
        metric = next(iter(summary["metrics"]))
        if alone := summary["baselines"].get("without-domain"):
            before, after = words.interval(alone[metric]), words.interval(summary["metrics"][metric])
            lines.append((f"the task: {metric}, from the plain base and from them", before, after, "–"))
        tables.append(Table(("what each stage gave", "before it", "after it", "change"), lines))
    return [table for table in tables if table.rows]


def of_comparison(comparison: RunComparison) -> Table:
    """A line a run: its value, and how it differs from the first."""
    rows = [
        (
            row["name"],
            words.interval(row["value"]),
            words.interval(row["difference"]) if row.get("difference") else None,
            f"{row['p']:.2g}" if row.get("p") is not None else None,
            row.get("outcome"),
        )
        for row in comparison.rows
    ]
    return Table(("run", comparison.metric, "difference to the first", "p", ""), rows)


def of_sequence(comparison: RunComparison) -> Table | None:
    """What runs of the same tasks in turn know and forgot, a line a run; ``None`` where the runs are no such."""
    averages = comparison.sequence
    if not averages:
        return None
    columns = [column for one in averages for column in (one["name"].replace("_", " "), "difference")]
    rows = [
        (row["name"], *(cell for one in averages for cell in _average_cells(one, number)))
        for number, row in enumerate(comparison.rows)
    ]
    return Table(("tasks in turn", *columns), rows)


def _average_cells(average: Mapping[str, Any], number: int) -> tuple[str, str | None]:
    """An average over a run's tasks, and its difference to that of the first run."""
    difference = average["differences"][number]
    return words.interval(average["values"][number]), None if difference is None else words.interval(difference)


def of_parts(plan: Plan) -> Table:
    """What trains, a line a part of the network."""
    rows = [
        (stage.name, part.module, f"{part.total:,}", f"{part.trainable:,}")
        for stage in plan.stages
        for part in stage.parts
    ]
    return Table(("stage", "part", "parameters", "trainable"), rows)


def of_plan(plan: Plan) -> list[tuple[str, str]]:
    """What a run will take, as names and values."""
    memory, seconds = plan.memory_bytes, plan.seconds
    basis = _basis(plan)
    return [
        ("machine", plan.machine),
        ("trainable parameters", f"{plan.trainable_parameters:,}"),
        ("total parameters", f"{plan.total_parameters:,}"),
        ("tokens", _tokens(plan)),
        ("steps", f"{plan.steps:,}"),
        ("memory", f"{words.size_span(memory.low, memory.high)} of {words.size(plan.free_bytes)}: {_parts(plan)}"),
        ("time", words.duration_span(seconds.low, seconds.high)),
        ("cost", _cost(plan)),
        ("disk", f"up to {words.size(plan.disk_bytes)}: checkpoints, model, rendered data"),
        ("fits", "yes" if plan.fits else "no"),
        *([("basis", basis)] if basis else []),
    ]


def of_devices(plan: Plan) -> Table | None:
    """What several devices would make of it; ``None`` where that was not asked for."""
    if not plan.devices:
        return None
    rows = [
        (
            row["strategy"],
            row["devices"],
            words.size(row["memory_bytes_each"]),
            "yes" if row["fits"] else "no",
            words.duration_span(row["communication_seconds"], row["communication_seconds"]),
            words.duration_span(row["seconds"], row["seconds"]),
            "–" if row["cost_usd"] is None else f"{row['cost_usd']:.2f} $",
        )
        for row in plan.devices
    ]
    return Table(("strategy", "devices", "memory each", "fits", "talking", "time", "cost"), rows)


def _tokens(plan: Plan) -> str:
    """All tokens, those of an epoch, and what is cut."""
    epochs = ", ".join(f"{stage.epoch_tokens:,} an epoch" for stage in plan.stages)
    cut = max((stage.cut_share for stage in plan.stages), default=0.0)
    return f"{plan.tokens:,}" + (f" ({epochs}; {cut:.1%} of the examples are cut)" if epochs else "")


def _parts(plan: Plan) -> str:
    sizes = sorted(plan.memory_parts.items(), key=lambda part: -part[1])
    return ", ".join(f"{name} {words.size(size)}" for name, size in sizes if size > 5e6)


def _cost(plan: Plan) -> str:
    if plan.cost is None:
        return "unknown: no price for this machine (`--machines FILE`)"
    low, high = plan.cost.low, plan.cost.high
    return ("under 0.01 $" if high < 0.01 else f"{low:.2f} to {high:.2f} $") + f" ({plan.price_note})"


_BASES = {
    "same": "{} earlier runs of this kind here",
    "other": "{} earlier runs of other kinds here",
    "none": "the model of costs alone, which no run on this machine has corrected",
}


def _basis(plan: Plan) -> str | None:
    """What the ranges rest on."""
    trained = [stage for stage in plan.stages if stage.kind]
    if plan.probed:
        return "three updates made now"
    if not trained:
        return None
    runs = min(stage.correction.samples for stage in trained)
    worst = max((stage.correction.basis for stage in trained), key=list(_BASES).index)
    return _BASES[worst].format(runs)


# --- notebooks -------------------------------------------------------------------------------------------------------


def html(*parts: str | Table | Sequence[tuple[str, object]] | None) -> str:
    """Sentences (the first in bold), tables, and names with values, as HTML in which every text stays text."""
    shown = [part for part in parts if part]
    return "".join(_html(part, bold=number == 0) for number, part in enumerate(shown))


def _html(part: str | Table | Sequence[tuple[str, object]], *, bold: bool) -> str:
    if isinstance(part, str):
        return f"<p><b>{escape(part)}</b></p>" if bold else f"<p>{escape(part)}</p>"
    if isinstance(part, Table):
        head = _line(part.columns, "th")  # an interval stays on one line: a notebook scrolls to the right
        body = _lines(part.rows)
        return f'<table style="white-space: nowrap"><thead>{head}</thead><tbody>{body}</tbody></table>'
    return f"<table><tbody>{_lines(part)}</tbody></table>"


def _lines(rows: Iterable[Sequence[object]]) -> str:
    return "".join(_line(row, "td") for row in rows)


def _line(cells: Sequence[object], tag: str) -> str:
    left = f'<{tag} style="text-align: left">'
    return "<tr>" + "".join(f"{left}{'' if cell is None else escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"
