"""Every refusal of a recipe says what to do instead, and where: at the line of the key where the recipe is a file."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import tunesmith
from tunesmith.errors import RecipeError
from tunesmith.recipe_file import line_numbers, load, parse
from tunesmith.strict import Refusal

SOURCE = Path(tunesmith.__file__).parent
SHORT: dict[str, Any] = {"task": "text-classification", "model": "m", "data": {"train": "reviews.csv"}}
TEACHER = {"distillation": {"teacher": "runs/t"}}
AWARE = {"quantization_aware": "int8"}
PAIRS = {"data": {"train": "a", "preferences": "b"}}
LORA_DORA = {"kind": "lora", "dora": True}

BY_RULES: list[tuple[dict[str, Any], str]] = [
    ({"task": "chat", "objective": "causal-lm"}, "objective"),
    ({"task": "language-modeling", "objective": "classify"}, "objective"),
    ({"objective": "kto"}, "objective"),
    ({"task": "feedback", "objective": "dpo"}, "objective"),
    ({"task": "chat", "objective": "classify"}, "objective"),
    ({"task": "chat", "stages": [{"name": "a"}, {"name": "b", "objective": "focal"}]}, "stages.1.objective"),
    ({"objective": "supervised", "training": {"class_weights": "balanced"}}, "training.class_weights"),
    ({"objective": "supervised", "parameters": {"kind": "head"}}, "parameters.kind"),
    ({"task": "chat", "parameters": {"kind": "head"}}, "parameters.kind"),
    ({"task": "chat", "method": "transfer", "parameters": "head"}, "parameters.kind"),
    ({"method": "few-shot", "parameters": "prompt-tuning"}, "parameters.kind"),
    ({"task": "language-modeling", "objective": "masked-lm", "parameters": "prompt-tuning"}, "parameters.kind"),
    ({"parameters": "prompt-tuning", "training": {"recompute": "on"}}, "training.recompute"),
    (
        {
            "task": "text-generation",
            "stages": [
                {
                    "objective": "ppo",
                    "parameters": {"kind": "prefix-tuning"},
                    "training": {"ppo": {"value_trunk": "separate"}},
                }
            ],
        },
        "stages.0.training.ppo.value_trunk",
    ),
    ({"parameters": {"kind": "none"}}, "parameters.kind"),
    ({"method": "features", "parameters": {"kind": "lora"}}, "parameters.kind"),
    (
        {"task": "text-regression", "method": "features", "parameters": {"kind": "none", "head": "svm"}},
        "parameters.head",
    ),
    (
        {
            "stages": [
                {"name": "fit", "parameters": {"kind": "none", "head": "knn"}},
                {"name": "b", "parameters": "full"},
            ]
        },
        "stages.0.parameters.head",
    ),
    (
        {"task": "image-classification", "method": "features", "parameters": {"kind": "none", "layer": 1}},
        "parameters.layer",
    ),
    ({"task": "chat", "stages": [{"parameters": {"kind": "none"}}, {"name": "b"}]}, "stages.0.parameters.kind"),
    ({"task": "chat", "objective": "contrastive"}, "objective"),
    ({"task": "chat", "method": "few-shot"}, "method"),
    ({"objective": "contrastive", "parameters": {"kind": "head"}}, "parameters.kind"),
    ({"parameters": "in-context", "stages": [{"name": "a"}, {"name": "b"}]}, "parameters.kind"),
    ({"task": "language-modeling", "parameters": "in-context"}, "parameters.kind"),
    ({"parameters": "in-context", "objective": "classify"}, "parameters.kind"),
    ({"task": "chat", "method": "features"}, "method"),
    ({"method": "features", "stages": [{"name": "one"}, {"name": "two"}]}, "stages"),
    ({"task": "text-regression", "objective": "distill", "training": TEACHER}, "task"),
    ({"method": "distillation"}, "training.distillation.teacher"),
    (
        {"method": "distillation", "training": {"distillation": {"teacher": "t", "answers": "teacher"}}},
        "training.distillation.answers",
    ),
    (
        {"task": "chat", "method": "distillation", "training": {"distillation": {"teacher": "t", "unlabelled": ["a"]}}},
        "training.distillation.unlabelled",
    ),
    (
        {"task": "chat", "method": "distillation", "training": {"distillation": {"teacher": "t", "hidden_weight": 1}}},
        "training.distillation.hidden_weight",
    ),
    ({"method": "distillation", "training": TEACHER | {"class_weights": "balanced"}}, "training.class_weights"),
    (
        {
            "task": "chat",
            "method": "distillation",
            "training": {"distillation": {"teacher": "t", "answers": "teacher", "written": {"keep": "reward"}}},
        },
        "training.distillation.written.keep",
    ),
    ({"method": "distillation", "training": TEACHER, "sequence": {"replay": 0.1}}, "sequence.replay"),
    ({"parameters": {"kind": "ia3"}, "training": AWARE}, "training.quantization_aware"),
    ({"parameters": {"kind": "lora", "quantization": "int8"}, "training": AWARE}, "parameters.quantization"),
    ({"parameters": LORA_DORA, "training": AWARE}, "parameters.dora"),
    ({"parameters": {"kind": "lora", "dropout": 0.1}, "training": AWARE}, "parameters.dropout"),
    ({"objective": "contrastive", "training": AWARE}, "training.quantization_aware"),
    ({"parameters": "lora", "sequence": {"adapters": "separate"}, "training": AWARE}, "training.quantization_aware"),
    ({"training": AWARE, "quantize": "int4-weights"}, "training.quantization_aware"),
    ({"task": "image-classification", "student": {"layers": 2}}, "student"),
    ({"training": TEACHER}, "training.distillation.teacher"),
    ({"evaluate": {"baselines": ["teacher"]}}, "evaluate.baselines"),
    ({"hosted": {}}, "hosted"),
    ({"task": "text-regression", "method": "hosted"}, "task"),
    ({"method": "hosted", "parameters": "lora"}, "parameters"),
    ({"method": "hosted", "training": {"epochs": 1}}, "training.epochs"),
    ({"method": "hosted", "quantize": "int8"}, "quantize"),
    ({"task": "prompts", "method": "hosted"}, "task"),
    ({"training": {"augment": ["flip"]}}, "training.augment"),
    ({"task": "image-classification", "method": "peft"}, "method"),
    ({"task": "image-classification", "parameters": {"kind": "lora"}}, "parameters.kind"),
    ({"task": "image-classification", "objective": "contrastive"}, "objective"),
    ({"task": "image-classification", "quantize": "int8"}, "quantize"),
    ({"method": "preference"}, "method"),
    ({"task": "chat", "method": "reward"}, "method"),
    ({"method": "self-supervised"}, "method"),
    ({"objective": "dpo"}, "objective"),
    ({"task": "chat", "objective": "reward"}, "objective"),
    ({"method": "domain"}, "data.corpus"),
    ({"evaluate": {"baselines": ["without-domain"]}}, "evaluate.baselines"),
    ({"data": {"train": "a", "corpus": "b"}}, "data.corpus"),
    (
        {
            "task": "text-generation",
            "sequence": {"replay": 0.1},
            "stages": [{"name": "a", "task": "preference"}, {"name": "b"}],
        },
        "sequence.replay",
    ),
    ({"parameters": "lora", "sequence": {"hold": "l2"}}, "sequence.hold"),
    ({"method": "sequential"}, "stages"),
    ({"sequence": {"adapters": "separate"}}, "sequence.adapters"),
    ({"parameters": "lora", "sequence": {"adapters": "separate", "replay": 0.1}}, "sequence.replay"),
    ({"parameters": "lora", "sequence": {"adapters": "separate", "hold": "l2"}}, "sequence.hold"),
    ({"parameters": LORA_DORA, "sequence": {"adapters": "ties"}}, "parameters.dora"),
    ({"task": "prompts"}, "task"),
    ({"stages": [{"name": "a", "model": "x"}, {"name": "b"}]}, "stages.0.model"),
    ({"task": "text-generation", "method": "rlhf", "sequence": {"replay": 0.1}} | PAIRS, "sequence"),
    ({"objective": "grpo"}, "task"),
    (
        {
            "task": "text-generation",
            "objective": "grpo",
            "training": {"rewards": [{"kind": "stage", "stage": "x"}]},
        },
        "training.rewards",
    ),
    (
        {"task": "text-generation", "method": "rlhf", "evaluate": {"judge": {"kind": "stage", "stage": "x"}}} | PAIRS,
        "evaluate.judge",
    ),
    ({"evaluate": {"judge": "runs/x"}}, "evaluate.judge"),
    (PAIRS, "data.preferences"),
    ({"task": "prompts", "method": "rlhf"} | PAIRS, "task"),
    ({"method": "rlhf"} | PAIRS, "task"),
    ({"task": "text-generation", "method": "rlhf", "stages": [{"name": "x"}]} | PAIRS, "stages"),
    ({"task": "text-generation", "method": "rlhf"}, "data.preferences"),
]
"""What is changed in a short recipe -> the key that the refusal is about."""

BY_PARTS: list[dict[str, Any]] = [
    *(
        {"parameters": parameters}
        for parameters in (
            {"kind": "layers", "layers": []},
            {"kind": "layers", "layers": "third"},
            {"kind": "layers", "layers": "new tokens"},
            {"kind": "lora", "quantizer": "bitsandbytes"},
            {"kind": "ia3", "quantizer": "bitsandbytes", "quantization": "int8"},
            {"kind": "lora", "init": "pissa", "quantization": "int4"},
            {"kind": "lora", "init": "loftq"},
            {"kind": "lora", "dora": True, "quantization": "int4"},
            {"kind": "lora", "rank_pattern": {"q": 0}},
            {"kind": "hra", "quantization": "int4"},
            {"kind": "full", "quantization": "int4"},
        )
    ),
    *(
        {"training": {"distillation": distillation}}
        for distillation in (
            {"written": {"keep": "agreement"}},
            {"written": {"keep": "reward", "per_prompt": 2, "temperature": 0}},
            {"written": {"per_prompt": 2}},
            {"answers": "student", "label_weight": 0.5},
            {"teacher": "https://teacher/v1"},
            {"teacher": "https://teacher/v1", "teacher_model": "m"},
            {"cache": "sampled", "divergence": "reverse-kl"},
            {"cache": "top-k", "answers": "student"},
            {"label_weight": 1},
        )
    ),
    {"training": {"rewards": [{"kind": "regex"}]}},
    {"training": {"batch_size": 8, "batch_tokens": 512}},
    {"training": {"recompute": "on", "compile": "on"}},
    {"evaluate": {"baselines": [{"base": None, "few-shot": 2}]}},
    {"evaluate": {"baselines": [{"base": 3}]}},
    {"evaluate": {"baselines": ["larger"]}},
    {"evaluate": {"generation": {"num_beams": 4, "temperature": 0.7}}},
    {"evaluate": {"generation": {"top_p": 0.9}}},
    {"evaluate": {"generation": {"length_penalty": 2.0}}},
    {"student": {}},
    {"data": {"train": "a", "test": 0.6}},
]
"""The same where a part of the recipe is at odds with itself."""


def refused(change: dict[str, Any]) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        parse(SHORT | change)
    return caught.value


@pytest.mark.parametrize(("change", "key"), BY_RULES, ids=[str(change) for change, _ in BY_RULES])
def test_a_rule_names_the_remedy_and_the_key(change: dict[str, Any], key: str, tmp_path: Path) -> None:
    error = refused(change)
    assert error.fix and not error.fix.endswith("."), error.what
    assert ": use " not in error.what and error.where == key
    file = tmp_path / "recipe.yaml"
    text = yaml.safe_dump(SHORT | change, sort_keys=False)
    file.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load(file)
    line = line_of(text, key)
    assert caught.value.where == (f"{file}:{line}" if line else str(file))
    assert (caught.value.what, caught.value.fix) == (error.what, error.fix)


def line_of(text: str, key: str) -> int | None:
    """Of the key, or of the section that should hold it."""
    lines, path = line_numbers(yaml.compose(text)), tuple(key.split("."))
    return next((lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in lines), None)


@pytest.mark.parametrize("change", BY_PARTS, ids=str)
def test_a_part_names_the_remedy_and_its_own_key(change: dict[str, Any]) -> None:
    error = refused(change)
    assert error.fix and error.where and error.where.startswith(next(iter(change)))


def test_an_override_that_is_refused_is_the_place(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(SHORT), encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load(file, overrides=["parameters.kind=none"])
    assert caught.value.where == "--set parameters.kind" and caught.value.fix == "give both or neither"


def test_a_stage_is_refused_at_its_own_key_or_at_the_one_that_it_shares() -> None:
    stages = [{"name": "a"}, {"name": "b", "training": {"epochs": 1}}]
    shared = refused({"parameters": "prompt-tuning", "training": {"recompute": "on"}, "stages": stages[1:]})
    assert shared.where == "training.recompute"
    own = {"training": {"recompute": "on"}, "parameters": "prompt-tuning"}
    assert refused({"stages": [{"name": "only", **own}]}).where == "stages.0.training.recompute"


WEIGHTED = {"training": {"class_weights": "balanced"}}
RLHF: dict[str, Any] = {"task": "text-generation", "method": "rlhf", **PAIRS}


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"stages": [{"name": "ppo", "training": AWARE}]}, "stages.0.training.quantization_aware"),
        (
            {"stages": [{"name": "reward", **WEIGHTED}, {"name": "ppo", **WEIGHTED}]},
            "stages.0.training.class_weights",
        ),
        ({"stages": [{"name": "reward"}, {"name": "ppo", **WEIGHTED}]}, "stages.1.training.class_weights"),
        ({**WEIGHTED, "stages": [{"name": "ppo", **WEIGHTED}]}, "training.class_weights"),
    ],
)
def test_a_stage_that_the_method_moves_is_refused_where_the_file_has_it(
    change: dict[str, Any], key: str, tmp_path: Path
) -> None:
    assert refused(RLHF | change).where == key
    file = tmp_path / "recipe.yaml"
    text = yaml.safe_dump(SHORT | RLHF | change, sort_keys=False)
    file.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load(file)
    assert caught.value.where == f"{file}:{line_of(text, key)}"


def test_each_refusal_is_provoked_above(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new one wants a line in one of the two tables."""
    raised: set[tuple[str, int]] = set()
    real = Refusal.__init__

    def remember(self: Refusal, what: str, *, fix: str, key: str = "") -> None:
        frame = sys._getframe(1)
        raised.add((frame.f_code.co_filename, frame.f_lineno))
        real(self, what, fix=fix, key=key)

    monkeypatch.setattr(Refusal, "__init__", remember)
    for change in (*(change for change, _ in BY_RULES), *BY_PARTS):
        refused(change)
    unprovoked = [
        f"{path.relative_to(SOURCE)}:{call.lineno}"
        for path in (*SOURCE.glob("refusals/*.py"), *SOURCE.glob("*/settings.py"))
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "Refusal"
        if not any(file == str(path) and call.lineno <= line <= (call.end_lineno or 0) for file, line in raised)
    ]
    assert unprovoked == []
