"""RLHF as three stages of one run, on tiny models: demonstrations, a judge from pairs, PPO."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import tiny
import tunesmith
from conftest import write_jsonl
from tunesmith import pipeline
from tunesmith.errors import RecipeError
from tunesmith.recipe import Recipe
from tunesmith.recipe_file import parse

GOOD, BAD = ["great", "lovely", "fine"], ["awful", "dull", "bad"]


@pytest.fixture
def data(tmp_path: Path) -> dict[str, str]:
    shown = [
        {"prompt": f"what is the film {n} and the plot {n % 7}", "completion": f"the film is {(GOOD + BAD)[n % 6]}"}
        for n in range(60)
    ]
    pairs = [
        {"chosen": f"the film is {GOOD[n % 3]} {n}", "rejected": f"the film is {BAD[n % 3]} {n % 9}"} for n in range(80)
    ]
    return {
        "train": str(write_jsonl(tmp_path / "shown.jsonl", shown)),
        "preferences": str(write_jsonl(tmp_path / "pairs.jsonl", pairs)),
    }


def recipe(files: dict[str, str], decoder: Path, encoder: Path, **more: Any) -> Recipe:
    rollouts = {"max_new_tokens": 6, "validation_prompts": 4}
    stages = [
        {"name": "sft", "training": {"epochs": 2, "learning_rate": 1e-2}},
        {"name": "reward", "model": str(encoder), "training": {"epochs": 3, "learning_rate": 4e-3}},
        {"name": "ppo", "training": {"max_steps": 3, "checkpoint_steps": 1, "batch_size": 8, "rollouts": rollouts}},
    ]
    evaluate = {"baselines": ["base"], "resamples": 200}
    tree = {"task": "text-generation", "model": str(decoder), "method": "rlhf", "data": files, "precision": "fp32"}
    return parse(tree | {"stages": stages, "evaluate": evaluate} | more)


def test_three_stages_of_one_run(data: dict[str, str], tiny_decoder: Path, tiny_encoder: Path, tmp_path: Path) -> None:
    pairs = {"train": data["preferences"], "test": 0.2}
    judge = parse({"task": "preference", "model": str(tiny_encoder), "method": "reward", "data": pairs})
    second = pipeline.run(
        judge.model_copy(update={"evaluate": judge.evaluate.model_copy(update={"baselines": []})}),
        run_dir=tmp_path / "judge",
    )
    chosen = recipe(data, tiny_decoder, tiny_encoder, evaluate={"baselines": ["base"], "judge": str(second.path)})
    run = pipeline.run(chosen, run_dir=tmp_path / "run")
    found = run.summary()["reinforcement"]
    assert list(found["systems"]) == ["base", "sft", "tuned"]
    for standing in found["systems"].values():
        assert standing["reward"]["low"] <= standing["reward"]["value"] <= standing["reward"]["high"]
        assert "judge" in standing
    assert "beaten" not in found["systems"]["tuned"] and 0 <= found["systems"]["sft"]["beaten_by_judge"]["value"] <= 1
    assert found["kl"]["low"] <= found["kl"]["value"] <= found["kl"]["high"]
    assert run.metrics["reward"].value == found["systems"]["tuned"]["reward"]["value"]
    assert all(len(sample) == 4 for sample in run.summary()["side_by_side"])
    judged = run.summary()["stage_reward"]
    assert judged["metrics"]["pair_accuracy"]["value"] > 0.9 and "ece" in judged["metrics"]
    assert sum(band["pairs"] for band in judged["by_length"]) == judged["pairs"]
    page = run.report().read_text(encoding="utf-8")
    assert "Answers side by side" in page and "The reward model of stage reward" in page
    assert "Mean reward of the answers went from" in page  # the chart, for those who cannot see it

    killed = tmp_path / "killed"  # in the reward stage: what PPO then makes depends on every bit of the judge
    shutil.copytree(run.path, killed)
    newest = sorted((killed / "stages/2-reward/checkpoints").glob("step-*"))[-1]
    for gone in (newest, killed / "stages/2-reward/merged", killed / "stages/3-ppo", killed / "model"):
        shutil.rmtree(gone)
    lines = (killed / "events.jsonl").read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if json.loads(line)["type"] != "run_finished"]
    (killed / "events.jsonl").write_text("\n".join(kept) + "\n", encoding="utf-8")
    again = pipeline.resume(killed)
    assert tiny.sha256s(again.model_folder) == tiny.sha256s(run.model_folder)
    assert again.metrics == run.metrics


def test_a_method_says_what_it_lacks(data: dict[str, str], tiny_decoder: Path, tiny_encoder: Path) -> None:
    for change, words in [
        ({"data": {"train": data["train"]}}, "needs pairs of answers"),
        ({"task": "chat", "stages": [{"name": "judge"}]}, "has the stages sft, reward, ppo"),
        ({"task": "text-classification"}, "does not"),
        ({"stages": [{"name": "sft", "model": "x"}]}, "no later stage is rewarded"),
        ({"sequence": {"replay": 0.1}}, "leave it out beside a reward"),
        ({"evaluate": {"judge": {"kind": "stage", "stage": "reward"}}}, "nothing was learned from"),
        ({"method": "peft", "stages": []}, "`data.preferences` is read by"),
        ({"method": "peft", "data": {}, "stages": [], "evaluate": {"judge": "runs/x"}}, "judges what learned from"),
    ]:
        with pytest.raises(RecipeError, match=words):
            recipe(data, tiny_decoder, tiny_encoder, **change)


def test_a_judge_that_is_not_there_is_missed_before_any_training(
    data: dict[str, str], tiny_decoder: Path, tiny_encoder: Path, tmp_path: Path
) -> None:
    chosen = recipe(data, tiny_decoder, tiny_encoder, evaluate={"judge": str(tmp_path / "no-run")})
    with pytest.raises(tunesmith.errors.NotFoundError, match="no run here"):
        pipeline.run(chosen, run_dir=tmp_path / "run")
    assert not (tmp_path / "run" / "stages").exists()


def test_own_words_stand_and_the_short_form_has_all_stages(data: dict[str, str], tiny_decoder: Path) -> None:
    tree = {"task": "text-generation", "model": str(tiny_decoder), "method": "rlhf", "data": data}
    stages = parse(tree | {"training": {"epochs": 2}}).resolved().stages
    assert [(stage.name, stage.objective) for stage in stages] == [
        ("sft", "supervised"),
        ("reward", "reward"),
        ("ppo", "ppo"),
    ]
    assert all(stage.training is not None and stage.training.epochs == 2 for stage in stages)
    own = [{"name": "ppo", "training": {"rewards": [{"kind": "number"}]}}]
    assert [s.kind for s in parse(tree | {"stages": own}).resolved().stages[2].training.rewards] == ["number"]
