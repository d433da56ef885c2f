"""From runs to OpenAI's words, and from OpenAI's hyper-parameters to recipes."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest

from tunesmith.errors import RecipeError
from tunesmith.server.recipes import auto_epochs, job_recipe, resolve
from tunesmith.server.words import JobEvent, Translator, checkpoint_metrics, results_csv


def step(number: int, loss: float = 0.25, moment: float = 1.0) -> dict[str, Any]:
    return {
        "time": moment, "type": "step", "stage": "tune", "step": number, "steps": 10, "loss": loss,
        "learning_rate": 0.1, "metrics": {"token_accuracy": 0.5},
    }  # fmt: skip


def validated(number: int) -> dict[str, Any]:
    metrics = {"loss": 0.4, "token_accuracy": 0.6}
    return {"time": 2.0, "type": "validated", "stage": "tune", "step": number, "metrics": metrics, "best": True}


def test_words() -> None:
    started = {"time": 0.0, "type": "stage_started", "stage": "tune", "steps": 10}
    notice = {"time": 3.0, "type": "notice", "level": "warning", "message": "at /secret/run/x", "fix": "look"}
    events = list(Translator("j", {"/secret/": ""}).translate([started, step(1), validated(1), notice]))
    assert [event.message for event in events] == [
        "Step 1/10: training loss=0.25",
        "Step 1/10: full validation loss=0.40",
        "at run/x. How to mend it: look",
    ]
    assert events[0].data == {
        "step": 1, "train_loss": 0.25, "total_steps": 10, "learning_rate": 0.1, "train_mean_token_accuracy": 0.5,
    }  # fmt: skip
    assert events[1].data is not None and events[1].data["full_valid_loss"] == 0.4
    assert [event.level for event in events] == ["info", "info", "warn"]


def test_a_step_done_again_is_the_same_event() -> None:
    translator = Translator("j", {})
    first, again, other = translator.translate([step(1), step(1, moment=9.0), step(2)])
    assert first.id == again.id != other.id
    (elsewhere,) = Translator("k", {}).translate([step(1)])
    assert elsewhere.id != first.id


def test_results_have_a_row_a_step() -> None:
    table = list(csv.DictReader(io.StringIO(results_csv([step(1, 9.0), step(2), step(1, 0.5), validated(2)]))))
    assert [(row["step"], row["train_loss"], row["train_accuracy"], row["valid_loss"]) for row in table] == [
        ("1", "0.5", "0.5", ""),
        ("2", "0.25", "0.5", "0.4"),
    ]
    assert checkpoint_metrics([step(2), validated(2)])[2]["full_valid_mean_token_accuracy"] == 0.6


@pytest.mark.parametrize(
    ("examples", "epochs"), [(10, 10), (4, 25), (3, 25), (33, 3), (34, 3), (100, 3), (8333, 3), (8334, 2), (50_000, 1)]
)
def test_auto_epochs_are_openais(examples: int, epochs: int) -> None:
    """n*3 < 100: min(25, 100 // n); n*3 > 25000: max(1, 25000 // n); else 3."""
    assert auto_epochs(examples) == epochs


def test_auto_is_shown_as_numbers_and_the_clients_numbers_stand() -> None:
    assert resolve({"n_epochs": "auto", "batch_size": 7}, 100) == {
        "n_epochs": 3, "batch_size": 7, "learning_rate_multiplier": 1.0,
    }  # fmt: skip


def recipe(more: dict[str, Any], **chosen: Any) -> Any:
    return job_recipe("m", more, training=Path("t.jsonl"), validation=None, seed=5, hyperparameters=chosen)


def test_the_recipe_of_a_job() -> None:
    plain = recipe({}, n_epochs=2, batch_size=4, learning_rate_multiplier=1.0)
    assert (plain.training.epochs, plain.training.batch_size, plain.training.seed) == (2, 4, 5)
    assert plain.data.train == ["t.jsonl"] and plain.data.test == 0.0 and plain.training.learning_rate is None
    doubled = recipe({"training": {"learning_rate": 1e-3}}, learning_rate_multiplier=2.0)
    assert doubled.training.learning_rate == pytest.approx(2e-3)
    from tunesmith import parameters

    assert recipe({}, learning_rate_multiplier=0.5).training.learning_rate == pytest.approx(
        parameters.learning_rate("lora", "generate") / 2
    )
    own = recipe({"parameters": {"kind": "lora", "rank": 4}, "training": {"batch_tokens": 64}}, batch_size=8)
    assert own.parameters.rank == 4 and own.training.batch_tokens is None and own.training.batch_size == 8
    with pytest.raises(RecipeError):
        recipe({"trainig": {}})


def test_a_job_that_was_moved_has_the_same_events() -> None:
    def events(folder: str) -> list[JobEvent]:
        notice = {
            "type": "notice",
            "level": "warning",
            "message": f"first: {folder}/jobs/j/data/a.jsonl:2",
            "time": 1.0,
        }
        return list(Translator("j", {"/here/jobs/j/data/": ""}).translate([notice]))

    assert events("/here") == events("/there") != []
    assert events("/here")[0].message == "first: a.jsonl:2."
