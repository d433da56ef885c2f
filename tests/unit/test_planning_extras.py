"""Plans of teachers and of the cache of frozen layers, against real tiny runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import labelled_rows, write_jsonl
from tunesmith import pipeline, planning, recipe_file
from tunesmith.events import Event, StageFinished
from tunesmith.models.load import load_model
from tunesmith.planning import machine

RATES = {"fp32": 1e11, "bf16": 2e11, "copy": 1e10, "draws": 1e8}


@pytest.fixture(autouse=True)
def known_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(machine, "speed", lambda device: dict(RATES))


@pytest.fixture
def reviews(tmp_path: Path) -> str:
    return str(write_jsonl(tmp_path / "reviews.jsonl", labelled_rows(160)))


def frozen(model: Path, data: str, **training: Any) -> dict[str, Any]:
    return {
        "task": "text-classification",
        "model": str(model),
        "method": "transfer",
        "data": {"train": data},
        "precision": "fp32",
        "parameters": {"kind": "layers", "layers": "last 1"},
        "training": {"epochs": 3, "compile": "off", "batch_size": 8, **training},
        "evaluate": {"baselines": [], "resamples": 100},
    }


def test_the_cache_of_frozen_layers_takes_what_was_planned(tiny_encoder: Path, reviews: str, tmp_path: Path) -> None:
    place = tmp_path / "states"
    tree = frozen(tiny_encoder, reviews, cache="on", cache_folder=str(place))
    [planned] = planning.plan(recipe_file.parse(tree)).stages
    pipeline.run(recipe_file.parse(tree), run_dir=tmp_path / "run")
    real = sum(path.stat().st_size for path in place.rglob("states.bin"))
    assert planned.cached_bytes == pytest.approx(real, rel=0.02) and real > 0
    [without] = planning.plan(recipe_file.parse(frozen(tiny_encoder, reviews, cache="off"))).stages
    assert without.cached_bytes == 0
    assert planned.disk_bytes - without.disk_bytes == pytest.approx(planned.cached_bytes)


def test_epochs_from_the_second_on_are_cheaper(tiny_encoder: Path, reviews: str) -> None:
    def seconds(epochs: int, cache: str) -> float:
        [stage] = planning.plan(recipe_file.parse(frozen(tiny_encoder, reviews, epochs=epochs, cache=cache))).stages
        return stage.update_seconds

    an_epoch, cached = seconds(5, "off") - seconds(4, "off"), seconds(5, "on") - seconds(4, "on")
    assert 0 < cached < an_epoch
    assert seconds(5, "on") < seconds(5, "off")
    assert seconds(2, "auto") == seconds(2, "on")
    assert seconds(1, "auto") == seconds(1, "off")  # with one epoch `auto` makes none


def taught(model: Path, teacher: Path, data: str, **distillation: Any) -> dict[str, Any]:
    return {
        "task": "text-generation",
        "model": str(model),
        "method": "distillation",
        "data": {"train": data},
        "precision": "fp32",
        "training": {
            "epochs": 1,
            "compile": "off",
            "batch_size": 8,
            "distillation": {"teacher": str(teacher), **distillation},
        },
        "evaluate": {"baselines": [], "resamples": 100, "generation": {"max_new_tokens": 2}},
    }


@pytest.fixture
def pairs(tmp_path: Path) -> str:
    rows = [{"prompt": f"say {n}", "completion": f"the number {n} is said"} for n in range(60)]
    return str(write_jsonl(tmp_path / "pairs.jsonl", rows))


def test_a_teacher_that_stays_is_in_memory_with_its_weights(tiny_decoder: Path, pairs: str) -> None:
    [made] = planning.plan(recipe_file.parse(taught(tiny_decoder, tiny_decoder, pairs))).stages
    real = load_model(tiny_decoder, name="teacher", form="generate")
    weights = sum(p.numel() * p.element_size() for p in real.network.parameters())
    assert made.memory_parts["teacher"] == weights
    assert made.memory_parts["teacher's pass"] > 0 and made.cached_bytes == 0
    alone = taught(tiny_decoder, tiny_decoder, pairs) | {"method": "supervised", "objective": "supervised"}
    alone["training"] = {key: value for key, value in alone["training"].items() if key != "distillation"}
    [student] = planning.plan(recipe_file.parse(alone)).stages
    assert "teacher" not in student.memory_parts and made.update_seconds > student.update_seconds
    added = made.memory_parts["teacher"] + made.memory_parts["teacher's pass"]
    unchanged = {name: size for name, size in made.memory_parts.items() if not name.startswith("teacher")}
    assert made.memory.expected == pytest.approx(sum(unchanged.values()) + added)


@pytest.mark.parametrize("kind", ["top-k", "sampled"])
def test_what_a_teacher_thinks_takes_the_disk_that_was_planned(
    kind: str, tiny_decoder: Path, pairs: str, tmp_path: Path
) -> None:
    tree = taught(tiny_decoder, tiny_decoder, pairs, cache=kind, kept_tokens=5)
    [made] = planning.plan(recipe_file.parse(tree)).stages
    [stays] = planning.plan(recipe_file.parse(taught(tiny_decoder, tiny_decoder, pairs))).stages
    assert made.memory_parts["teacher"] < stays.memory_parts["teacher"]  # it has gone when the student is at its most
    kept: list[int] = []

    def look(event: Event) -> None:
        if isinstance(event, StageFinished):
            files = [path for name in ("words.npy", "values.npy") for path in (tmp_path / "run").rglob(name)]
            kept.append(sum(np.load(path, mmap_mode="r").nbytes for path in files))

    pipeline.run(recipe_file.parse(tree), run_dir=tmp_path / "run", on_event=look)
    assert made.cached_bytes == pytest.approx(kept[0], rel=0.05) and kept[0] > 0
