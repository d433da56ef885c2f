"""Checkpoints that are damaged, foreign, or do not fit on the disk."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from conftest import labelled_rows, write_jsonl
from tunesmith import pipeline
from tunesmith.errors import CheckpointError, InterruptedRun, NonFiniteError, ResourceError
from tunesmith.events import CheckpointSaved, Event, Notice, Step, Validated
from tunesmith.models.model import Model
from tunesmith.recipe import Recipe
from tunesmith.recipe_file import parse
from tunesmith.training import checkpoint
from tunesmith.training.loop import Trainer

SETTINGS: dict[str, Any] = {"batch_size": 8, "max_steps": 12, "checkpoint_steps": 3, "learning_rate": 1e-3}


def model_of(folder: Path) -> Model:
    return tiny.build(folder, "classify", dtype=torch.float32)


def trained(folder: Path, model: Path, **keys: Any) -> Trainer:
    """A trainer with checkpoints at 3, 6, 9 and 12; only the newest ones stay."""
    trainer = tiny.trainer(model_of(model), labelled_rows(40), folder, **(SETTINGS | {"keep_checkpoints": 4} | keys))
    trainer.run()
    return trainer


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def weights(model: Model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.trainable()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_flipped_byte_is_named_and_an_older_checkpoint_used(tiny_encoder: Path, tmp_path: Path) -> None:
    first = trained(tmp_path, tiny_encoder)
    checkpoints = tmp_path / "checkpoints"
    flip(checkpoints / "step-00000012" / "optimizer.safetensors")
    (checkpoints / "step-00000009" / "MANIFEST.json").unlink()
    events = tiny.Events()
    again = tiny.trainer(
        model_of(tiny_encoder), labelled_rows(40), tmp_path, events=events, keep_checkpoints=4, **SETTINGS
    )
    again.run()
    said = [notice.message for notice in events.of(Notice)]
    assert any("step-00000012: optimizer.safetensors differs from its checksum" in text for text in said)
    assert any("step-00000009: not a complete checkpoint" in text and "MANIFEST.json" in text for text in said)
    assert "going on from step 6 of 12" in said
    assert [event.step for event in events.of(Step)] == list(range(7, 13))
    assert same(weights(first.model), weights(again.model))
    found, skipped = checkpoint.newest(checkpoints)  # the damaged ones were written again
    assert found is not None and found.step == 12 and not skipped


def test_a_damaged_best_checkpoint_is_trained_again(tiny_encoder: Path, tmp_path: Path) -> None:
    """The best one lies behind the newest: the weights to deliver are made again, to the same bits."""
    other = {"positive": "negative", "negative": "positive"}
    contrary = [{**row, "label": other[row["label"]]} for row in labelled_rows(20, seed=9)]  # worse with each update
    keys: dict[str, Any] = {"validation": contrary, "eval_steps": 3, "learning_rate": 3e-3}
    first = trained(tmp_path, tiny_encoder, **keys)
    best = first.position.best_step
    assert 0 < best < 12
    expected = weights(first.model)
    flip(tmp_path / "checkpoints" / f"step-{best:08d}" / "model.safetensors")
    events = tiny.Events()
    again = trained(tmp_path, tiny_encoder, events=events, **keys)
    assert any(f"step-{best:08d}: model.safetensors differs" in n.message for n in events.of(Notice))
    assert again.position.best_step == best and same(expected, weights(again.model))


def test_without_a_whole_checkpoint_the_stage_begins_again(tiny_encoder: Path, tmp_path: Path) -> None:
    first = trained(tmp_path, tiny_encoder)
    for path in (tmp_path / "checkpoints").glob("step-*"):
        flip(path / "model.safetensors")
    events = tiny.Events()
    again = trained(tmp_path, tiny_encoder, events=events)
    assert len(events.of(Step)) == 12 and same(weights(first.model), weights(again.model))


def test_checkpoints_are_kept_without_validation_or_interval(tiny_encoder: Path, tmp_path: Path) -> None:
    """At the end of each epoch, and at the end: a kill must not cost a whole run."""
    events = tiny.Events()
    trained(tmp_path, tiny_encoder, events=events, checkpoint_steps=None)
    assert [event.step for event in events.of(CheckpointSaved)] == [5, 10, 12]


# --- foreign ---------------------------------------------------------------------------------------------------------


def recipe_of(folder: Path, model: Path, **training: Any) -> Recipe:
    return parse(
        {
            "task": "text-classification", "model": str(model), "method": "full",
            "data": {"train": str(folder / "reviews.jsonl")},
            "training": {"batch_size": 8, "max_steps": 4, "checkpoint_steps": 2, "compile": "off", **training},
            "evaluate": {"baselines": ["majority"], "resamples": 100}, "precision": "fp32",
        }
    )  # fmt: skip


@pytest.fixture
def unfinished(tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that lacks nothing but its evaluation."""
    import tunesmith.evaluation.evaluate as evaluation

    write_jsonl(tmp_path / "reviews.jsonl", labelled_rows(60))

    def stop(*_: Any, **__: Any) -> str:
        raise ResourceError("stopped on purpose")

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "evaluate_run", stop)
        with pytest.raises(ResourceError, match="on purpose"):
            pipeline.run(recipe_of(tmp_path, tiny_encoder), run_dir=tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def no_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("tunesmith.models.build.build_for_training", refuse)


def test_other_data_are_refused_before_the_model_loads(unfinished: Path, no_model_is_loaded: None) -> None:
    write_jsonl(unfinished.parent / "reviews.jsonl", labelled_rows(61))
    with pytest.raises(CheckpointError, match="data: ") as caught:
        pipeline.resume(unfinished)
    assert "step-00000004" in str(caught.value.where) and caught.value.exit_code == 4


def test_another_recipe_is_refused(unfinished: Path, no_model_is_loaded: None) -> None:
    path = unfinished / "recipe.yaml"
    path.write_text(path.read_text().replace("batch_size: 8", "batch_size: 7"))
    with pytest.raises(CheckpointError, match="recipe: "):
        pipeline.resume(unfinished)


def test_another_version_is_refused(
    unfinished: Path, no_model_is_loaded: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunesmith import environment

    versions = environment.versions() | {"torch": "1.0"}
    monkeypatch.setattr(environment, "versions", lambda: versions)
    with pytest.raises(CheckpointError, match=r"torch: '2\S+' then, '1.0' now"):
        pipeline.resume(unfinished)


def test_the_same_run_goes_on(unfinished: Path) -> None:
    steps = (unfinished / "metrics.jsonl").read_text()
    assert pipeline.resume(unfinished).status == "finished"
    assert (unfinished / "metrics.jsonl").read_text() == steps


# --- full disk -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [1, 2], ids=["weights", "optimizer"])
def test_a_full_disk_leaves_nothing_half(
    at: int, tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(tiny_encoder)
    trainer = tiny.trainer(model, labelled_rows(40), tmp_path, **SETTINGS)
    calls = 0

    def full(tensors: dict[str, torch.Tensor], path: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == 4 + at:  # two files a checkpoint: the third checkpoint
            Path(path).write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device")
        save_file(tensors, path)

    save_file = checkpoint.save_file
    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(ResourceError, match=r"step 9: .*No space left") as caught:
        trainer.run()
    assert caught.value.fix is not None and "tunesmith resume" in caught.value.fix
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000003", "step-00000006"]
    found, skipped = checkpoint.newest(tmp_path / "checkpoints")
    assert found is not None and found.step == 6 and not skipped


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if os.name != "posix" or os.geteuid() != 0 or mount is None:
        pytest.skip("mounting a small file system takes root")
    made = subprocess.run([mount, "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True)
    if made.returncode:
        pytest.skip(f"no file system can be mounted here: {made.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)  # arrays of the run may still be mapped


def test_a_disk_that_is_really_full(small_disk: Path, tiny_encoder: Path, tmp_path: Path) -> None:
    """The run ends with one clear error; after making room it goes on and ends as if nothing had happened."""
    write_jsonl(tmp_path / "reviews.jsonl", labelled_rows(60))
    recipe = recipe_of(tmp_path, tiny_encoder, max_steps=12, keep_checkpoints=12)
    with pytest.raises(ResourceError) as caught:
        pipeline.run(recipe, run_dir=small_disk / "run")
    assert "No space left" in caught.value.what or "space" in caught.value.what
    folder = small_disk / "run" / "stages" / "1-tune" / "checkpoints"
    found, skipped = checkpoint.newest(folder)
    assert found is not None and 0 < found.step < 12 and not skipped
    assert all(path.name.startswith("step-") for path in folder.iterdir())
    shutil.copytree(small_disk / "run", tmp_path / "run")
    assert pipeline.resume(tmp_path / "run").status == "finished"
    pipeline.run(recipe, run_dir=tmp_path / "unbroken")
    assert tiny.sha256s(tmp_path / "run" / "model") == tiny.sha256s(tmp_path / "unbroken" / "model")


# --- stopped politely ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["before", "within"])
def test_stopped_where_a_validation_is_due(
    moment: str, tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may take long, and who sent the signal waits a short time: it is given up, and measured by the resume."""

    def trainer(folder: Path) -> tuple[Trainer, tiny.Events]:
        settings = SETTINGS | {"eval_steps": 4, "checkpoint_steps": None, "keep_checkpoints": 4}
        rows, events = labelled_rows(16, seed=1), tiny.Events()
        model = model_of(tiny_encoder)
        return tiny.trainer(model, labelled_rows(40), folder, validation=rows, events=events, **settings), events

    unbroken, expected = trainer(tmp_path / "unbroken")
    unbroken.run()
    stopped, before = trainer(tmp_path / "stopped")
    if moment == "before":
        report = stopped.on_event

        def listen(event: Event) -> None:
            report(event)
            if isinstance(event, Step) and event.step == 8:
                os.kill(os.getpid(), signal.SIGTERM)

        stopped.on_event = listen
    if moment == "within":
        measure = stopped.objective.validate
        left = iter([None, "stop"])

        def measure_for_long(*given: Any) -> Any:
            if next(left, None):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(300)
            return measure(*given)

        monkeypatch.setattr(stopped.objective, "validate", measure_for_long)
    with pytest.raises(InterruptedRun, match="step 8 of 12"):
        stopped.run()
    assert validations(before) == validations(expected)[:1]
    resumed, after = trainer(tmp_path / "stopped")
    resumed.run()
    assert [*validations(before), *validations(after)] == validations(expected)
    assert [step for step, _ in validations(expected)] == [4, 8, 12]
    assert same(weights(resumed.model), weights(unbroken.model))


def validations(events: tiny.Events) -> list[tuple[int, dict[str, float]]]:
    return [(event.step, dict(event.metrics)) for event in events if isinstance(event, Validated)]


# --- numbers and memory ----------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_before_the_update(
    tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(tiny_encoder)
    trainer = tiny.trainer(model, labelled_rows(16), tmp_path, batch_size=8, max_steps=4)
    poisoned = 11
    good = type(model).class_logits

    def poisoned_logits(self: Model, batch: Any) -> torch.Tensor:
        logits = good(self, batch)
        for n, row in enumerate(batch.rows):
            if row == poisoned:
                logits[n] = float("nan")
        return logits

    monkeypatch.setattr(Model, "class_logits", poisoned_logits)
    kept: list[dict[str, torch.Tensor]] = [weights(model)]
    step = trainer.optimizer.step

    def remember(learning_rate: float, scale: float) -> None:
        step(learning_rate, scale)
        kept.append(weights(model))

    trainer.optimizer.step = remember  # type: ignore[method-assign]
    with pytest.raises(NonFiniteError, match="the loss of update") as caught:
        trainer.run()
    assert caught.value.where == "rows.jsonl:12"  # lines are counted from 1
    assert "rows.jsonl:12" in caught.value.what and "rows.jsonl:11" not in caught.value.what
    assert same(kept[-1], weights(model))
    assert all(bool(value.isfinite().all()) for value in weights(model).values())


def test_a_gradient_that_is_not_finite_stops_too(tiny_encoder: Path, tmp_path: Path) -> None:
    model = model_of(tiny_encoder)
    trainer = tiny.trainer(model, labelled_rows(8), tmp_path, batch_size=8, max_steps=2)
    next(p for _, p in model.trainable()).register_hook(lambda grad: grad * float("inf"))
    before = weights(model)
    with pytest.raises(NonFiniteError, match="the gradient of update 1") as caught:
        trainer.run()
    assert same(before, weights(model)) and "The batch held the examples" in caught.value.what


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_out_of_memory_halves_the_pass_and_not_the_batch(
    error: RuntimeError, tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The update is the same to rounding, the smaller size is kept and said."""

    def first_update(fail: bool, folder: Path) -> tuple[list[torch.Tensor], tiny.Events]:
        events = tiny.Events()
        model = tiny.build(tiny_encoder, "classify", training=tiny.Training(dropout=0.0))
        trainer = tiny.trainer(
            model, labelled_rows(32), folder, events=events, batch_size=32, max_steps=1, micro_tokens=128
        )
        good, calls, seen = trainer.objective.loss, 0, []

        def loss(model: Model, batch: Any) -> Any:
            nonlocal calls
            calls += 1
            if fail and batch.tokens > 64 and calls > 1:  # after gradients of the first piece exist
                raise error
            return good(model, batch)

        step = trainer.optimizer.step

        def spy(learning_rate: float, scale: float) -> None:
            seen.extend(g * scale for g in trainer.optimizer.gradients())
            step(learning_rate, scale)

        trainer.objective.loss = loss  # type: ignore[method-assign]
        trainer.optimizer.step = spy  # type: ignore[method-assign]
        trainer.run()
        if fail:
            assert trainer.position.micro_tokens == 64 and calls > 4
        return seen, events

    expected, _ = first_update(False, tmp_path / "plenty")
    found, events = first_update(True, tmp_path / "scarce")
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-15)
    (notice,) = [n for n in events.of(Notice) if "out of memory" in n.message]
    assert notice.level == "warning" and notice.fix == "set `training.micro_tokens: 64` to begin with it"


def test_memory_that_does_not_suffice_for_one_example(tiny_encoder: Path, tmp_path: Path) -> None:
    trainer = tiny.trainer(model_of(tiny_encoder), labelled_rows(8), tmp_path, batch_size=8, max_steps=1)

    def loss(model: Model, batch: Any) -> Any:
        raise torch.OutOfMemoryError("out of memory")

    trainer.objective.loss = loss  # type: ignore[method-assign]
    with pytest.raises(ResourceError, match="one example of") as caught:
        trainer.run()
    assert caught.value.where is not None and caught.value.where.startswith("rows.jsonl:") and caught.value.fix


def test_other_runtime_errors_are_not_taken_for_lack_of_memory(tiny_encoder: Path, tmp_path: Path) -> None:
    trainer = tiny.trainer(model_of(tiny_encoder), labelled_rows(8), tmp_path, batch_size=8, max_steps=1)

    def loss(model: Model, batch: Any) -> Any:
        raise RuntimeError("shapes do not match")

    trainer.objective.loss = loss  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="shapes do not match"):
        trainer.run()


def test_the_identity_is_in_each_checkpoint(unfinished: Path) -> None:
    path = unfinished / "stages" / "1-tune" / "checkpoints" / "step-00000004" / "trainer.json"
    identity = json.loads(path.read_text())["identity"]
    assert {"data", "recipe", "python", "torch", "transformers", "tunesmith"} <= set(identity)


def test_out_of_memory_while_validating_halves_the_pass_too(tiny_encoder: Path, tmp_path: Path) -> None:
    events, held_out = tiny.Events(), labelled_rows(32, seed=1)
    settings: dict[str, Any] = {"batch_size": 4, "max_steps": 1, "micro_tokens": 128}
    whole = tiny.trainer(model_of(tiny_encoder), labelled_rows(8), tmp_path / "a", validation=held_out, **settings)
    scarce = tiny.trainer(
        model_of(tiny_encoder), labelled_rows(8), tmp_path / "b", validation=held_out, events=events, **settings
    )
    good = scarce.objective.loss

    def loss(model: Model, batch: Any) -> Any:
        if batch.tokens > 64:
            raise torch.OutOfMemoryError("out of memory")
        return good(model, batch)

    scarce.objective.loss = loss  # type: ignore[method-assign]
    expected, found = whole.run().best_metrics, scarce.run().best_metrics
    assert found == pytest.approx(expected, rel=1e-5) and scarce.position.micro_tokens == 64
    assert any("out of memory" in notice.message for notice in events.of(Notice))
