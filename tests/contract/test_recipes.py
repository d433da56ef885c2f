"""Every recipe that ships parses, and each method has one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith.methods import METHODS
from tunesmith.recipe_file import load, parse

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
ELSEWHERE = {
    "encoder-decoder.yaml": "google-t5/t5-small",  # the catalog has no such model
    "tools.yaml": "Qwen/Qwen2.5-0.5B-Instruct",  # nor one whose chat template knows tools
    "transfer-tasks.yaml": "runs/films",  # the run that its first lines say how to make
}
"""Recipes whose models do not come from the catalog."""


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_a_shipped_recipe_parses_and_resolves(path: Path) -> None:
    resolved = load(path).resolved()
    assert resolved.data.train, "a shipped recipe names its data"
    assert all(stage.parameters is not None for stage in resolved.stages)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_a_shipped_recipe_uses_names_of_the_catalog(path: Path) -> None:
    from tunesmith.catalog import entries

    known = {entry.name: entry.kind for entry in entries()}
    recipe = load(path)
    assert known.get(recipe.model) == "model" or recipe.model == ELSEWHERE.get(path.name)
    assert all(known.get(name) == "data" or (ROOT / name).is_file() for name in recipe.data.train)
    assert all(known.get(b.model) == "model" for b in recipe.evaluate.baselines if b.model)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_what_a_run_keeps_of_a_shipped_recipe_can_be_read_again(path: Path, tmp_path: Path) -> None:
    resolved = load(path).resolved()
    kept = tmp_path / "recipe.yaml"
    kept.write_text(resolved.to_yaml(), encoding="utf-8")
    assert load(kept) == resolved
    assert load(kept).resolved() == resolved


def test_every_method_has_a_recipe() -> None:
    assert {load(path).method for path in RECIPES} == set(METHODS)


def test_the_demo_measures_all_runs_on_the_same_rows() -> None:
    demos = [load(path) for path in RECIPES if path.name.startswith("demo")]
    assert len(demos) == 3
    assert len({(tuple(r.data.train), str(r.data.test), r.data.seed, r.evaluate.limit) for r in demos}) == 1


def test_a_mistyped_key_of_a_shipped_recipe_would_be_found() -> None:
    from tunesmith.errors import RecipeError

    with pytest.raises(RecipeError):
        parse(load(RECIPES[0]).model_dump() | {"epocs": 1})
