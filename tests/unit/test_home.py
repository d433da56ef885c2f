"""Files and models of a recipe, looked at from another folder than that in which the run was made."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith import disk, home
from tunesmith.recipe import Recipe
from tunesmith.runs import Run

REWARDS = [
    {"kind": "python", "function": "rewards.py:score"},
    {"kind": "python", "function": "lost.py:score"},
    {"kind": "run", "run": "my-judge"},
    {"kind": "grader", "grader": {"type": "python", "source": "...", "model": "rewards.py"}},
]


def test_rewards_and_runs_by_name_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_in, other = tmp_path / "home", tmp_path / "other"
    recipe = Recipe.model_validate(
        {
            "task": "chat",
            "method": "distillation",
            "model": "my-run",  # a base model is no name below `runs/`
            "training": {"distillation": {"teacher": "my-run"}, "rewards": REWARDS},
        }
    )
    for name in ("my-judge", "my-run", "tuned"):
        disk.write_text(made_in / "runs" / name / "recipe.yaml", recipe.to_yaml())
    disk.write_json(made_in / "runs" / "tuned" / "environment.json", {"folder": str(made_in)})
    disk.write_text(made_in / "rewards.py", "")
    (made_in / "my-judge").mkdir()  # no run
    other.mkdir()
    monkeypatch.chdir(other)
    found = home.recipe_from_here(Run(made_in / "runs" / "tuned"))
    assert found.model == "my-run"
    assert found.training.distillation.teacher == str(made_in / "runs" / "my-run")
    mine, lost, judge, grader = found.training.rewards
    assert mine.function == f"{made_in / 'rewards.py'}:score" and lost.function == "lost.py:score"
    assert judge.run == str(made_in / "runs" / "my-judge")
    assert grader.grader == REWARDS[-1]["grader"]
