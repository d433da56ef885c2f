"""Files and models that a run's recipe names from the folder in which the run was made, looked at from another one."""

from __future__ import annotations

import contextlib
import glob
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunesmith.errors import NoDataError
from tunesmith.recipe import Recipe
from tunesmith.runs import DEFAULT_ROOT, Run

_PATHS = ("train", "validation", "test", "corpus", "preferences", "model", "teacher", "run", "function")
"""Keys of a recipe under which paths may stand."""
_RUNS = ("teacher", "run")
"""Those under which a run may stand by its name below ``runs/``."""
_FREE = ("columns", "json_schema", "grader")
"""Keys of a recipe below which the keys are the user's own."""


def recipe_from_here(opened: Run) -> Recipe:
    """The run's recipe, which finds the same files and models from the current folder.

    What is in the folder in which the run was made is meant, also where the current one has something of that name.
    """
    recipe = opened.recipe
    home = Path(opened.made_in or ".")
    if home.resolve() == Path.cwd():
        return recipe
    tree = recipe.model_dump(mode="json", exclude_unset=True)
    moved = _moved(tree, home)
    return recipe if moved == tree else Recipe.model_validate(moved)


@contextlib.contextmanager
def sent_home(opened: Run, recipe: Recipe) -> Iterator[None]:
    """Where files of a run are not found, say from which folder they are named.

    Args:
        opened: The run.
        recipe: As its files are looked for.
    """
    try:
        yield
    except NoDataError as error:
        home = Path(opened.made_in or ".")
        if home.resolve() != Path.cwd() and (error.where or "").startswith("data."):  # else they are the command's
            where = f"`cd {home}` first" if _elsewhere(recipe, home) else "`cd` to where they are now"
            error.fix = f"the run was made in {home}, and its files are named from there: {where}"
        raise


def _elsewhere(recipe: Recipe, home: Path) -> bool:
    """Whether files of a recipe are in another folder and not in the current one."""
    parts = [recipe.data, *(stage.data for stage in recipe.stages if stage.data)]
    given = [one for part in parts for one in (part.train, part.validation, part.test) if isinstance(one, list)]
    return any((home / name).exists() and not Path(name).exists() for names in given for name in names)


def _moved(value: Any, home: Path, key: str = "") -> Any:
    """Plain values of a recipe with whole paths where they lead to something from another folder."""
    if isinstance(value, dict):
        return {name: inner if name in _FREE else _moved(inner, home, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [_moved(inner, home, key) for inner in value]
    if not isinstance(value, str) or key not in _PATHS:
        return value
    if key == "function":
        file, colon, name = value.rpartition(":")
        return f"{home / file}{colon}{name}" if (home / file).is_file() else value
    there = home / value  # of a whole path it is that path
    below = home / DEFAULT_ROOT / value
    if key in _RUNS and not (there / "recipe.yaml").is_file() and (below / "recipe.yaml").is_file():
        return str(below)
    return str(there) if there.exists() or (glob.has_magic(value) and glob.glob(str(there), recursive=True)) else value
