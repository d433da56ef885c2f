"""Commands that make a finished model smaller and hand it on: quantize, export, push."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from tunesmith import words
from tunesmith.cli.output import Json, Run, print_json, print_pairs, print_table, stdout


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
            *(
                (name, words.interval(metrics[name]), words.interval(before[name]))
                for name in metrics
                if name in before
            ),
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


def export(
    run: Run,
    to: Annotated[str, typer.Option("--to", metavar="FORMAT", help="safetensors, gguf, onnx or adapter.")],
    outtype: Annotated[
        str,
        typer.Option("--outtype", metavar="TYPE", help="Of GGUF: f32, f16, bf16, q8_0, q5_1, q5_0, q4_1 or q4_0."),
    ] = "f16",
    folder: Annotated[
        Path | None,
        typer.Option("--dir", metavar="DIR", help="Folder of the result; default: `exports/FORMAT` in the run's."),
    ] = None,
    rows: Annotated[int, typer.Option("--rows", metavar="N", min=1, help="Test rows to compare answers on.")] = 8,
    as_json: Json = False,
) -> None:
    """Write a run's model for other programs, and verify it with theirs.

    Each export is loaded again by the library that it is for, as far as that is installed, and its answers to test
    rows are compared with the run's. The difference is printed and kept in `verification.json`.
    """
    from tunesmith import progress
    from tunesmith.compression.export import export_run
    from tunesmith.runs import open_run

    opened = open_run(run)
    with progress.shown(verdict=False) as on_event:
        made = export_run(opened, cast(Any, to), target=folder, outtype=outtype, rows=rows, on_event=on_event)
    if as_json:
        print_json(made)
        return
    print_pairs(
        (
            ("export", made["export"]),
            ("files", ", ".join(made["files"])),
            ("bytes", f"{made['bytes']:,}"),
            *(("verified by", one["text"]) for one in made["verified"]),
        )
    )


def push(
    run: Run,
    repository: Annotated[str, typer.Argument(metavar="REPO", help="OWNER/NAME on the hub; made if there is none.")],
    export: Annotated[
        str | None,
        typer.Option("--export", metavar="NAME", help="One of the run's exports, e.g. `gguf-f16`; default: the model."),
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Make the repository public; default: private.")] = False,
    as_json: Json = False,
) -> None:
    """Upload a run's model or an export to the hub, with its model card.

    The token is the one that `hf auth login` has stored, or `HF_TOKEN`; it is never printed. Paths of this machine are
    left out of what is uploaded.
    """
    from tunesmith.compression.push import push as upload
    from tunesmith.runs import open_run

    opened = open_run(run)
    page = upload(opened, repository, export=export, public=public)
    if as_json:
        print_json({"run": opened.path, "repository": repository, "page": page, "private": not public})
    else:
        print(page)
