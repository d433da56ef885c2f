"""The command that turns ratings into preferences: pairs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from tunesmith.cli.output import Json, print_json


def pairs(
    files: Annotated[list[str], typer.Argument(help="Files with a text and its rating in each row.")],
    *,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Where the pairs go (JSONL).")],
    text: Annotated[str, typer.Option(help="Column of the texts.")] = "text",
    rating: Annotated[str, typer.Option(help="Column of the ratings.")] = "rating",
    group: Annotated[
        str | None, typer.Option(help="Column of the prompt: only texts of one prompt are compared.")
    ] = None,
    margin: Annotated[float, typer.Option(help="Least difference of two ratings, above 0.")] = 1.0,
    per_text: Annotated[int, typer.Option(min=1, help="Pairs that each text begins.")] = 2,
    test_out: Annotated[
        Path | None,
        typer.Option("--test-out", metavar="FILE", help="Hold texts back, and write pairs of these here."),
    ] = None,
    test_share: Annotated[float, typer.Option(min=0.01, max=0.5, help="Share of the texts held back.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Of the draw and of the split.")] = 0,
    as_json: Json = False,
) -> None:
    """Turn ratings into pairs of a better and a worse text.

    The pairs are rows of the task `preference`. Texts are divided before they are paired: none is both trained and
    tested on.
    """
    from tunesmith import disk
    from tunesmith.data import pairs as making
    from tunesmith.data.rated import read_rated

    rated = read_rated(files, text=text, rating=rating, group=group)
    parts = [(out, rated)]
    if test_out is not None:
        kept, held_back = making.split(rated, test_share, seed)
        parts = [(out, kept), (test_out, held_back)]
    found = []
    for path, texts in parts:
        made = making.make_pairs(texts, margin=margin, per_text=per_text, seed=seed)
        disk.write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made.pairs))
        found.append(
            {
                "file": str(path),
                "texts": len(texts),
                "pairs": len(made.pairs),
                "unpaired": made.unpaired,
                "contradicting": made.ties,
            }
        )
    if as_json:
        print_json(found)
        return
    for line in found:
        print(
            f"{line['file']}: {line['pairs']:,} pairs of {line['texts']:,} texts "
            f"({line['unpaired']:,} without a partner, {line['contradicting']:,} rated in contradictory ways)"
        )
