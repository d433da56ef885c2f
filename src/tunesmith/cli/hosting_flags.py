"""From the files and flags of ``tunesmith hosted`` to a recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import UsageError

if TYPE_CHECKING:
    from tunesmith.hosted.table import Table
    from tunesmith.recipe import Recipe


def recipe_and_prices(
    files: list[str],
    model: str | None,
    provider: str | None,
    task: str | None,
    validation: str | None,
    prices: Path | None,
    overrides: list[str] | None,
    *,
    epochs: int | None = None,
    grader: Path | None = None,
    more: dict[str, Any] | None = None,
    test: str | None = None,
    shares: bool = False,
) -> tuple[Recipe, Table]:
    """The recipe that files and flags make, and the table of prices.

    ``more`` are further keys of the recipe's ``hosted``. With ``shares`` rows are held back for validation and test, as
    every run does; else all rows count.
    """
    from tunesmith import recipe_file
    from tunesmith.hosted import table as tables

    chosen = {"provider": provider, "epochs": epochs, "prices": str(prices) if prices else None, **(more or {})}
    if grader is not None:
        chosen["grader"] = _grader(grader)
    hosted = {name: value for name, value in chosen.items() if value is not None}
    if len(files) == 1 and files[0].endswith((".yaml", ".yml")):
        given = {"model": model, "task": task, "method": "hosted"} | {f"hosted.{k}": v for k, v in hosted.items()}
        given |= {"data.validation": validation, "data.test": test}
        flags = [f"{key}={json.dumps(value)}" for key, value in given.items() if value is not None]
        recipe = recipe_file.load(files[0], overrides=[*flags, *(overrides or [])])
    elif task == "prompts" and grader is None and not any(item.startswith("hosted.grader") for item in overrides or ()):
        fix = "give it by `--grader FILE`; rows with answers are learned from by `--task chat`"
        raise UsageError("rows without answers need a grader", where="--grader", fix=fix)
    elif model is None:
        raise UsageError("no model was named", where="--model", fix="`tunesmith hosted models` lists what there is")
    else:
        tree = {
            "task": task or ("prompts" if grader else _task_of(files)),
            "model": model,
            "method": "hosted",
            "data": {"train": files, **_held_out("validation", validation, shares), **_held_out("test", test, shares)},
            "hosted": hosted,
        }
        recipe = recipe_file.parse(tree, overrides=overrides)
    return recipe.resolved(), tables.load(recipe.hosted.prices if recipe.hosted else prices)


def _held_out(part: str, file: str | None, share: bool) -> dict[str, Any]:
    """Where rows of ``validation`` or ``test`` come from: a file, the usual share of the training rows, or nowhere."""
    if file:
        return {part: [file]}
    return {} if share else {part: 0.0}


def _task_of(files: list[str]) -> str:
    """``preference`` if the first row has two answers, else ``chat``."""
    from tunesmith.data.readers import Record, read
    from tunesmith.data.sources import find_sources

    source = next(iter(find_sources(files)), None)
    first = next((item for item in read(source, "utf-8") if isinstance(item, Record)), None) if source else None
    names = set(first.values) if first else set()
    pairs = ({"preferred_output", "non_preferred_output"}, {"chosen", "rejected"})
    return "preference" if any(pair <= names for pair in pairs) else "chat"


def _grader(path: Path) -> Any:
    from tunesmith.hosted.grading import refuse_wrong

    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        fix = "name a file with OpenAI's grader object"
        raise UsageError(f"cannot read the grader: {error.strerror}", where=str(path), fix=fix) from error
    except ValueError as error:
        raise UsageError(f"the grader is no JSON: {error}", where=str(path), fix="mend it there") from error
    refuse_wrong(found, str(path))
    return found
