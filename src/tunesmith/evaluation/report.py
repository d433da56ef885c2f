"""The report of a run: ``report.html``, one file that needs neither network nor script, and ``report.json``."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from tunesmith import disk, words
from tunesmith.data.shown import ShownExample, shortened
from tunesmith.evaluation import charts, marks
from tunesmith.evaluation.comparison import Comparison, System, best_other, primary_metric
from tunesmith.evaluation.findings import Findings, find
from tunesmith.evaluation.label_metrics import NO_LABEL_TITLE
from tunesmith.evaluation.metrics import METRICS
from tunesmith.evaluation.picture_report import WrongPicture, wrong_pictures
from tunesmith.events import Step, Validated
from tunesmith.prediction.outputs import Truth
from tunesmith.recipe import PICTURES, Evaluate

VERSION = 1
"""Of the layout of ``report.json``."""

format_size = words.size  # the name by which evaluation/distillation.py takes it from here

_WORD = re.compile(r"\w+")
_WORD_OR_REST = re.compile(r"\w+|\W+")

LARGEST_MATRIX = 20
"""Classes up to which a confusion matrix is drawn; beyond, the top confusions are listed."""


@dataclass(frozen=True)
class DataFile:
    """A file (or data set) that went in. ``rows`` is ``None`` where those of several files were not told apart."""

    name: str
    split: str
    rows: int | None
    bytes: int | None = None


@dataclass(frozen=True)
class DataWarning:
    """Something the checks found. ``where`` holds the first places as ``file:line``, ``count`` how many there are."""

    message: str
    where: Sequence[str] = ()
    count: int = 1
    fix: str | None = None
    severity: str = "warning"


@dataclass(frozen=True)
class DataSummary:
    """What data went in.

    Attributes:
        files: Where it came from.
        rows: Rows of each split, after everything that was left out.
        balance: Label -> split -> rows; empty for generation.
        warnings: What the checks found.
        notes: Sentences on how it was read: columns chosen, rows dropped, how it was split.
    """

    files: Sequence[DataFile] = ()
    rows: dict[str, int] = field(default_factory=dict)
    balance: dict[str, dict[str, int]] = field(default_factory=dict)
    warnings: Sequence[DataWarning] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Cost:
    """What the run took.

    Attributes:
        seconds: Wall-clock time of each part, e.g. ``{"rest": 9.5, "tune": 300.0, "evaluate": 40.0}``; their sum
            is that of the whole run.
        tokens: Real tokens trained on (no padding), over all epochs and stages.
        tokens_per_second: The same over the time of training.
        peak_memory_bytes: Largest resident memory (or device memory, on a GPU) in the training of any stage.
        job_seconds: What the provider's job took by the provider's clock, if one tuned the model: time of training,
            but none of the parts.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    tokens: int = 0
    tokens_per_second: float = 0.0
    peak_memory_bytes: int = 0
    job_seconds: float | None = None


@dataclass(frozen=True)
class Reproduction:
    """What somebody needs to get the same run again.

    Attributes:
        recipe_yaml: The full recipe.
        command: What to type.
        seed: Of the run.
        versions: Package -> version.
        machine: What the run ran on, e.g. ``{"processor": ..., "cores": "2"}``.
        data_fingerprint: Identity of the data.
    """

    recipe_yaml: str
    command: str
    seed: int
    versions: dict[str, str] = field(default_factory=dict)
    machine: dict[str, str] = field(default_factory=dict)
    data_fingerprint: str = ""


