"""Commands that measure: eval and compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tunesmith import display, words
from tunesmith.cli.output import Json, Run, print_json, print_pairs, print_table, stdout
from tunesmith.cli.tuning import print_run
from tunesmith.errors import UsageError


def evaluate(
    run: Run,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data", metavar="FILE", help="Measure on these files instead of the run's own test rows. Repeatable."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure a run again, on its own or on other data."""
    from tunesmith import pipeline, progress
    from tunesmith.runs import open_run

    with progress.shown(verdict=False) as on_event:
        measured = pipeline.evaluate(open_run(run), data=data, on_event=on_event)
    print_run(measured, as_json=as_json)


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="Two or more runs, by folder or by name; with --shots one recipe file."),
    ],
    shots: Annotated[
        str | None,
        typer.Option(
            "--shots", metavar="K,K,...", help="Draw the learning curve of a recipe: examples of each label, or `all`."
        ),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            "--methods",
            metavar="NAME,...",
            help="Lines of the curve: features, few-shot, in-context, transfer, peft, full; `NAME@MODEL` for another "
            "model. Default: features, peft, full, and few-shot for an encoder or in-context for a model that writes.",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", metavar="N", min=1, help="How often examples are drawn.")] = 3,
    target: Annotated[
        float | None,
        typer.Option(
            "--target", metavar="ACCURACY", min=0, max=1, help="What shall be reached; default: 95 % of the best."
        ),
    ] = None,
    run_dir: Annotated[
        Path | None,
        typer.Option("--run-dir", metavar="DIR", help="The folder of the curve; an unfinished one is gone on with."),
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option(
            "--picture",
            metavar="FILE",
            help="Time each run here and draw quality against the time of an answer and against size, with the Pareto "
            "front: an `.svg`, or an `.html` page.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare runs on the same test rows; or, with --shots, ways to learn from few examples.

    Differences are taken row by row. Runs whose own test rows differ are compared on a file that `tunesmith eval RUN
    --data FILE` has measured them all on, or refused. Each difference has an interval and a p-value, corrected for the
    number of comparisons. Runs that learned the same tasks in turn are compared in what they know of all of them at the
    end, and in what they forgot.

    With `--shots 1,2,4,8,16,32,all RECIPE` each way is trained on so many examples of each label, with several seeds,
    and measured on the same test rows: how many labels does each need?
    """
    if shots is not None:
        _learning_curve(runs, shots, methods, seeds, target, run_dir, as_json=as_json)
        return
    import tunesmith

    compared = tunesmith.compare(*runs)
    found = compared.as_dict()
    if picture is not None:
        from tunesmith.evaluation.deploy_chart import measure_candidates, write_picture

        candidates = measure_candidates([tunesmith.load(run) for run in runs], compared.rows)
        write_picture(picture, candidates, compared.metric)
        found |= {"deploy": [candidate.as_dict() for candidate in candidates], "picture": str(picture)}
    if as_json:
        print_json(found)
        return
    print_table(*display.of_comparison(compared))
    if sequence := display.of_sequence(compared):
        print_table(*sequence)
    stdout().print(compared.verdict, style="bold", markup=False, soft_wrap=True)
    print_pairs((("picture", picture),))


def _learning_curve(
    recipes: list[str],
    shots: str,
    methods: str | None,
    seeds: int,
    target: float | None,
    run_dir: Path | None,
    *,
    as_json: bool,
) -> None:
    from tunesmith import learning_curve, progress, recipe_file

    if len(recipes) != 1:
        raise UsageError("a learning curve is of one recipe", where="--shots", fix="tunesmith compare RECIPE --shots 8")
    path = Path(recipes[0])
    recipe = recipe_file.load(path)
    with progress.shown(verdict=False) as on_event:
        curve = learning_curve.learning_curve(
            recipe,
            run_dir or Path("runs") / f"{path.stem}-shots",
            shots=_items(shots),
            ways=_items(methods) if methods else None,
            seeds=seeds,
            target=target,
            on_event=on_event,
        )
    if as_json:
        print_json(curve.as_dict())
        return
    print_table(
        ("method", "labels", "accuracy", "seeds", "seconds"),
        (
            (
                point.way,
                f"{point.labels:,}",
                words.interval({"value": point.value, "low": point.low, "high": point.high}),
                f"{min(point.values):.3f} to {max(point.values):.3f}",
                f"{point.seconds:.1f}",
            )
            for point in curve.points
        ),
    )
    stdout().print(curve.verdict, style="bold", markup=False, soft_wrap=True)
    print_pairs((("picture", curve.folder / "curve.svg"), ("figures", curve.folder / "curve.json")))


def _items(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]
