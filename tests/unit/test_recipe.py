"""The recipe: what it accepts, what it refuses, and how well it says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.errors import RecipeError
from tunesmith.methods import METHODS, method_meant
from tunesmith.parameters.kinds import KINDS
from tunesmith.parameters.settings import SHORT_FORMS
from tunesmith.recipe import Layers, LoRA, ObjectiveName, Recipe
from tunesmith.recipe_file import load, override, parse

SHORT = {"task": "text-classification", "model": "minilm-l6", "data": {"train": "reviews.csv"}}


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_one_file_is_a_list_of_one() -> None:
    recipe = parse(SHORT)
    assert recipe.data.train == ["reviews.csv"]


def test_a_share_given_as_text_is_a_number_and_a_file_name_is_a_list() -> None:
    recipe = parse(SHORT, overrides=['data.validation="0.05"', "data.test=held_out.csv"])
    assert recipe.data.validation == 0.05
    assert recipe.data.test == ["held_out.csv"]


def test_a_share_outside_its_range_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"between 0 and 0\.5"):
        parse(SHORT, overrides=["data.test=0.6"])


def test_an_unknown_key_names_its_line_and_its_neighbour(tmp_path: Path) -> None:
    path = written(tmp_path, "task: text-classification\nmodel: m\ntraining:\n  epochs: 1\n  learnin_rate: 1\n")
    with pytest.raises(RecipeError) as caught:
        load(path)
    assert caught.value.where == f"{path}:5"
    assert "training.learnin_rate" in caught.value.what
    assert caught.value.fix == "did you mean `learning_rate`?"


def test_an_unknown_key_below_a_list_is_found_too(tmp_path: Path) -> None:
    path = written(tmp_path, "task: chat\nmodel: m\nstages:\n  - name: a\n  - name: b\n    trainin: {epochs: 1}\n")
    with pytest.raises(RecipeError) as caught:
        load(path)
    assert caught.value.where == f"{path}:6"
    assert caught.value.fix == "did you mean `training`?"


def test_broken_yaml_names_its_line(tmp_path: Path) -> None:
    path = written(tmp_path, "task: chat\nmodel: [m\ndata: {}\n")
    with pytest.raises(RecipeError) as caught:
        load(path)
    assert caught.value.where is not None and caught.value.where.startswith(f"{path}:")
    assert "not valid YAML" in caught.value.what


@pytest.mark.parametrize("text", ["", "- task\n- model\n", "just words\n"])
def test_what_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(RecipeError, match="a recipe is a mapping"):
        load(written(tmp_path, text))


def test_a_missing_file_is_a_recipe_error(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no recipe file"):
        load(tmp_path / "none.yaml")


def test_a_missing_key_says_which() -> None:
    with pytest.raises(RecipeError) as caught:
        parse({"task": "chat"})
    assert "`model` is missing" in caught.value.what


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"task": "chat", "objective": "classify"}, "needs labels"),
        ({"task": "chat", "method": "features"}, "no labels"),
        ({"task": "chat", "parameters": {"kind": "head"}}, "needs a task with a head"),
        ({"objective": "supervised", "parameters": {"kind": "head"}}, "trains a classification head"),
        ({"parameters": {"kind": "none"}}, "belong together"),
        ({"stages": [{"name": "fit", "parameters": {"kind": "none"}}]}, "belong together"),
        ({"task": "chat", "stages": [{"parameters": {"kind": "none"}}, {"name": "b"}]}, "fits a classifier"),
        ({"method": "features", "parameters": {"kind": "lora"}}, "belong together"),
        ({"method": "features", "stages": [{"name": "one"}, {"name": "two"}]}, "has no stages"),
        ({"training": {"batch_size": 8, "batch_tokens": 512}}, "not both"),
        ({"task": "language-modeling", "parameters": "in-context"}, "shows questions and answers"),
        ({"method": "few-shot", "parameters": "prompt-tuning"}, "cannot become part of the next stage"),
        (
            {"task": "language-modeling", "objective": "masked-lm", "parameters": "prompt-tuning"},
            "the text's own places",
        ),
        (
            {
                "task": "text-generation",
                "objective": "ppo",
                "parameters": {"kind": "prefix-tuning"},
                "training": {"ppo": {"value_trunk": "separate"}},
            },
            "would read and change too",
        ),
        ({"parameters": "prompt-tuning", "training": {"recompute": "on"}}, "cannot be recomputed"),
        ({"training": {"recompute": "on", "compile": "on"}}, "compiled layers cannot recompute"),
    ],
)
def test_impossible_pairs_are_refused_with_the_reason(change: dict, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        parse(SHORT | change)


def test_the_remedy_of_an_impossible_pair_is_its_fix() -> None:
    with pytest.raises(RecipeError) as caught:
        parse(SHORT | {"task": "chat", "objective": "classify"})
    assert caught.value.fix is not None and "objective: supervised" in caught.value.fix


@pytest.mark.parametrize(
    ("written_as", "kind", "shots", "model"),
    [
        ("base", "base", None, None),
        ({"few-shot": 5}, "few-shot", 5, None),
        ("few-shot: 5", "few-shot", 5, None),
        ({"larger": "smollm2-135m-instruct"}, "larger", None, "smollm2-135m-instruct"),
    ],
)
def test_short_forms_of_baselines(written_as: object, kind: str, shots: int | None, model: str | None) -> None:
    [baseline] = parse(SHORT | {"evaluate": {"baselines": [written_as]}}).evaluate.baselines
    assert (baseline.kind, baseline.shots, baseline.model) == (kind, shots, model)


def test_a_mistyped_baseline_with_a_value_is_told_the_nearest() -> None:
    with pytest.raises(RecipeError, match="cannot be 'few-shots'") as caught:
        parse(SHORT | {"evaluate": {"baselines": [{"few-shots": 5}]}})
    assert caught.value.fix is not None and caught.value.fix.startswith("did you mean `few-shot`?")


@pytest.mark.parametrize("bad", ["larger", {"base": 3}, {"few-shot": 5, "larger": "m"}, "nearest"])
def test_malformed_baselines_are_refused(bad: object) -> None:
    with pytest.raises(RecipeError):
        parse(SHORT | {"evaluate": {"baselines": [bad]}})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-4", 2e-4),
        ("1", 1),
        ("true", True),
        ("[a, b]", ["a", "b"]),
        ("last 2", "last 2"),
        ("null", None),
        ("", None),
    ],
)
def test_the_value_of_an_override_is_yaml(text: str, value: object) -> None:
    assert override({}, f"a.b={text}") == {"a": {"b": value}}


def test_an_override_leaves_the_given_tree_alone() -> None:
    tree = {"training": {"epochs": 1}}
    assert override(tree, "training.epochs=2") == {"training": {"epochs": 2}}
    assert tree == {"training": {"epochs": 1}}


@pytest.mark.parametrize("item", ["training.epochs", "=1", "model.name=x"])
def test_malformed_overrides_are_refused(item: str) -> None:
    with pytest.raises(RecipeError):
        override({"model": "m"}, item)


def test_the_last_override_wins() -> None:
    assert parse(SHORT, overrides=["training.seed=1", "training.seed=2"]).training.seed == 2


@given(
    epochs=st.floats(min_value=0.1, max_value=100),
    rank=st.integers(min_value=1, max_value=512),
    shots=st.integers(min_value=1, max_value=100),
    column=st.text(st.characters(categories=["L", "N", "P", "S", "Zs"]), min_size=1),
)
def test_a_recipe_survives_its_own_yaml(epochs: float, rank: int, shots: int, column: str) -> None:
    recipe = parse(
        {
            "task": "text-classification",
            "model": "m",
            "data": {"train": ["a", "b"], "columns": {"text": column}},
            "training": {"epochs": epochs},
            "parameters": {"kind": "lora", "rank": rank},
            "evaluate": {"baselines": ["base", {"few-shot": shots}]},
        }
    )
    assert parse(yaml.safe_load(recipe.to_yaml())) == recipe


def test_a_null_in_the_place_of_another_default_survives() -> None:
    tree = SHORT | {"training": {"ppo": {"stop_at_kl": None}, "max_steps": None}, "evaluate": {"general": None}}
    recipe = parse(tree)
    written = yaml.safe_load(recipe.to_yaml())
    assert parse(written) == recipe
    assert written["training"]["ppo"]["stop_at_kl"] is None and written["evaluate"]["general"] is None
    assert "max_steps" not in written["training"]


@pytest.mark.parametrize("column", ["a\x85b", "\x85", "a\u2028", "\u2029a", "a\ufeff", "\x7f"])
def test_column_names_with_strange_breaks_survive(column: str) -> None:
    recipe = parse({"task": "text-classification", "model": "m", "data": {"train": "a", "columns": {"text": column}}})
    assert yaml.safe_load(recipe.to_yaml())["data"]["columns"]["text"] == column


def test_a_method_fills_in_but_never_overrules() -> None:
    open_choice = parse(SHORT | {"method": "peft"}).resolved()
    assert isinstance(open_choice.stages[0].parameters, LoRA)
    own_choice = parse(SHORT | {"method": "peft", "parameters": {"kind": "layers", "layers": "last 3"}}).resolved()
    assert isinstance(own_choice.stages[0].parameters, Layers)
    assert own_choice.stages[0].parameters.items == ["last 3"]


def test_a_stage_takes_what_it_leaves_out_from_the_top() -> None:
    recipe = parse(
        SHORT
        | {
            "training": {"seed": 7, "epochs": 2},
            "stages": [{"name": "first"}, {"name": "second", "training": {"epochs": 5}}],
        }
    ).resolved()
    first, second = (stage.training for stage in recipe.stages)
    assert first is not None and (first.seed, first.epochs) == (7, 2)
    assert second is not None and (second.seed, second.epochs) == (7, 5)


def test_stages_may_teach_other_tasks_and_the_last_is_what_the_model_is_for() -> None:
    own = {"task": "text-generation", "data": {"train": "manuals.jsonl"}}
    first_own = parse(SHORT | {"stages": [{"name": "a", **own}, {"name": "b"}]}).resolved()
    assert first_own.task == SHORT["task"]
    assert first_own.of_stage(first_own.stages[0]).data.train == ["manuals.jsonl"]
    last_own = parse(SHORT | {"stages": [{"name": "a"}, {"name": "b", **own}]}).resolved()
    assert (last_own.task, last_own.data.train) == ("text-generation", ["manuals.jsonl"])
    assert last_own.of_stage(last_own.stages[0]).task == SHORT["task"]
    assert last_own.resolved() == last_own


def test_the_schema_refuses_unknown_keys_everywhere() -> None:
    schema = Recipe.model_json_schema()
    assert schema["additionalProperties"] is False
    assert all(part["additionalProperties"] is False for part in schema["$defs"].values() if "properties" in part)


@pytest.mark.parametrize(("written", "read"), [("off", "off"), ("on", "on"), ("'off'", "off"), ("auto", "auto")])
def test_a_bare_off_is_no_false(written: str, read: str, tmp_path: Path) -> None:
    """YAML 1.1 reads `compile: off` as false; our own hints say to write it."""
    path = tmp_path / "recipe.yaml"
    path.write_text(f"task: text-classification\nmodel: m\ntraining: {{compile: {written}}}\n", encoding="utf-8")
    recipe = load(path)
    assert recipe.training.compile == read
    path.write_text(recipe.to_yaml(), encoding="utf-8")
    assert load(path) == recipe


@pytest.mark.parametrize(
    ("item", "what", "where", "fix"),
    [
        ("epochs=1", "unknown key `epochs`", "--set epochs", "did you mean `training.epochs`?"),
        ("trainin.epochs=1", "unknown key `trainin`", "--set trainin", "did you mean `training`?"),
        ("method=pef", "`method` cannot be 'pef'", "--set method", "did you mean `peft`?"),
        ("parameters.kind=lroa", "`parameters.kind` cannot be 'lroa'", "--set parameters.kind", "did you mean `lora`?"),
        ("training.schedule=xyz", "`training.schedule` cannot be 'xyz'", "--set training.schedule", "choices: linear"),
        ("training.epochs=abc", "'abc', but it should be a valid number", "--set training.epochs", "use a number"),
        ("training.max_steps=1h", "'1h', but it should be a valid integer", "--set training.max_steps", "use a"),
        ("data=r.csv", "`data` is a mapping of keys to values", "--set data", "--set data.train=r.csv"),
        ("data=[a.csv, b.csv]", "`data` is a mapping", "--set data", "--set 'data.train=[a.csv, b.csv]'"),
        ("stages=[{data: r.csv}]", "`stages.0.data` is a", "--set stages.0.data", "write `data: {train: r.csv}`"),
        (
            "stages=[fit]",
            "`stages.0` is a mapping",
            "--set stages.0",
            "write `- {KEY: VALUE}`; known keys there: data,",
        ),
        ("training=3", "`training` is a mapping of keys", "--set training", "write `training: {KEY: VALUE}`; known"),
        (
            "method=lora",
            "`method` cannot be 'lora'",
            "--set method",
            "`lora` is a kind of parameters: write `method: p",
        ),
        ("method=dpo", "`method` cannot be 'dpo'", "--set method", "`dpo` is an objective: write `method: preference`"),
    ],
)
def test_a_wrong_value_of_an_override_is_named_with_the_nearest(
    item: str, what: str, where: str, fix: str, tmp_path: Path
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("task: text-classification\nmodel: x\ntraining: {seed: 1}\nparameters: {kind: full}\n")
    with pytest.raises(RecipeError) as caught:
        load(path, overrides=[item])
    assert what in caught.value.what
    assert caught.value.where == where, "not a line of the file, which is innocent"
    assert (caught.value.fix or "").startswith(fix) and "unable to" not in str(caught.value)


@pytest.mark.parametrize(
    ("files", "fix"), [("r.csv", "data: {train: r.csv}"), (["a.csv", "b.csv"], "data: {train: [a.csv, b.csv]}")]
)
def test_files_in_the_place_of_data_are_to_be_trained_on(files: str | list[str], fix: str, tmp_path: Path) -> None:
    path = written(tmp_path, f"task: text-classification\nmodel: m\ndata: {json.dumps(files)}\n")
    with pytest.raises(RecipeError) as caught:
        load(path)
    assert caught.value.where == f"{path}:3" and caught.value.fix == f"write `{fix}`"
    path.write_text(f"task: text-classification\nmodel: m\n{fix}\n", encoding="utf-8")
    assert load(path).data.train == ([files] if isinstance(files, str) else files)


def test_what_is_written_for_a_method_can_be_written_so() -> None:
    """For each kind of parameters and each objective that is no method itself."""
    names = [*KINDS, *SHORT_FORMS, *get_args(ObjectiveName)]
    for name in set(names).difference(METHODS):
        said = method_meant(name)
        assert said is not None, name
        assert "parameters" not in said or f"`parameters: {name}`" in said
        method = said.partition("`method: ")[2].partition("`")[0]
        assert method in METHODS or f"`objective: {name}`" in said
        if "kind of parameters" in said:
            task = "text-generation" if method in ("peft", "few-shot") else "text-classification"
            assert parse({"task": task, "model": "m", "method": method, "parameters": name}).resolved()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_beams": 4, "temperature": 0.7}, "give one of them"),
        ({"top_p": 0.9}, "above 0"),
        ({"top_k": 5}, "above 0"),
        ({"length_penalty": 2.0}, "above 1"),
    ],
)
def test_ways_of_writing_that_exclude_each_other_are_refused(settings: dict, words: str) -> None:
    tree = {"task": "text-generation", "model": "m", "evaluate": {"generation": settings}}
    with pytest.raises(RecipeError, match=words):
        parse(tree)
