from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from conftest import labelled_rows, write_jsonl
from tunesmith import words
from tunesmith.data.prepare import prepare
from tunesmith.data.shown import Piece, ShownExample
from tunesmith.evaluation.comparison import System, compare, verdict
from tunesmith.evaluation.findings import NO_LABEL_TITLE, confusion_order, find, top_confusions
from tunesmith.evaluation.label_metrics import confusion_matrix
from tunesmith.evaluation.metrics import measure
from tunesmith.evaluation.report import (
    Cost,
    DataFile,
    DataSummary,
    DataWarning,
    ReportContent,
    Reproduction,
    format_count,
    shared_words,
    unbroken,
    write_report,
)
from tunesmith.evaluation.results import _data_summary
from tunesmith.events import Step, Validated
from tunesmith.prediction.outputs import Outputs, Truth
from tunesmith.recipe import Evaluate
from tunesmith.recipe_file import parse

SETTINGS = Evaluate(resamples=100)
HOSTILE = "<script>alert('x')</script>\"&"
ROWS = 60


def labels_of(count: int) -> list[str]:
    return [HOSTILE, *(f"class {number} $x_1$" for number in range(1, count))]


def classifier(name: str, labels: list[str], signal: float, seed: int) -> System:
    truth = np.arange(ROWS) % len(labels)
    logits = np.random.default_rng(seed).normal(size=(ROWS, len(labels)))
    logits[np.arange(ROWS), truth] += signal
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    outputs = Outputs(probabilities=probabilities, seconds=2.0, prompt_tokens=ROWS * 12)
    metrics = measure(outputs, Truth("label", [labels[number] for number in truth], labels), SETTINGS)
    return System(name, f"{name} {HOSTILE}", HOSTILE, outputs, metrics, 22_700_000, 590_594, 61.0)


def writer(name: str, texts: list[str], references: list[str]) -> System:
    outputs = Outputs(texts=texts, nats=np.full(len(texts), 9.0), reference_bytes=np.full(len(texts), 12))
    return System(name, name, "", outputs, measure(outputs, Truth("text", references), SETTINGS))


def content_of(
    tuned: System, others: list[System], references: list[str], labels: list[str] | None, steps: int = 40
) -> ReportContent:
    right = Truth("label" if labels else "text", references, labels)
    comparisons = compare(tuned, others, right, SETTINGS)
    return ReportContent(
        run="run-1",
        task="text-classification" if labels else "text-generation",
        model=f"model {HOSTILE}",
        method="peft",
        created="2026-11-22 20:00",
        verdict=verdict(tuned, others, comparisons, right),
        settings=SETTINGS,
        tuned=tuned,
        others=others,
        comparisons=comparisons,
        inputs=[f"{HOSTILE} text {number}" for number in range(len(references))],
        references=references,
        origins=[f"test.csv:{number + 2}" for number in range(len(references))],
        right=right,
        reproduction=Reproduction(
            f"model: {HOSTILE}", "tunesmith tune recipe.yaml", 0, {"torch": "2.13"}, {"cores": "2"}
        ),
        steps=[step(number) for number in range(1, steps + 1)],
        validations=[Validated(stage="tune", step=20, metrics={"loss": 0.6, "accuracy": 0.7}, best=True)]
        if steps
        else [],
        validation_metric="accuracy",
        data=DataSummary(
            [DataFile("train.csv", "train", 500, 12_345)],
            {"train": 500, "test": ROWS},
            {label: {"train": 10, "test": 3} for label in labels or []},
            [DataWarning(f"odd label {HOSTILE}", ["train.csv:17", "train.csv:19"], 2, "mend it")],
            ["Columns: text."],
        ),
        cost=Cost({"tune": 61.0, "evaluate": 4.0}, 12_000, 196.0, 10**9),
    )


def step(number: int) -> Step:
    return Step(
        stage="tune", step=number, steps=40, epoch=0.1, loss=1 / number, learning_rate=1e-4, grad_norm=1.0, tokens=100,
        examples=8, seconds=0.1, memory_bytes=10**9,
    )  # fmt: skip


def classification(classes: int = 3) -> ReportContent:
    labels = labels_of(classes)
    references = [labels[number % classes] for number in range(ROWS)]
    tuned = classifier("tuned", labels, 3.0, 0)
    return content_of(tuned, [classifier("base", labels, 0.5, 1)], references, labels)


def generation() -> ReportContent:
    references = [f"the answer is {number}" for number in range(ROWS)]
    return content_of(
        writer("tuned", [r if n % 3 else HOSTILE for n, r in enumerate(references)], references),
        [writer("base", [r if n % 3 == 0 else "" for n, r in enumerate(references)], references)],
        references,
        None,
    )


