"""Commands that make a finished model smaller and hand it on: quantize."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tunesmith.cli.output import Json, Run, interval_text, print_json, print_pairs, print_table, stdout


def quantize(
    run: Run,
    to: Annotated[
        str,
        typer.Option("--to", metavar="KIND", help="int8, int8-static, int8-weights, int4-weights, fp8 or onnx-int8."),
    ] = "int8",
    data: Annotated[
        list[str] | None,
        typer.Option("--data", metavar="FILE", help="Calibration data; default: the run's training rows. Repeatable."),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(
            "--budget",
            metavar="LOSS",
            help="Most that the primary metric may lose on the validation rows, e.g. 0.01; the most sensitive layers "
            "are left as they are until that is met.",
        ),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option("--keep", metavar="LAYER", help="A layer to leave as it is: `layer 0`, `embedding`. Repeatable."),
    ] = None,
    rows: Annotated[int, typer.Option("--rows", metavar="N", help="Rows that calibrate and probe.")] = 64,
    run_dir: Annotated[
        Path | None,
        typer.Option("--run-dir", metavar="DIR", help="Folder of the result; default: `quantized/KIND` in the run's."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a run's model smaller and faster, and measure what that costs.

    The result is a run of its own, which `predict`, `eval`, `compare` and `serve` read; the original stays. Size, speed
    at batch 1 and 8 on this machine, and quality on the test rows are measured beside the original's.
    """
    from tunesmith import progress, recipe_file
    from tunesmith.runs import open_run

    opened = open_run(run)
    asked = {"to": to, "data": data or [], "budget": budget, "keep": keep or [], "rows": rows}
    recipe = recipe_file.parse(opened.recipe.model_dump(mode="json", exclude_none=True) | {"quantize": asked})
    assert recipe.quantize is not None
    from tunesmith.compression import quantize as quantizing

    with progress.shown(verdict=False) as on_event:
        made = quantizing.quantize(opened, recipe.quantize, target=run_dir, on_event=on_event)
    summary = made.summary()
    if as_json:
        print_json(summary)
        return
    metrics, before = summary["metrics"], summary["original_metrics"]
    print_table(
        ("", f"{to}", "original"),
        [
            *((name, interval_text(metrics[name]), interval_text(before[name])) for name in metrics if name in before),
            ("bytes on disk", f"{summary['bytes']:,}", f"{summary['original_bytes']:,}"),
            ("bytes in memory", f"{summary['memory_bytes']:,}", f"{summary['original_memory_bytes']:,}"),
            *(
                (
                    f"tokens/s at batch {new['batch']}",
                    f"{new['tokens_per_second']:,.1f}",
                    f"{old['tokens_per_second']:,.1f}",
                )
                for new, old in zip(summary["speed"]["quantized"], summary["speed"]["original"], strict=True)
            ),
        ],
    )
    stdout().print(summary["verdict"], style="bold", markup=False, soft_wrap=True)
    print_pairs(
        (
            ("left as they are", ", ".join(summary["kept"]) or None),
            ("run", made.path),
            ("model", made.model_folder),
            ("report", made.report()),
        )
    )
