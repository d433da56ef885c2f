"""The report in a real browser: it fits wide and narrow windows, hides nothing, and loads and runs nothing."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import tiny
import tunesmith
from conftest import labelled_rows, write_jsonl

pytestmark = pytest.mark.skipif(shutil.which("chromium") is None, reason="Debian's chromium is not installed")

WIDTHS = (1200, 400)
QUICK: dict[str, Any] = {"precision": "fp32", "training": {"max_steps": 6, "batch_size": 8}}

# A page of the report's own folder may look into it; the report itself may run no script.
HARNESS = """<!doctype html><meta charset="utf-8"><body><pre id="found"></pre><script>
const found = [];
for (const width of %s) {
  const frame = document.createElement("iframe");
  frame.style = `width: ${width}px; height: 800px; border: 0`;
  frame.src = "report.html";
  frame.onload = () => {
    const page = frame.contentDocument;
    const empty = [...page.querySelectorAll("svg, table, section, h2")].filter(
      (one) => !one.closest("details:not([open])") && one.getBoundingClientRect().height === 0);
    const wide = [...page.querySelectorAll(".scroll")].filter((one) => one.scrollWidth > one.clientWidth);
    found.push({width, wide: wide.map((one) => one.outerHTML.slice(0, 80)),
                scroll: page.documentElement.scrollWidth, empty: empty.map((one) => one.outerHTML.slice(0, 80)),
                charts: page.querySelectorAll("svg").length, text: page.body.innerText,
                ids: [...page.querySelectorAll("nav a")].map((a) => page.querySelector(a.hash) !== null)});
    document.getElementById("found").textContent = JSON.stringify(found);
  };
  document.body.append(frame);
}
</script>"""


@pytest.fixture(scope="module")
def labels(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> tunesmith.Run:
    hostile = " <script>document.title = 'run'</script><img src='//x/y.png'>"
    seen = [row | {"text": row["text"] + hostile} for row in labelled_rows(40, seed=1)]
    return tunesmith.tune(
        labelled_rows(120), test=seen, task="text-classification", model=str(tiny_encoder),
        run_dir=tmp_path_factory.mktemp("labels") / "run", **QUICK,
        evaluate={"baselines": ["majority", "features"], "resamples": 200},
    )  # fmt: skip


@pytest.fixture(scope="module")
def answers(tiny_decoder: Path, tmp_path_factory: pytest.TempPathFactory) -> tunesmith.Run:
    generation = {"max_new_tokens": 8}
    return tunesmith.tune(
        [*tiny.question_rows(60)], task="text-generation", model=str(tiny_decoder), method="peft",
        run_dir=tmp_path_factory.mktemp("answers") / "run", **QUICK,
        evaluate={"baselines": ["base"], "resamples": 200, "generation": generation},
    )  # fmt: skip


@pytest.fixture(scope="module")
def stages(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> tunesmith.Run:
    folder = tmp_path_factory.mktemp("stages")
    first = write_jsonl(folder / "first.jsonl", labelled_rows(60, seed=1))
    return tunesmith.tune(
        labelled_rows(120), task="text-classification", model=str(tiny_encoder), method="sequential",
        run_dir=folder / "run", stages=[{"name": "first", "data": {"train": str(first)}}, {"name": "second"}],
        **QUICK, evaluate={"baselines": ["majority"], "resamples": 200, "general": None},
    )  # fmt: skip


@pytest.mark.parametrize("name", ["labels", "answers", "stages"])
def test_the_report_in_a_browser(name: str, request: pytest.FixtureRequest) -> None:
    run: tunesmith.Run = request.getfixturevalue(name)
    shown, said = opened(run.path)
    assert [one["width"] for one in shown] == list(WIDTHS)
    for one in shown:
        assert one["scroll"] <= one["width"]  # nothing sticks out to the right
        assert one["width"] < 1200 or not one["wide"]  # and no table has to be scrolled where there is room
        assert not one["empty"] and one["charts"] >= 2
        assert one["ids"] and all(one["ids"])  # each entry of the contents leads somewhere
        assert re.sub(r"\s+", " ", run.verdict) in re.sub(r"\s+", " ", one["text"])
    assert not said  # no script that was refused, no file that was missing


def opened(folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """What the windows show, narrowest last, and what the browser complains of."""
    page = folder / "harness.html"
    page.write_text(HARNESS % json.dumps(WIDTHS), encoding="utf-8")
    command = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += ["--allow-file-access-from-files", "--enable-logging=stderr", "--virtual-time-budget=10000"]
    command += [f"--user-data-dir={folder / 'profile'}", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stdout[:500]
    shown = json.loads(html.unescape(found[1]))
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return sorted(shown, key=lambda one: -one["width"]), said