class Page(HTMLParser):
    """Tags that are open, ids, and everything that a browser would fetch or run."""

    VOID = ("meta", "link", "br", "img", "hr", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href", "action"):
                self.links.append(value or "")
            assert not name.startswith("on"), f"an event handler: {name}"

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[ReportContent, Path]:
    """A report with all its parts, and the folder it is in."""
    content = classification()
    return content, write_report(tmp_path_factory.mktemp("report"), content).parent


@pytest.mark.parametrize("make", [lambda: classification(2), lambda: classification(30), generation])
def test_the_page_is_whole_self_contained_and_runs_nothing(make: Callable[[], ReportContent], tmp_path: Path) -> None:
    content = make()
    page = Page(write_report(tmp_path / "new", content).read_text(encoding="utf-8"))
    assert page.open == []
    assert not {"script", "link", "iframe", "img", "object"} & set(page.tags)
    assert all(link.startswith("#") for link in page.links)
    assert len(page.ids) == len(set(page.ids)), "ids of the charts clash"
    assert {link[1:] for link in page.links} <= set(page.ids), "a link leads nowhere"
    # What could have been markup is there to be read.
    assert HOSTILE in "".join(page.words)
    assert "".join(page.words).count(content.verdict) == 1


def test_every_chart_speaks_and_follows_the_page(written: tuple[ReportContent, Path]) -> None:
    text = (written[1] / "report.html").read_text(encoding="utf-8")
    charts = re.findall(r"<svg .*?</svg>", text, flags=re.DOTALL)
    assert len(charts) == 4
    for chart in charts:
        assert re.search(r'role="img" aria-label="[^"]{30,}"', chart)
        assert "var(--" in chart and not re.search(r"#0[1-6]0\d0\d\b", chart), "a stand-in colour was left"
        assert not re.search(r'style="[^"]*(fill|stroke): #', chart), "a colour that dark mode cannot change"


def test_many_classes_are_listed_instead_of_drawn(tmp_path: Path) -> None:
    text = write_report(tmp_path, classification(30)).read_text(encoding="utf-8")
    assert "Confusion matrix of" not in text
    assert "Most frequent mix-ups" in text and "The ten hardest classes" in text


def test_json_holds_what_the_page_says(written: tuple[ReportContent, Path]) -> None:
    content, folder = written
    found = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert found["verdict"] == content.verdict
    assert [system["name"] for system in found["systems"]] == ["tuned", "base"]
    assert found["systems"][0]["metrics"]["accuracy"] == content.tuned.metrics["accuracy"].as_dict()
    assert found["systems"][0]["rows_per_second"] == 30.0
    assert np.sum(found["confusion"]["counts"]) == ROWS
    assert sum(b["rows"] for b in found["calibration"]) == ROWS
    assert found["examples"]["num_gained"] == content.comparisons[0].wins
    assert len(found["training"]["steps"]) == 40
    assert found["data"]["warnings"][0]["where"] == ["train.csv:17", "train.csv:19"]


def test_a_report_is_written_over_an_old_one_or_not_at_all(written: tuple[ReportContent, Path]) -> None:
    content, folder = written
    before = (folder / "report.json").read_bytes()
    bad = replace(content, model=object())  # type: ignore[arg-type]  # JSON cannot hold it
    with pytest.raises(TypeError):
        write_report(folder, bad)
    assert (folder / "report.json").read_bytes() == before
    write_report(folder, replace(content, verdict="Another verdict."))
    assert json.loads((folder / "report.json").read_bytes())["verdict"] == "Another verdict."
    assert sorted(path.name for path in folder.iterdir()) == ["report.html", "report.json"]
    write_report(folder, content)


def test_each_file_has_its_own_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "more"
    folder.mkdir()
    one = write_jsonl(tmp_path / "one.jsonl", labelled_rows(90))
    for name, first in (("two", 90), ("three", 96)):
        write_jsonl(folder / f"{name}.jsonl", labelled_rows(102)[first : first + 6])
    tests = write_jsonl(tmp_path / "test.jsonl", [{"text": f"held back {n}", "label": "positive"} for n in range(7)])
    sources = {"train": [str(one), f"{folder}/"], "test": [str(tests)], "validation": 0}
    recipe = parse({"task": "text-classification", "model": "none", "data": sources})
    prepared = prepare(recipe)
    files = _data_summary(recipe, prepared).files
    assert [(file.split, file.rows) for file in files] == [("train", 90), ("train", 12), ("test", 7)]
    # of a pattern, or of rows that stay on the disk, only those of all files together are known
    pattern = recipe.model_copy(update={"data": recipe.data.model_copy(update={"train": [str(one), f"{folder}/*"]})})
    assert [file.rows for file in _data_summary(pattern, prepared).files] == [None, None, 7]
    monkeypatch.setattr("tunesmith.data.prepare.IN_MEMORY_BYTES", 0)
    summary = _data_summary(recipe, prepare(recipe))
    assert [file.rows for file in summary.files] == [None, None, 7]
    page = write_report(tmp_path, replace(classification(), data=summary)).read_text(encoding="utf-8")
    assert '<td>train</td><td class="n">–</td>' in page


def test_nothing_to_compare_with_and_nothing_trained(tmp_path: Path) -> None:
    content = classification()
    alone = replace(content, others=[], comparisons=[], steps=[], validations=[], cost=Cost(), data=DataSummary())
    text = write_report(tmp_path, alone).read_text(encoding="utf-8")
    assert Page(text).open == []
    assert "How training went" not in text and "against the alternatives" not in text


def test_the_time_of_a_providers_job_stands_by_itself(tmp_path: Path) -> None:
    """And what else took time has a title that is true of a run that was killed, and of one at a provider."""
    seconds = {"rest": 30.0, "evaluate": 4.0}
    here = replace(classification(), cost=Cost({**seconds, "tune": 61.0}, 12_000, 196.0))
    text = write_report(tmp_path, here).read_text(encoding="utf-8")
    assert "data, loading, validation, checkpoints, and what earlier processes lost or measured" in text
    assert "Training took" in text and "provider" not in text
    hosted = replace(here, cost=Cost(seconds, 12_000, 196.0, job_seconds=7200.0))
    text = write_report(tmp_path, hosted).read_text(encoding="utf-8")
    assert "data, waiting for the provider, and what earlier processes lost or measured" in text
    assert f"<dt>The provider's job</dt><dd>{words.duration(7200.0)}<small>by the provider's clock" in text
    assert f"<dt>Whole run</dt><dd>{words.duration(34.0)}</dd>" in text and "Training took" not in text


def test_one_test_row_one_step_and_half_a_surrogate(tmp_path: Path) -> None:
    references = ["a"]
    tuned = writer("tuned", ["broken \ud83d answer"], references)
    content = content_of(tuned, [], references, None, steps=1)
    assert "broken" in write_report(tmp_path, content).read_text(encoding="utf-8")


def test_examples_gained_and_lost_are_the_right_ones() -> None:
    labels = ["no", "yes"]
    references = ["yes", "yes", "no", "no"]
    sure = np.array([0.9, 0.2, 0.99, 0.1])  # of "yes": right, wrong, wrong, right
    tuned = Outputs(probabilities=np.stack([1 - sure, sure], axis=1))
    base = Outputs(texts=["no", "yes", "what?", "maybe"])  # wrong, right, wrong, wrong
    systems = [
        System(n, n, "", o, measure(o, Truth("label", references, labels), SETTINGS))
        for n, o in (("t", tuned), ("b", base))
    ]
    found = find(*systems, ["w", "x", "y", "z"], references, list("1234"), Truth("label", references, labels), SETTINGS)
    assert [example.text for example in found.gained] == ["w", "z"]
    assert [example.text for example in found.lost] == ["x"]
    assert found.gained[1].theirs == f"{NO_LABEL_TITLE} maybe"
    assert (found.gained[0].ours, found.gained[0].ours_score, found.gained[0].theirs_score) == ("yes", 0.9, None)


def test_confused_classes_stand_together() -> None:
    truth = np.array([0] * 10 + [1] * 10 + [2] * 10 + [3] * 10)
    chosen = truth.copy()
    chosen[:4], chosen[20:21], chosen[10:12] = 3, 1, -1
    table = confusion_matrix(truth, chosen, 4)
    assert table.sum() == 40 and table[1, 4] == 2
    order = confusion_order(table)
    assert order[:2] in ([0, 3], [3, 0]) and sorted(order) == [0, 1, 2, 3]
    pairs = [(pair.truth, pair.answer, pair.rows) for pair in top_confusions(table, list("abcd"))]
    assert pairs == [("a", "d", 4), ("b", NO_LABEL_TITLE, 2), ("c", "b", 1)]


def test_numbers_read_well() -> None:
    assert [format_count(x) for x in (7, 8.94, 1234, 590_594, 22_713_985, 1.24e9)] == [
        "7", "8.9", "1\u2009234", "590\u2009594", "22.7\u2009M", "1.24\u2009B",
    ]  # fmt: skip
    assert str(unbroken("a <b> 0.9 [0.8, 1.0]")) == 'a &lt;b&gt; <span class="unbroken">0.9 [0.8, 1.0]</span>'


def test_the_report_marks_what_was_learned_and_escapes_it(tmp_path: Path) -> None:
    pieces = [Piece("<|im_start|>", special=True), Piece(HOSTILE), Piece(f"good {HOSTILE}", 0.5)]
    example = ShownExample("train.jsonl:7", pieces, 12, 3, 5, None)
    page = write_report(tmp_path, replace(generation(), learned_from=[example])).read_text(encoding="utf-8")
    section = page[page.index('id="learned-from"') : page.index("</section>", page.index('id="learned-from"'))]
    assert '<mark title="weight 0.5">good &lt;script&gt;' in section and "<script" not in section
    assert '<span class="special">&lt;|im_start|&gt;</span>' in section
    assert "train.jsonl:7" in section and "5 tokens cut off" in section


def test_shared_words_are_marked_and_escaped() -> None:
    assert str(shared_words("The <b> cat, sat", "cat? THE")) == (
        '<u class="shared">The</u> &lt;b&gt; <u class="shared">cat</u>, sat'
    )
