"""YAML whose keys may stand once."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tunesmith import recipe_file, strict_yaml
from tunesmith.errors import RecipeError


def test_a_key_that_stands_twice_is_refused_with_both_lines(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("task: text-classification\nmethod: full\nmodel: m\nmethod: peft\n")
    with pytest.raises(RecipeError, match="`method` stands here and in line 2") as caught:
        recipe_file.load(path)
    assert caught.value.where == f"{path}:4"


def test_what_is_laid_under_a_mapping_may_be_changed() -> None:
    assert strict_yaml.load("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}") == {"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 2}}
    with pytest.raises(yaml.YAMLError):
        strict_yaml.load("!!python/object/apply:os.getcwd []")


def test_data_where_a_recipe_is_due(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a", "label": "b"}\n')
    with pytest.raises(RecipeError, match="data, not a recipe") as caught:
        recipe_file.load(path)
    assert "--train" in str(caught.value.fix)