@dataclass(frozen=True)
class Section:
    """A table (and a chart) that only some runs have.

    Attributes:
        name: Key in ``report.json``, and anchor of the page.
        title: Heading.
        lead: What the reader sees there, in a sentence or two.
        columns: Headings of the table.
        rows: Cells as text.
        data: The same for ``report.json``.
        chart: SVG, or nothing.
        is_prose: Whether the cells are texts to be read, rather than figures.
        totals: What holds for the table as a whole, in lines of their own below it: what it is, and its value.
    """

    name: str
    title: str
    lead: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    data: Any
    chart: str = ""
    is_prose: bool = False
    totals: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class ReportContent:
    """All that a report is made of; the rest is derived from it.

    Attributes:
        run: Id of the run.
        task: Name of the task.
        model: Name of the base model.
        method: Name of the method.
        created: Date and time, ISO 8601.
        verdict: One sentence, see :func:`~tunesmith.evaluation.comparison.verdict`.
        settings: Confidence, resamples, seed.
        tuned: The tuned model.
        others: What it was compared with.
        comparisons: One for each of the others.
        inputs: What went in, for each of the N test rows.
        references: N right answers as a reader sees them.
        origins: N places, as ``file:line``.
        right: The same in the form that metrics read.
        steps: The updates, from the run's events.
        validations: The validations, from the run's events.
        validation_metric: Metric by which the best checkpoint was chosen; drawn beside the loss.
        learned_from: Some training rows as the model saw them.
        data: What data went in.
        cost: What the run took.
        sections: What only such runs have: other texts, what each stage gave, what was forgotten.
        reproduction: How to get it again.
    """

    run: str
    task: str
    model: str
    method: str
    created: str
    verdict: str
    settings: Evaluate
    tuned: System
    others: Sequence[System]
    comparisons: Sequence[Comparison]
    inputs: Sequence[str]
    references: Sequence[str]
    origins: Sequence[str]
    right: Truth
    reproduction: Reproduction
    steps: Sequence[Step] = ()
    validations: Sequence[Validated] = ()
    validation_metric: str | None = None
    learned_from: Sequence[ShownExample] = ()
    data: DataSummary = field(default_factory=DataSummary)
    cost: Cost = field(default_factory=Cost)
    sections: Sequence[Section] = ()


def write_report(folder: Path, content: ReportContent) -> Path:
    """Write ``report.json`` and ``report.html`` into a folder, each atomically.

    Args:
        folder: Usually the run's folder; made if absent.
        content: What to report.

    Returns:
        The path of ``report.html``.

    Raises:
        ResourceError: The disk is full.
        UsageError: The folder cannot be written to.
    """
    best = best_other(content.others, content.comparisons)
    findings = find(
        content.tuned, best, content.inputs, content.references, content.origins, content.right, content.settings
    )
    text = json.dumps(as_json(content, findings), ensure_ascii=False, indent=1, allow_nan=False)
    disk.write_text(folder / "report.json", text + "\n", errors="backslashreplace")
    page = folder / "report.html"
    disk.write_text(page, as_html(content, findings, best), errors="backslashreplace")
    return page


def as_json(content: ReportContent, findings: Findings) -> dict[str, Any]:
    """The report as JSON: everything in it but the raw outputs of each row."""
    systems = [_system_json(content.tuned, tuned=True)] + [_system_json(other, tuned=False) for other in content.others]
    kept = ("run", "task", "model", "method", "created", "verdict")
    extra_column = bool(findings.confusion) and len(findings.confusion[0]) > len(findings.order)
    return {
        "version": VERSION,
        **{name: getattr(content, name) for name in kept},
        "metric": _primary(content),
        "confidence": content.settings.confidence,
        "resamples": content.settings.resamples,
        "test_rows": len(content.references),
        "systems": systems,
        "comparisons": [asdict(comparison) for comparison in content.comparisons],
        "classes": [asdict(row) for row in findings.classes],
        "confusion": {
            "truth": findings.order,
            "answers": findings.order + ([NO_LABEL_TITLE] if extra_column else []),
            "counts": findings.confusion,
        },
        "top_confusions": [asdict(pair) for pair in findings.confusions],
        "calibration": [asdict(b) for b in findings.bins],
        "examples": {
            "num_gained": findings.num_gained,
            "num_lost": findings.num_lost,
            **{name: [asdict(e) for e in getattr(findings, name)] for name in ("gained", "lost", "samples")},
        },
        **{section.name: section.data for section in content.sections},
        "training": {
            "steps": [step.as_dict() for step in content.steps],
            "validations": [validation.as_dict() for validation in content.validations],
        },
        "learned_from": [example.as_dict() for example in content.learned_from],
        "data": asdict(content.data),
        "cost": asdict(content.cost),
        "reproduction": asdict(content.reproduction),
    }


