"""`tunesmith check` on JSONL files that are larger than its memory: seconds, and the most memory it held.

    python benchmarks/large_check.py                     0.5 and 2 GB
    python benchmarks/large_check.py --gigabytes 0.05    a small one, to see that it runs; writes no results

Rows are reviews put together of sentences of sentence_polarity, each row another choice of 60 of them, about 7 kB long.
Results go to `benchmarks/results/large_check.json`; the data lie beside the project (`../shared/data`).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from common import RESULTS_FOLDER, ROOT, TUNESMITH, snippets

from tunesmith import environment
from tunesmith.disk import write_json

RESULT = RESULTS_FOLDER / "large_check.json"
SIZES = (0.5, 2.0)
SENTENCES_A_ROW = 60


def write_rows(path: Path, gigabytes: float) -> int:
    """Fill a file; returns its rows."""
    parts = {label: snippets(label) for label in ("pos", "neg")}
    draw, written, rows = random.Random(0), 0, 0
    with path.open("w", encoding="utf-8") as file:
        while written < gigabytes * 1e9:
            label = draw.choice(("pos", "neg"))
            text = " ".join(draw.choices(parts[label], k=SENTENCES_A_ROW))
            written += file.write(json.dumps({"text": text, "label": label}) + "\n")
            rows += 1
    return rows


def measure(path: Path) -> dict[str, Any]:
    """Check a file in a process of its own."""
    flags = ["check", "--task", "text-classification", "--model", "minilm-l6", "--train", str(path), "--json"]
    started = time.monotonic()
    with tempfile.TemporaryFile() as out:
        environ = os.environ | {"PYTHONPATH": str(ROOT / "src")}
        actions = [(os.POSIX_SPAWN_DUP2, out.fileno(), 1)]
        child = os.posix_spawn(TUNESMITH[0], [*TUNESMITH, *flags], environ, file_actions=actions)
        _, status, used = os.wait4(child, 0)
        out.seek(0)
        found = json.loads(out.read())
    return {
        "bytes": path.stat().st_size,
        "exit_code": os.waitstatus_to_exitcode(status),
        "seconds": round(time.monotonic() - started, 1),
        "processor_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_rss_bytes": used.ru_maxrss * 1024,
        "rows_read": found["rows_read"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, nargs="+")
    asked = parser.parse_args()
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for gigabytes in asked.gigabytes or SIZES:
            path = Path(folder) / "reviews.jsonl"
            rows = write_rows(path, gigabytes)
            runs.append({"rows": rows} | measure(path))
            print(json.dumps(runs[-1]), flush=True)
            if not asked.gigabytes:
                write_json(RESULT, {"environment": environment.describe(), "runs": runs})


if __name__ == "__main__":
    main()
