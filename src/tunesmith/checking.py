"""Checking data before a run: with the model's own tokens where the model is here, by characters where it is not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.data.pictures import unpacked_for_now
from tunesmith.errors import NotFoundError, UsageError
from tunesmith.events import Listener, Notice, nobody
from tunesmith.recipe import PICTURES, Recipe

if TYPE_CHECKING:
    from tunesmith.data.prepare import PreparedData
    from tunesmith.data.problems import CheckReport
    from tunesmith.data.render import Rendered
    from tunesmith.data.rows import Row
    from tunesmith.data.shown import ShownExample


@unpacked_for_now()
def check(recipe: Recipe, *, dropped_to: Path | None = None, on_event: Listener = nobody) -> CheckReport:
    """Find everything that is wrong with a recipe's data: those of each of its stages.

    Args:
        recipe: Its task, data and model are read. A model that is not on this machine is not fetched for a check: then
            lengths are in characters, and what would be cut, or would carry no loss, stays unknown, which is said.
        dropped_to: Leave rows with errors out, and write them here with the reason. Those of a stage with data of its
            own go beside it, into a file with the stage's name.
        on_event: Told about guessed columns and progress.

    Returns:
        One report; with several stages its problems say whose they are.

    Raises:
        DataError: A file does not exist, so there is nothing to check.
        RecipeError: A model that it names is nowhere to be had, so a run would fail.
        UsageError: The task wants text, and the model is an encoder.
    """
    from tunesmith import catalog
    from tunesmith.data import prepare

    if recipe.method == "hosted":  # the model is elsewhere, and so are the rules
        from tunesmith.hosted import check as hosted
        from tunesmith.hosted.table import load

        recipe = _resolved(recipe, dropped_to)
        known = load(recipe.hosted.prices if recipe.hosted else None)
        return hosted.check(recipe, known, dropped_to=dropped_to, announce=False, on_event=on_event).report

    def check_one(view: Recipe, number: int) -> CheckReport:
        if dropped_to is None:
            return prepare.check(view, render=_renderer(view, on_event), on_event=on_event)
        return _prepared(view, _beside(dropped_to, recipe, view), on_event).report

    recipe = _resolved(recipe, dropped_to)
    catalog.require_models(recipe.named_models())
    return _joined(recipe, prepare.of_stages(recipe, check_one))


def check_and_show(
    recipe: Recipe, count: int, *, dropped_to: Path | None = None, on_event: Listener = nobody
) -> tuple[CheckReport, list[ShownExample]]:
    """The same, with some training rows of the last stage as the model will see them.

    Raises:
        NotFoundError: The model is not on this machine, and without its tokenizer nobody can say what it sees.
        DataError: As :func:`check` does.
    """
    from tunesmith import catalog
    from tunesmith.data import prepare
    from tunesmith.data.renderers import recipe_renderer
    from tunesmith.data.shown import show_rows
    from tunesmith.models.forms import answer_form
    from tunesmith.models.load import load_config, load_tokenizer, longest_example
    from tunesmith.tasks import TASKS

    if recipe.task in PICTURES:
        raise UsageError("a model sees pictures, which this cannot print", where="task", fix="look at the files")
    recipe = _resolved(recipe, dropped_to)
    catalog.require_models(recipe.named_models())
    folder = catalog.model_here(recipe.model)
    if folder is None:
        missing = _not_here(recipe.model)
        raise NotFoundError(f"{recipe.model} is not on this machine, so its tokens cannot be shown", fix=missing.fix)
    task, config, tokenizer = TASKS[recipe.task], load_config(folder), load_tokenizer(folder)
    prepared = prepare.of_stages(
        recipe, lambda view, number: _prepared(view, dropped_to and _beside(dropped_to, recipe, view), on_event)
    )
    form, _ = answer_form(recipe, recipe.stages[-1], config)
    max_length = longest_example(folder, config, recipe.data.max_length)
    render = recipe_renderer(recipe, tokenizer, form=form, labels=prepared[-1].labels, max_length=max_length)
    report = _joined(recipe, [each.report for each in prepared])
    return report, show_rows(prepared[-1].train, count, render, tokenizer, task)


def _resolved(recipe: Recipe, dropped_to: Path | None) -> Recipe:
    """The recipe with all its stages, and with bad rows left out of the data of each if that is asked for."""
    recipe = recipe.resolved()
    if dropped_to is None:
        return recipe
    drop = {"drop_bad": True}
    stages = [
        stage.model_copy(update={"data": stage.data and stage.data.model_copy(update=drop)}) for stage in recipe.stages
    ]
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=drop), "stages": stages})


def _joined(recipe: Recipe, reports: Sequence[CheckReport]) -> CheckReport:
    """The reports of all stages as one; stages that share their data are named together."""
    from tunesmith.data.problems import CheckReport

    names: dict[int, list[str]] = {}
    for stage, report in zip(recipe.stages, reports, strict=True):
        names.setdefault(id(report), []).append(stage.name)
    by_id = {id(report): report for report in reports}
    return CheckReport.of_stages({", ".join(stages): by_id[key] for key, stages in names.items()}, reports[-1])


def _prepared(view: Recipe, dropped_to: Path | None, on_event: Listener) -> PreparedData:
    from tunesmith.data.prepare import prepare

    render = _renderer(view, on_event)
    return prepare(view, render=render, on_event=on_event, dropped_to=dropped_to, stop_on_errors=False, announce=False)


def _beside(dropped_to: Path, recipe: Recipe, view: Recipe) -> Path:
    """Where the rows that a stage leaves out are written."""
    if (view.task, view.data) == (recipe.task, recipe.data):
        return dropped_to
    return dropped_to.with_name(f"{dropped_to.stem}-{view.stages[0].name}{dropped_to.suffix}")


def _renderer(recipe: Recipe, on_event: Listener) -> Callable[[Row], Rendered] | None:
    """A stage's rows as the model will see them, but for the label, which a check does not know yet."""
    from tunesmith import catalog
    from tunesmith.data.renderers import check_renderer
    from tunesmith.models.forms import answer_form
    from tunesmith.models.load import load_config, load_tokenizer, longest_example, natural_form
    from tunesmith.tasks import TASKS

    if recipe.task in PICTURES:
        return None
    folder = catalog.model_here(recipe.model)
    if folder is None:
        on_event(_not_here(recipe.model))
        return None
    config = load_config(folder)
    max_length = longest_example(folder, config, recipe.data.max_length)
    if TASKS[recipe.task].answer == "text":
        answer_form(recipe, recipe.stages[-1], config)  # no row can be right for a model that cannot write
    return check_renderer(recipe, load_tokenizer(folder), natural=natural_form(config), max_length=max_length)


def _not_here(model: str) -> Notice:
    """A model that is still to be fetched is as it should be."""
    from tunesmith import catalog

    here = model in [entry.name for entry in catalog.entries()]
    fix = f"to count tokens: `tunesmith catalog get {model}`" if here else "to count tokens, give a model's folder"
    return Notice(level="info", message=f"{model} is not on this machine, so lengths are in characters", fix=fix)
