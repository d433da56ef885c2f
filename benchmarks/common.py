"""What the scripts share: where things lie, the data that several read, runs, and results that grow run by run.

Importing it puts the sources of Tunesmith on the path. Scripts in `peers/` and `measuring.py` run where Tunesmith is
not installed, and have no part in it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunesmith.runs import Run

BENCHMARKS = Path(__file__).resolve().parent
ROOT = BENCHMARKS.parent
RESULTS_FOLDER = BENCHMARKS / "results"
SHARED = ROOT.parent / "shared" / "data"
"""The real data, beside the project."""

sys.path.insert(0, str(ROOT / "src"))

TUNESMITH = (sys.executable, "-c", "import sys; from tunesmith.cli.main import run; sys.exit(run(sys.argv[1:]))")
"""The command in a process of its own."""
SIDES = {"pos": "positive", "neg": "negative"}
OUTCOME = ("metrics", "baselines", "verdict", "seconds")
KEPT = (*OUTCOME, "tuning_seconds", "tokens_per_second", "peak_memory_bytes")
"""What results keep of a run's summary."""


def results_in(path: Path | None, **empty: Any) -> dict[str, Any]:
    """The results in a file, to be added to; or those of no run yet."""
    if path is None or not path.is_file():
        return empty
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def run_or_resume(tree: dict[str, Any], folder: Path) -> Run:
    """Begin the run of a recipe in a folder, or go on with it."""
    from tunesmith import pipeline, recipe_file
    from tunesmith.progress import shown

    with shown() as on_event:
        if (folder / "recipe.yaml").is_file():
            return pipeline.resume(folder, on_event=on_event)
        return pipeline.run(recipe_file.parse(tree), run_dir=folder, on_event=on_event)


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> str:
    """A JSONL file of rows; its path."""
    from tunesmith.disk import write_text

    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return str(path)


def snippets(side: str, data: Path = SHARED) -> list[str]:
    """Movie snippets of sentence_polarity: those of `pos` or of `neg`."""
    return (data / "sentence_polarity" / f"rt-polarity.{side}").read_text(encoding="utf-8").splitlines()


def polarity_rows() -> list[dict[str, str]]:
    """All movie snippets with their label, the good ones first."""
    return [{"text": text.strip(), "label": label} for side, label in SIDES.items() for text in snippets(side)]
