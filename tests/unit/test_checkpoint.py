"""Checkpoints are whole or absent, and the newest whole one is found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tunesmith.errors import CheckpointError
from tunesmith.training import checkpoint

WEIGHTS = {"w": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}
OPTIMIZER = {"step.w": torch.tensor(3.0), "random.cpu": torch.get_rng_state()}


def save(folder: Path, step: int, **keys: Any) -> checkpoint.Checkpoint:
    return checkpoint.save(folder, step, weights=WEIGHTS, optimizer=OPTIMIZER, trainer={"identity": {}}, **keys)


def flip(path: Path, position: int = -1) -> None:
    """Turn over one bit of one byte."""
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_what_was_saved_is_read_back(tmp_path: Path) -> None:
    saved = save(tmp_path, 120)
    assert saved.path == tmp_path / "step-00000120"
    found, skipped = checkpoint.newest(tmp_path)
    assert found is not None and found.step == 120 and not skipped
    assert all(torch.equal(found.weights()[name], value) for name, value in WEIGHTS.items())
    assert found.weights()["b"].dtype == torch.bfloat16
    assert all(torch.equal(found.optimizer()[name], value) for name, value in OPTIMIZER.items())
    assert not list(tmp_path.glob(".staging-*"))


def test_nothing_is_pickled(tmp_path: Path) -> None:
    kinds = {path.suffix for path in save(tmp_path, 1).path.iterdir()}
    assert kinds == {".json", ".safetensors"}


def test_no_checkpoint_is_no_error(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path / "absent") == (None, [])


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "trainer.json", "MANIFEST.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_each_kind_of_damage_to_each_file_is_found(name: str, damage: str, tmp_path: Path) -> None:
    save(tmp_path, 1)
    path = save(tmp_path, 2).path / name
    if damage == "flip":
        flip(path, len(path.read_bytes()) // 2 if name != "MANIFEST.json" else path.read_bytes().index(b"files") + 1)
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-7])
    else:
        path.unlink()
    found, skipped = checkpoint.newest(tmp_path)
    assert found is not None and found.step == 1
    assert len(skipped) == 1 and skipped[0].startswith("step-00000002: ")
    if name != "MANIFEST.json":
        assert name in skipped[0]


def test_every_bit_of_the_weights_counts(tmp_path: Path) -> None:
    path = save(tmp_path, 1).path / "model.safetensors"
    for position in range(0, path.stat().st_size, 37):
        flip(path, position)
        assert checkpoint.newest(tmp_path)[0] is None
        flip(path, position)
    assert checkpoint.newest(tmp_path)[0] is not None


def test_one_that_needs_a_damaged_best_is_skipped(tmp_path: Path) -> None:
    """The end of the run will want the best weights: from an older checkpoint the way leads over them again."""
    save(tmp_path, 1)
    best = save(tmp_path, 2, needs=2).path
    save(tmp_path, 3, needs=2)
    assert checkpoint.newest(tmp_path)[0].step == 3  # type: ignore[union-attr]
    flip(best / "model.safetensors")
    found, skipped = checkpoint.newest(tmp_path)
    assert found is not None and found.step == 1
    assert "step-00000003" in skipped[0] and "step-00000002" in skipped[0]


def test_the_newest_and_the_protected_stay(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4, 5):
        save(tmp_path, step)
    (tmp_path / ".staging-dead").mkdir()
    checkpoint.prune(tmp_path, 2, {1})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000004", "step-00000005"]


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    flip(save(tmp_path, 7).path / "model.safetensors")
    save(tmp_path, 7)
    assert checkpoint.newest(tmp_path)[0] is not None


def test_random_generators_go_on_where_they_were() -> None:
    state = checkpoint.random_state()
    expected = torch.rand(3)
    torch.manual_seed(99)
    checkpoint.set_random_state(state)
    assert torch.equal(torch.rand(3), expected)


def test_each_difference_of_identity_is_named() -> None:
    then = {"data": "a", "recipe": "r", "torch": "2.12"}
    checkpoint.check_identity(then, dict(then), "here")
    with pytest.raises(CheckpointError) as caught:
        checkpoint.check_identity(then, {"data": "b", "recipe": "r", "torch": "2.13"}, "here")
    assert "data: 'a' then, 'b' now" in caught.value.what and "torch: '2.12' then, '2.13' now" in caught.value.what
    assert "recipe" not in caught.value.what and caught.value.where == "here" and caught.value.fix


def test_the_manifest_names_every_file(tmp_path: Path) -> None:
    path = save(tmp_path, 1).path
    manifest = json.loads((path / "MANIFEST.json").read_text())
    assert set(manifest["files"]) == {p.name for p in path.iterdir()} - {"MANIFEST.json"}


def test_the_best_are_kept_beside_the_newest(tmp_path: Path) -> None:
    scores = {"1": [0.5, -1.0], "2": [0.7, -2.0], "3": [0.7, -1.0], "4": [0.5, -1.0], "10": [0.1, 0.0]}
    assert checkpoint.best_steps(scores, 4) == [3, 2, 1, 4] and checkpoint.best_steps({}, 3) == []
    for step in (1, 2, 3, 4, 10):
        save(tmp_path, step)
    checkpoint.prune(tmp_path, 1, set(checkpoint.best_steps(scores, 2)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000003", "step-00000010"]