def as_html(content: ReportContent, findings: Findings, best: System | None) -> str:
    """The report as one HTML page. All data is escaped; charts are inline SVG."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("tunesmith.evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(count=format_count, duration=words.duration, size=words.size, p=format_p)
    environment.filters.update(unbroken=unbroken, shared_words=shared_words)
    environment.globals["marked"] = functools.partial(marks.on_page, labels=findings.labels)
    environment.filters["shortened"] = shortened
    primary = _primary(content)
    against = {comparison.system: comparison for comparison in content.comparisons}
    return environment.get_template("report.html").render(
        content=content,
        is_label=content.right.answer == "label",
        is_text=content.right.answer == "text",
        findings=findings,
        best=best,
        headline=against.get(best.name) if best else None,
        against=against,
        metric=METRICS[primary],
        metrics=[METRICS[name] for name in METRICS if name in content.tuned.metrics],
        systems=_ranked([content.tuned, *content.others], primary),
        charts=_charts(content, findings, primary),
        largest_matrix=LARGEST_MATRIX,
        wrong_pictures=_wrong_pictures(content),
    )


def _wrong_pictures(content: ReportContent) -> list[WrongPicture]:
    if content.task not in PICTURES:
        return []
    return wrong_pictures(content.inputs, content.references, content.tuned.outputs, content.right.labels or [])


def format_count(number: float) -> str:
    """``1 234``, ``22.7 M``, ``1.24 B``: short, with a thin space."""
    for limit, unit in ((1e9, "B"), (1e6, "M")):
        if abs(number) >= limit:
            return f"{number / limit:.3g}\u2009{unit}"
    if number != int(number) and abs(number) < 100:
        return f"{number:.1f}"
    return f"{number:,.0f}".replace(",", "\u2009")


def format_p(p_value: float) -> str:
    """A p-value as readers expect it: ``< 0.001`` or two significant digits."""
    return "< 0.001" if p_value < 0.001 else f"= {p_value:.2g}"


def shared_words(text: str, reference: str) -> Markup:
    """Escape an answer and mark the words that it shares with the right one, whatever their case."""
    wanted = {word.casefold() for word in _WORD.findall(reference)}
    return Markup("").join(
        Markup('<u class="shared">{}</u>').format(part) if part.casefold() in wanted else part
        for part in _WORD_OR_REST.findall(text)
    )


def unbroken(text: str) -> Markup:
    """Escape a sentence and keep each interval in it, ``0.84 [0.81, 0.87]``, on one line."""
    return Markup(re.sub(r"[+-]?[\d.]+ \[[^\]]*\]", r'<span class="unbroken">\g<0></span>', str(escape(text))))


def _primary(content: ReportContent) -> str:
    if content.comparisons:
        return content.comparisons[0].metric
    return primary_metric([content.tuned], content.right).name


def _ranked(systems: Sequence[System], primary: str) -> list[System]:
    sign = -1 if METRICS[primary].higher_is_better else 1
    return sorted(systems, key=lambda system: sign * system.metrics[primary].value)


def _charts(content: ReportContent, findings: Findings, primary: str) -> dict[str, str]:
    """The charts as SVG; empty where this run has nothing to show in one."""
    systems = [content.tuned, *content.others]
    drawn = dict.fromkeys(("comparison", "training", "confusion", "reliability", "lengths"), "")
    if content.others:
        drawn["comparison"] = charts.comparison_chart(
            [system.title for system in systems],
            [system.metrics[primary] for system in systems],
            METRICS[primary],
            content.settings.confidence,
        )
    if content.steps:
        drawn["training"] = charts.training_chart(content.steps, content.validations, content.validation_metric)
    if 0 < len(findings.order) <= LARGEST_MATRIX:
        names = findings.order + ([NO_LABEL_TITLE] if len(findings.confusion[0]) > len(findings.order) else [])
        drawn["confusion"] = charts.confusion_chart(findings.confusion, findings.order, names)
    if content.right.answer == "text" and content.tuned.outputs.texts:
        texts = {"right answers": content.references, "tuned model": content.tuned.outputs.texts}
        lengths = {name: [len(text.split()) for text in found] for name, found in texts.items()}
        drawn["lengths"] = charts.length_chart(lengths)
    if findings.bins:
        drawn["reliability"] = charts.reliability_chart(findings.bins)
    return drawn


def _system_json(system: System, tuned: bool) -> dict[str, Any]:
    outputs = system.outputs
    return {
        "name": system.name,
        "title": system.title,
        "what": system.what,
        "tuned": tuned,
        "metrics": {name: interval.as_dict() for name, interval in system.metrics.items()},
        "parameters": system.parameters,
        "trainable_parameters": system.trainable_parameters,
        "training_seconds": system.training_seconds,
        "seconds": outputs.seconds,
        "rows_per_second": outputs.rows / outputs.seconds if outputs.seconds else None,
        "prompt_tokens_per_row": outputs.prompt_tokens / outputs.rows if outputs.rows else None,
        "written_tokens_per_row": outputs.written_tokens / outputs.rows if outputs.written_tokens else None,
        "written_tokens_per_second": outputs.written_tokens_per_second or None,
    }


__all__ = [
    "Cost",
    "DataFile",
    "DataSummary",
    "DataWarning",
    "ReportContent",
    "Reproduction",
    "Section",
    "as_html",
    "as_json",
    "write_report",
]
