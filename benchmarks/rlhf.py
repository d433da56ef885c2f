"""Reinforcement learning from human feedback on real ratings: supervised tuning, a reward model, PPO, and two judges.

    python benchmarks/rlhf.py --out runs/rlhf                 all of it; again, it goes on where it was stopped
    python benchmarks/rlhf.py --out runs/rlhf --only reward   the reward model alone
    python benchmarks/rlhf.py --out runs/rlhf --seconds 480   stop (at a checkpoint) after about so long
    python benchmarks/rlhf.py --picture                       draw the results' curve for the documentation

Snippets of film reviews were rated by people from -4 to 4 (vaderSentiment, C. J. Hutto). Pairs of snippets rated at
least 1.0 apart teach a reward model; the snippets are divided before they are paired. SmolLM2 learns to go on from
the first words of snippets, good and bad ones, and then, by PPO, to write what the reward model likes. A second judge
never saw a film review: it learned from the ratings of newspaper editorials. Ridge regression on TF-IDF, fitted to
the ratings of the same training snippets, is what the reward model has to beat. Results go to `results/rlhf.json`.
"""

from __future__ import annotations

import argparse
import os
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
from common import OUTCOME, RESULTS_FOLDER, ROOT, SHARED, results_in, run_or_resume, write_rows

from tunesmith import disk, environment, runs
from tunesmith.data.pairs import PairSet, Rated, make_pairs, split
from tunesmith.evaluation.charts import policy_chart
from tunesmith.evaluation.curve_chart import on_its_own
from tunesmith.evaluation.intervals import bootstrap, mean

SOURCE = SHARED / "vader_ratings"
RESULTS = RESULTS_FOLDER / "rlhf.json"
PICTURE = ROOT / "docs" / "assets" / "rlhf.svg"
KEPT = (*OUTCOME, "by_length", "reinforcement", "side_by_side", "stage_reward")
MARGIN = 1.0
CLEAR = 0.5
"""Editorials rated nearer to 0 than this say little about what is good or bad."""
PROMPT_WORDS = 4
LONGEST_WORDS = 18
"""Snippets up to this length are gone on from, so that most answers end by themselves within the limit of tokens."""
CONTINUED = 400
"""Training snippets that the model that writes sees; the reward model sees them all."""
PAIRS = 3200
"""Training pairs, of about 7,800."""
ASKED = 100
"""Held-out beginnings that are gone on from."""


def read(name: str) -> list[Rated]:
    """Snippets with their mean rating."""
    lines = (SOURCE / f"{name}_GroundTruth.txt").read_text(encoding="utf-8").splitlines()
    return [Rated(text.strip(), float(rating)) for _, rating, text in (line.split("\t", 2) for line in lines)]


def divided(name: str) -> tuple[list[Rated], list[Rated], list[Rated]]:
    """Snippets to learn from, to choose by, and to measure on."""
    rest, test = split(read(name), 0.2)
    train, validation = split(rest, 0.1, seed=1)
    return train, validation, test


def pair_files(name: str, folder: Path) -> dict[str, Any]:
    """Pairs of each part, as the `data` of a recipe."""
    files = {}
    for part, rated in zip(("train", "validation", "test"), divided(name), strict=True):
        made: PairSet = make_pairs(rated, margin=MARGIN, per_text=1)
        files[part] = [write_rows(folder / f"{name}-{part}.jsonl", made.pairs)]
    return files


def beginnings(folder: Path) -> dict[str, Any]:
    """The first words of snippets, with how each goes on."""
    files = {}
    parts = zip(("train", "validation", "test"), divided("movieReviewSnippets"), (CONTINUED, 64, ASKED), strict=True)
    for part, rated, limit in parts:
        words = [item.text.split() for item in rated]
        fitting = [line for line in words if 2 * PROMPT_WORDS <= len(line) <= LONGEST_WORDS][:limit]
        rows = [{"prompt": " ".join(w[:PROMPT_WORDS]), "completion": " ".join(w[PROMPT_WORDS:])} for w in fitting]
        files[part] = [write_rows(folder / f"beginnings-{part}.jsonl", rows)]
    return files


def judge_recipe(folder: Path) -> dict[str, Any]:
    """The second judge: a classifier of editorials rated clearly above or below 0, on frozen features."""
    files = {}
    for part, rated in zip(("train", "validation", "test"), divided("nytEditorialSnippets"), strict=True):
        clear = [item for item in rated if abs(item.rating) >= CLEAR]
        rows = [{"text": item.text, "label": "positive" if item.rating > 0 else "negative"} for item in clear]
        files[part] = [write_rows(folder / "data" / f"editorials-{part}.jsonl", rows)]
    tree = {"task": "text-classification", "model": "minilm-l6", "method": "features", "data": files}
    return tree | {"evaluate": {"baselines": ["majority"]}}


