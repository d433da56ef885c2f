"""Flags that set keys of the recipe, for every command that takes one.

A flag is nothing but a short way to write ``--set key=value``; its help text is the description of the key itself.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from tunesmith import recipe_file, strict_yaml
from tunesmith.errors import UsageError
from tunesmith.recipe import Recipe

FLAGS = {
    "task": "task",
    "model": "model",
    "method": "method",
    "parameters": "parameters",
    "train": "data.train",
    "validation": "data.validation",
    "test": "data.test",
}
"""Name of the flag -> key of the recipe."""


@dataclass(frozen=True)
class RecipeChoices:
    """What a command line says about the recipe.

    Attributes:
        file: The recipe file, if one was named.
        overrides: ``key=value`` items, from the flags and then from ``--set``.
    """

    file: Path | None = None
    overrides: list[str] = field(default_factory=list)

    def recipe(self) -> Recipe:
        """The recipe: the file (or nothing) with the overrides on top.

        Raises:
            UsageError: Neither a file nor a flag was given.
            RecipeError: The recipe is malformed.
        """
        if self.file is not None:
            return recipe_file.load(self.file, overrides=self.overrides)
        if not self.overrides:
            raise UsageError(
                "no recipe was given",
                fix="name a recipe file (`tunesmith init` writes one), or give --task, --model and --train",
            )
        return recipe_file.parse({}, overrides=self.overrides)

    def tree(self) -> dict[str, Any]:
        """The choices as plain values under the recipe's keys, not yet checked."""
        tree: dict[str, Any] = {}
        if self.file is not None:
            tree = strict_yaml.load(self.file.read_text(encoding="utf-8")) or {}
        for item in self.overrides:
            tree = recipe_file.override(tree, item)
        return tree


def describe(key: str) -> str:
    """The description of a key of the recipe, e.g. ``data.train``."""
    if key == "parameters":
        return "What may change: `full`, `head`, `layers`, `lora`, ...: see `tunesmith methods --parameters`."
    part: Any = Recipe
    for name in key.split("."):
        info = part.model_fields[name]
        part = info.annotation
    return str(info.description)


def takes_recipe(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the argument ``RECIPE``, the flags above and ``--set``.

    The command receives them as its first argument, a :class:`RecipeChoices`.
    """
    hints = get_type_hints(command, include_extras=True)
    own = list(inspect.signature(command).parameters.values())[1:]
    parameters = [
        *_recipe_parameters(),
        *(parameter.replace(annotation=hints[parameter.name]) for parameter in own),
    ]

    @functools.wraps(command)
    def wrapped(**given: Any) -> None:
        file, extra = given.pop("recipe"), given.pop("overrides")
        flags = {key: given.pop(name) for name, key in FLAGS.items()}
        command(RecipeChoices(file, [*_as_overrides(flags), *(extra or [])]), **given)

    ordered = sorted(parameters, key=lambda parameter: parameter.name == "as_json")  # --json comes last in the help
    wrapped.__signature__ = inspect.Signature(ordered)  # type: ignore[attr-defined]  # what typer reads
    wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in ordered}
    return wrapped


def _recipe_parameters() -> list[inspect.Parameter]:
    def keyword(name: str, annotation: Any) -> inspect.Parameter:
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)

    panel = "The recipe"
    file = Annotated[Path | None, typer.Argument(metavar="RECIPE", help="A recipe file.", show_default=False)]
    overrides = Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Set any key, e.g. `training.epochs=1`. Repeatable.",
            rich_help_panel=panel,
        ),
    ]
    flags = []
    for name, key in FLAGS.items():
        repeatable = key.startswith("data.")
        option = typer.Option(f"--{name}", metavar=name.upper(), help=describe(key), rich_help_panel=panel)
        flags.append(keyword(name, Annotated[list[str] | None if repeatable else str | None, option]))
    return [keyword("recipe", file), *flags, keyword("overrides", overrides)]


def _as_overrides(flags: dict[str, str | list[str] | None]) -> list[str]:
    items = []
    value: Any
    for key, value in flags.items():
        if value is None or value == []:
            continue
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if key == "parameters":
            value = {"kind": value}  # so that `--set parameters.rank=8` can follow
        items.append(f"{key}={json.dumps(value, ensure_ascii=False)}")
    return items
