"""Commands about a recipe: write it, show it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from tunesmith import disk, recipe_file
from tunesmith.cli.output import Json, print_json, stderr
from tunesmith.cli.recipe_flags import RecipeChoices, describe, takes_recipe
from tunesmith.errors import UsageError
from tunesmith.recipe import Recipe

app = typer.Typer(
    help="Show a recipe with every default, or the recipe's schema.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
)

QUESTIONS = {
    "task": "text-classification",
    "data.train": None,
    "model": "minilm-l6",
    "method": "supervised",
    "evaluate.baselines": "majority, base, few-shot, features",
}
"""The five steps as questions: key of the recipe -> the answer on offer (``None``: there is none)."""


@takes_recipe
def init(
    choices: RecipeChoices,
    *,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The file to write.")] = Path(
        "recipe.yaml"
    ),
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
    as_json: Json = False,
) -> None:
    """Ask five questions and write a recipe.

    What a flag answers is not asked. Where stdin is no terminal, nothing is asked: then --task, --train and --model
    must be given, and the rest keeps its default.
    """
    if output.exists() and not force:
        raise UsageError("the file exists already", where=str(output), fix="choose another --output, or give --force")
    tree = _answered(choices.tree(), ask=sys.stdin.isatty() and not as_json)
    recipe = recipe_file.parse(tree)
    disk.write_text(output, yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))
    if as_json:
        print_json({"recipe": str(output), "task": recipe.task, "model": recipe.model, "method": recipe.method})
        return
    print(output)
    stderr().print(f"Next: tunesmith check {output}; then tunesmith tune {output}", markup=False)


def _answered(tree: dict[str, Any], *, ask: bool) -> dict[str, Any]:
    """Fill in what the five questions ask for: from the tree, else from the user, else from the offers.

    Raises:
        UsageError: A question without an offer is open and nobody can be asked.
    """
    for key, offer in QUESTIONS.items():
        if _present(tree, key):
            continue
        if ask:
            print(f"\n{describe(key)}", file=sys.stderr)
            answer = typer.prompt(key, default=offer, err=True)
        elif offer is None or key in ("task", "model"):
            raise UsageError(f"`{key}` is not given", fix=f"give --{key.rpartition('.')[2]}, or answer in a terminal")
        else:
            continue  # the recipe's own default holds
        value = [part.strip() for part in answer.split(",")] if key == "evaluate.baselines" else answer
        tree = recipe_file.override(tree, f"{key}={json.dumps(value, ensure_ascii=False)}")
    return tree


def _present(tree: dict[str, Any], key: str) -> bool:
    node: Any = tree
    for name in key.split("."):
        if not isinstance(node, dict) or name not in node:
            return False
        node = node[name]
    return True


@app.command("show")
@takes_recipe
def show(choices: RecipeChoices, *, as_json: Json = False) -> None:
    """Print the recipe with its method's choices and every default spelled out.

    What a run alone can fill in, such as a batch size that depends on the number of rows, is `null`, with a comment
    that says what decides it. The learning rate depends on the model: it is shown if the model is on this machine.
    """
    recipe = choices.recipe()  # before the other imports: a mistyped key answers at once
    from tunesmith.spelled_out import spelled_out

    shown = spelled_out(recipe)
    if as_json:
        print_json(shown.recipe.model_dump(mode="json"))
    else:
        print(shown.to_yaml(), end="")


@app.command("schema")
def schema(as_json: Json = False) -> None:
    """Print the JSON Schema of recipes, which editors complete and check by.

    In VS Code: `tunesmith recipe schema > recipe.schema.json`, and name it under `yaml.schemas`.
    """
    tree = Recipe.model_json_schema()
    if as_json:
        print_json(tree)
    else:
        print(json.dumps(tree, indent=2, ensure_ascii=False))