def ridge() -> dict[str, float]:
    """Pair accuracy of ridge regression on TF-IDF, fitted to the ratings of the training snippets."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import Ridge

    train, _, test = divided("movieReviewSnippets")
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    model = Ridge().fit(words.fit_transform([item.text for item in train]), [item.rating for item in train])
    pairs = make_pairs(test, margin=MARGIN, per_text=1).pairs
    better, worse = (model.predict(words.transform([pair[key] for pair in pairs])) for key in ("chosen", "rejected"))
    return bootstrap(mean(np.asarray(better > worse, dtype=np.float64), proportion=True)).as_dict()


def reward_stage(folder: Path) -> dict[str, Any]:
    """How the reward model learns: as a stage of the run, and by itself."""
    return {
        "model": "minilm-l6",
        "data": pair_files("movieReviewSnippets", folder / "data") | {"max_rows": PAIRS, "max_length": 64},
        "parameters": {"kind": "full"},
        "training": {"epochs": 1, "learning_rate": 1e-4, "checkpoint_steps": 20, "dropout": 0},
    }


def reward_recipe(folder: Path) -> dict[str, Any]:
    """The reward model alone."""
    evaluate = {"baselines": ["majority"], "limit": 1000}
    return {"task": "preference", "method": "reward", **reward_stage(folder), "evaluate": evaluate}


def rlhf_recipe(folder: Path) -> dict[str, Any]:
    """The three stages. A short system prompt stands in the place of the template's own, which is longer."""
    ppo = {
        "max_steps": 60,
        "batch_size": 32,
        "learning_rate": 3e-4,
        "schedule": "constant",
        "warmup": 0.05,
        "eval_steps": 60,
        "checkpoint_steps": 5,
        "rollouts": {"max_new_tokens": 20, "validation_prompts": 32},
        "ppo": {"kl": 0.05, "epochs": 2, "minibatches": 2},
    }
    return {
        "task": "text-generation",
        "model": "smollm2-135m-instruct",
        "method": "rlhf",
        "system_prompt": "Film review.",
        "data": beginnings(folder / "data"),
        "parameters": {"kind": "lora", "rank": 16},
        "training": {"dropout": 0},
        "stages": [
            {"name": "sft", "training": {"epochs": 1, "learning_rate": 5e-4, "checkpoint_steps": 10}},
            {"name": "reward", **reward_stage(folder)},
            {"name": "ppo", "training": ppo},
        ],
        "evaluate": {
            "baselines": ["base"],
            "limit": ASKED,
            "judge": {"kind": "run", "run": str(folder / "judge"), "label": "positive"},
        },
    }


def stop_after(seconds: float) -> None:
    """Ask this process to stop as Ctrl-C does: the update is finished, and a checkpoint written."""
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
    timer.daemon = True
    timer.start()


def curve(run: runs.Run) -> list[dict[str, float]]:
    """What learning from rewards logged at each step; a step done twice, after a stop, counts once."""
    steps = {}
    for event in runs.read_events(run.path):
        if event["type"] == "step" and "reward" in event["metrics"]:
            steps[event["step"]] = {"step": event["step"], "seconds": event["seconds"], **event["metrics"]}
    return [steps[step] for step in sorted(steps)]


def main() -> None:
    """Do what is not done yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "rlhf")
    parser.add_argument("--picture", action="store_true", help="only draw the curve of the committed results")
    parser.add_argument("--only", choices=("judge", "reward", "rlhf"))
    parser.add_argument("--seconds", type=float, default=None, help="stop at a checkpoint after about so many")
    given = parser.parse_args()
    known = results_in(RESULTS)
    if given.picture:
        disk.write_text(PICTURE, on_its_own(policy_chart(known["ppo"])))
        return
    if given.seconds is not None:
        stop_after(given.seconds)
    for name, make in {"reward": reward_recipe, "judge": judge_recipe, "rlhf": rlhf_recipe}.items():
        if given.only not in (None, name) and not (given.only == "rlhf" and name == "judge"):
            continue
        run = run_or_resume(make(given.out), given.out / name)
        summary = run.summary()
        known[name] = {key: summary[key] for key in KEPT if key in summary} | {"environment": environment.describe()}
        if name == "reward":
            known["ridge"] = {"pair_accuracy": ridge()}
        if name == "rlhf":
            known["ppo"] = curve(run)
        disk.write_json(RESULTS, known)
        print(f"{name}: {summary['verdict']}")


if __name__ == "__main__":
    main()
