"""Every recipe that ships runs, with tiny models in the place of the catalog's, on some rows of its own data."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from tunesmith import pipeline, recipe_file, strict_yaml

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
TOOLS_TEMPLATE = ROOT / "tests" / "fixtures" / "chat_templates" / "qwen-2.5.jinja"
ELSEWHERE = {"hosted.yaml": "it needs a server: tests/contract/test_hosted_flow.py walks that way"}


def shrunk(tree: Any, models: dict[str, str]) -> Any:
    """The same recipe with other models, two updates a stage, few rows and short answers."""
    if isinstance(tree, list):
        return [shrunk(item, models) for item in tree]
    if not isinstance(tree, dict):
        return models.get(tree, tree) if isinstance(tree, str) else tree
    small = {key: shrunk(value, models) for key, value in tree.items()}
    if "train" in small:
        small |= {"max_rows": 80, "drop_bad": True}
        small.pop("max_length", None)
    for name, change in SMALLER.items():
        if name in small:
            small[name] |= change
    return small


LONGEST = 8192
"""Tokens of the longest function, a byte each."""


def with_room(model: Path, folder: Path) -> Path:
    """The same decoder, whose rotary positions have no end, for long texts."""
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": LONGEST}), encoding="utf-8")
    return folder


SMALLER: dict[str, dict[str, Any]] = {
    "training": {"max_steps": 2, "batch_size": 4},
    "rollouts": {"max_new_tokens": 4},
    "generation": {"max_new_tokens": 4},
    "student": {"layers": 1},
    "quantize": {"budget": 1.0},
}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_a_shipped_recipe_runs(
    path: Path, tiny_encoder: Path, tiny_decoder: Path, tiny_t5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if path.name in ELSEWHERE:
        pytest.skip(ELSEWHERE[path.name])
    monkeypatch.chdir(ROOT)  # some name files beside them
    decoder = str(with_room(tiny_decoder, tmp_path / "decoder"))
    models = {
        "minilm-l6": str(tiny_encoder),
        "smollm2-135m-instruct": decoder,
        "Qwen/Qwen2.5-0.5B-Instruct": decoder,
        "google-t5/t5-small": str(tiny_t5),
    }
    if path.name == "rlhf.yaml":
        models["minilm-l6"] = decoder  # its judge reads the same texts, for which the encoder is too short
    if path.name == "tools.yaml":
        shutil.copy(TOOLS_TEMPLATE, tmp_path / "decoder" / "chat_template.jinja")
    if path.name == "transfer-tasks.yaml":
        first = small(ROOT / "recipes" / "regression.yaml", models, decoder)
        models["runs/films"] = str(pipeline.run(recipe_file.parse(first), run_dir=tmp_path / "first").path)
    run = pipeline.run(recipe_file.parse(small(path, models, decoder)), run_dir=tmp_path / "run")
    assert run.status == "finished" and run.report().is_file()
    assert run.metrics and all(math.isfinite(interval.value) for interval in run.metrics.values())
    assert any((run.path / "model").iterdir())


def small(path: Path, models: dict[str, str], decoder: str) -> Any:
    """A shipped recipe that takes seconds."""
    tree = shrunk(strict_yaml.load(path.read_text(encoding="utf-8")), models)
    if tree["model"] == decoder:
        tree["data"]["max_length"] = LONGEST if tree["task"] != "language-modeling" else 256
    tree.setdefault("training", {}).update(SMALLER["training"])
    tree["evaluate"] = {"generation": SMALLER["generation"], **tree.get("evaluate", {}), "limit": 10, "resamples": 100}
    return tree
