"""How many labels each way to learn needs: the learning curve of sentence_polarity with MiniLM-L6.

    python benchmarks/shots.py --out runs/polarity-shots
    python benchmarks/shots.py --out runs/polarity-shots --shots 1,2,4 --seeds 1 --limit 200      a quick look

An interrupted curve goes on where it stopped. The picture and the figures are copied to docs/assets/shots.svg and
benchmarks/results/shots.json with --keep.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from acceptance import polarity
from common import RESULTS_FOLDER, ROOT

from tunesmith import recipe_file
from tunesmith.disk import write_json
from tunesmith.learning_curve import DEFAULT_SHOTS, learning_curve
from tunesmith.progress import shown

WAYS = "features,few-shot,in-context@smollm2-135m-instruct,peft,full"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shots", default=",".join(DEFAULT_SHOTS))
    parser.add_argument("--methods", default=WAYS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=int, default=500, help="test rows, the same for all")
    parser.add_argument("--rows", type=int, default=None, help="rows to train and test on; default: all 10,662")
    parser.add_argument("--target", type=float, default=None)
    parser.add_argument("--keep", action="store_true", help="copy the result into the project")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    data = polarity(given.out)["data"] | {"max_rows": given.rows}
    recipe = recipe_file.parse(
        {"task": "text-classification", "model": "minilm-l6", "data": data, "evaluate": {"limit": given.limit}}
        | {"training": {"dropout": 0}}
    )
    with shown() as on_event:
        curve = learning_curve(
            recipe,
            given.out,
            shots=given.shots.split(","),
            ways=given.methods.split(","),
            seeds=given.seeds,
            target=given.target,
            on_event=on_event,
        )
    print(curve.verdict)
    if given.keep:
        shutil.copyfile(given.out / "curve.svg", ROOT / "docs" / "assets" / "shots.svg")
        how = {"seeds": given.seeds, "limit": given.limit}
        facts = {name: value for name, value in curve.as_dict().items() if name != "folder"}
        write_json(RESULTS_FOLDER / "shots.json", facts | how)


if __name__ == "__main__":
    main()
