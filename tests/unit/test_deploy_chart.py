"""Which of several runs to deploy: the front, and the picture as SVG and as a page."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from tunesmith.evaluation.deploy_chart import Candidate, pareto_front, write_picture
from tunesmith.evaluation.intervals import Interval


def test_the_front_holds_what_nothing_beats_for_less() -> None:
    costs, values = [1.0, 2.0, 3.0, 4.0, 2.0], [0.5, 0.7, 0.6, 0.9, 0.7]
    assert pareto_front(costs, values) == [0, 1, 3]
    assert pareto_front(costs, values, higher_is_better=False) == [0]
    assert pareto_front([2.0, 1.0], [0.5, 0.5]) == [1]  # as good and cheaper


def test_the_picture_is_whole_in_itself(tmp_path: Path) -> None:
    candidates = [
        Candidate("tuned & whole", Interval(0.86, 0.84, 0.88), 0.02, 90_000_000),
        Candidate("int8", Interval(0.85, 0.83, 0.87), 0.01, 23_000_000),
    ]
    write_picture(tmp_path / "deploy.svg", candidates, "accuracy")
    svg = (tmp_path / "deploy.svg").read_text()
    ElementTree.fromstring(svg)
    assert "var(--" not in svg and "int8" in svg
    write_picture(tmp_path / "deploy.html", candidates, "accuracy")
    page = (tmp_path / "deploy.html").read_text()
    assert "<svg" in page and "tuned &amp; whole" in page and "http" not in page.replace("http://www.w3.org", "")
