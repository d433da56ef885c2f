"""``models.yaml``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith.errors import RecipeError, UsageError
from tunesmith.server.registry import read_models


@pytest.mark.parametrize(
    "recipe",
    ["{parameters: {kind: lora, rank: 32}}", "{training: {max_steps: 2}}", "{training: {preference: {beta: 0.2}}}"],
)
def test_recipes_that_jobs_can_have(tmp_path: Path, recipe: str) -> None:
    path = tmp_path / "models.yaml"
    path.write_text(f"gpt: {{model: smollm2-135m-instruct, recipe: {recipe}}}")
    assert read_models(path)["gpt"].recipe


def test_a_mistyped_recipe_is_told_when_the_server_starts(tmp_path: Path) -> None:
    path = tmp_path / "models.yaml"
    path.write_text("gpt: {model: smollm2-135m-instruct, recipe: {max_steps: 2}}")
    with pytest.raises(RecipeError, match="the recipe of 'gpt': unknown key `max_steps`") as refused:
        read_models(path)
    assert refused.value.fix == "did you mean `training.max_steps`?"


def test_a_recipe_that_is_no_mapping(tmp_path: Path) -> None:
    path = tmp_path / "models.yaml"
    path.write_text("gpt: {model: smollm2-135m-instruct, recipe: lora}")
    with pytest.raises(UsageError, match="the recipe of 'gpt' is no mapping"):
        read_models(path)
