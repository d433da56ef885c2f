"""Parameters without a kind: the one that is meant, or which to add; and paths as the recipe has them."""

from __future__ import annotations

from typing import Any

import pytest

from tunesmith.errors import RecipeError
from tunesmith.methods import METHODS, with_kinds
from tunesmith.recipe import Layers, LoRA
from tunesmith.recipe_file import parse

SHORT: dict[str, Any] = {"task": "text-classification", "model": "m", "data": {"train": "reviews.csv"}}


@pytest.mark.parametrize(
    ("said", "overrides", "kind"),
    [
        ({"method": "peft", "parameters": {"rank": 8}}, [], "lora"),
        ({"method": "peft"}, ["parameters.rank=8"], "lora"),
        ({"method": "peft", "parameters": {"new_tokens": ["<a>"]}}, [], "lora"),
        ({"method": "full", "parameters": {"new_tokens": ["<a>"]}}, [], "full"),
        ({"task": "chat", "parameters": {"rank": 8}}, [], "lora"),
        ({"parameters": {"layers": "last 2"}}, [], "layers"),
        ({"method": "peft", "parameters": {"layers": "last 2"}}, [], "layers"),
        ({"method": "few-shot", "parameters": {"examples": 4}}, [], "in-context"),
        ({"method": "features", "parameters": {"head": "svm"}}, [], "none"),
        ({"parameters": {"alpha": 8}}, [], "lora"),
        ({"parameters": "lora"}, ["parameters.rank=8"], "lora"),
    ],
)
def test_parameters_without_a_kind_get_the_one_that_is_meant(
    said: dict[str, Any], overrides: list[str], kind: str
) -> None:
    recipe = parse(SHORT | said, overrides=overrides)
    assert recipe.parameters is not None and recipe.parameters.kind == kind


def test_the_kind_of_a_stage_is_that_of_the_recipe() -> None:
    recipe = parse(
        SHORT
        | {
            "parameters": {"kind": "dora", "rank": 4},
            "stages": [{"name": "a", "parameters": {"rank": 8}}, {"name": "b", "parameters": {"layers": "last 1"}}],
        }
    )
    first, second = (stage.parameters for stage in recipe.stages)
    assert isinstance(first, LoRA) and (first.rank, first.dora) == (8, True)
    assert isinstance(second, Layers)


@pytest.mark.parametrize("method", METHODS)
def test_no_settings_are_those_of_the_method(method: str) -> None:
    found = with_kinds({"task": "chat", "method": method, "parameters": {}})["parameters"]["kind"]
    assert found == METHODS[method].choose(parse({"task": "chat", "model": "m"})).kind


@pytest.mark.parametrize(
    ("said", "overrides", "what", "fix"),
    [
        ({"method": "full"}, ["parameters.quantization=int4"], "`quantization` may be of lora", "add `kind: lora`"),
        ({"parameters": {"rank": 8}}, [], "`parameters` has no `kind`: `rank` may be of lora", "add `kind: lora`"),
        ({"method": "peft", "parameters": {"tokens": 8}}, [], "`tokens` may be of prompt", "add `kind: prompt-tuning`"),
        ({"method": "peft", "parameters": {"rnak": 8}}, [], "unknown key `parameters.rnak`", "did you mean `rank`?"),
        ({"stages": [{"parameters": {"tokens": 8}}]}, [], "`stages.0.parameters` has no `kind`", "prompt-tuning"),
    ],
)
def test_settings_of_several_kinds_want_one(said: dict[str, Any], overrides: list[str], what: str, fix: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse(SHORT | said, overrides=overrides)
    assert what in caught.value.what
    assert caught.value.fix is not None and fix in caught.value.fix


@pytest.mark.parametrize(
    ("parameters", "where", "fix"),
    [
        ({"kind": "lora", "rank": 0}, "parameters.rank", "greater than or equal to 1"),
        ({"kind": "hra", "quantization": "int4"}, "parameters", "kind: lora"),
        ({"kind": "layers", "layers": "xx"}, "parameters.layers", "last 4"),
        ({"kind": "layers", "foo": 1}, "parameters.foo", "known keys here: kind, layers, new_tokens"),
        ({"kind": "dora", "rnk": 1}, "parameters.rnk", "did you mean `rank`?"),
        ({"kind": "lora", "targets": 5}, "parameters.targets", "a string"),
    ],
)
def test_a_path_in_an_error_is_a_path_of_the_recipe(parameters: dict[str, Any], where: str, fix: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse(SHORT | {"parameters": parameters})
    assert caught.value.where == where
    assert "more" not in caught.value.what, "branches of a union are no further keys"
    assert caught.value.fix is not None and fix in caught.value.fix


def test_an_override_may_begin_like_an_alias_of_yaml() -> None:
    """The help's own example of a pattern is `*.attention.*`."""
    recipe = parse(SHORT, overrides=["parameters.layers=*.foo.*"])
    assert isinstance(recipe.parameters, Layers) and recipe.parameters.items == ["*.foo.*"]
    with pytest.raises(RecipeError) as caught:
        parse(SHORT, overrides=["data.train=[a"])
    assert caught.value.fix is not None and "bracket" in caught.value.fix
