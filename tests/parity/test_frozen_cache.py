"""Runs that read the output of their frozen layers from disk end with the bits of runs that compute it."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from conftest import labelled_rows
from tunesmith import objectives
from tunesmith.data.batches import collate
from tunesmith.errors import RecipeError
from tunesmith.events import Notice, Step, Validated
from tunesmith.models.model import Model
from tunesmith.recipe import Full, Head, Layers, LoRA, Parameters, Prompt
from tunesmith.training import frozen_cache
from tunesmith.training.frozen_cache import remember
from tunesmith.training.loop import Trainer

TOP = {"head": Head(), "last": Layers(layers="last 1"), "lora": LoRA(rank=2, targets=r".*layers?\.1\..*(query|q_proj)")}
CASES = [
    *(("classify", model, kind) for model in ("tiny_encoder", "tiny_bert", "tiny_decoder") for kind in TOP),
    ("tag", "tiny_bert", "last"),
    ("tag", "tiny_decoder", "head"),
    ("generate", "tiny_decoder", "last"),
    ("generate", "tiny_decoder", "lora"),
]
ROWS: dict[str, Any] = {"classify": labelled_rows, "tag": tiny.tagged_rows, "generate": tiny.question_rows}


def ready(base: Path, form: Any, choice: Parameters, folder: Path, dtype: torch.dtype, **keys: Any) -> Trainer:
    """A trainer with validation rows on one set of files, and a listener of its own."""
    model = tiny.build(base, form, choice, dtype=dtype)
    rows = [*ROWS[form](40)]
    settings = {"epochs": 3, "batch_size": 7, "learning_rate": 5e-3, "micro_tokens": 96} | keys
    return tiny.trainer(model, rows[:30], folder, validation=rows[30:], kind=choice.kind, **settings)


def with_cache(trainer: Trainer, folder: Path, tell: tiny.Events | None = None) -> bool:
    assert trainer.validation is not None
    sets = {"train": trainer.train, "validation": trainer.validation}
    listener = tiny.Events() if tell is None else tell
    return remember(trainer.model, trainer.objective, sets, trainer.settings, trainer.steps, folder, listener)


def told(trainer: Trainer) -> list[Any]:
    events: Any = trainer.on_event
    return [(step.loss, step.grad_norm) for step in events.of(Step)] + [e.metrics for e in events.of(Validated)]


def weights(model: Model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.trainable()}


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_the_same_bits(case: tuple[str, str, str], request: pytest.FixtureRequest, tmp_path: Path) -> None:
    form, base, kind = case
    plain = ready(request.getfixturevalue(base), form, TOP[kind], tmp_path / "plain", torch.float32)
    plain.run()
    cached = ready(request.getfixturevalue(base), form, TOP[kind], tmp_path / "cached", torch.float32)
    assert with_cache(cached, tmp_path / "states")
    frozen = cached.model.prefix
    assert frozen is not None and len(frozen.blocks) == (2 if kind == "head" else 1)
    calls: list[int] = []
    hooks = [layer.register_forward_hook(lambda *_: calls.append(1)) for layer in frozen.blocks[0].children()]
    cached.run()
    assert hooks and not calls  # nothing inside a frozen layer was computed
    assert told(cached) == told(plain)
    for (name, one), other in zip(weights(plain.model).items(), weights(cached.model).values(), strict=True):
        assert torch.equal(one, other), name
    assert all("forward" not in block.__dict__ for block in frozen.blocks)


def test_narrow_states_are_kept_as_they_are(tiny_encoder: Path, tmp_path: Path) -> None:
    trainer = ready(tiny_encoder, "classify", TOP["last"], tmp_path / "run", torch.bfloat16)
    assert with_cache(trainer, tmp_path / "states")
    assert trainer.train.states is not None and trainer.train.states.values_Td.dtype == torch.bfloat16
    assert (tmp_path / "states" / "frozen-train" / "states.bin").stat().st_size == trainer.train.total_tokens * 32 * 2
    trainer.run()


def test_a_killed_run_goes_on_with_the_same_bits(tiny_encoder: Path, tmp_path: Path) -> None:
    whole = ready(tiny_encoder, "classify", TOP["last"], tmp_path / "run", torch.float32, keep_checkpoints=9)
    with_cache(whole, tmp_path / "states")
    whole.run()
    for later in sorted((tmp_path / "run" / "checkpoints").iterdir())[1:]:
        shutil.rmtree(later)
    again = ready(tiny_encoder, "classify", TOP["last"], tmp_path / "run", torch.float32, keep_checkpoints=9)
    events = tiny.Events()
    with_cache(again, tmp_path / "states", events)
    assert not [notice for notice in events.of(Notice) if "made again" in notice.message]
    again.run()
    events_of: Any = again.on_event
    assert 0 < len(events_of.of(Step)) < whole.steps
    for name, parameter in weights(again.model).items():
        assert torch.equal(parameter, weights(whole.model)[name]), name


@pytest.mark.parametrize("other", ["data", "weights", "layers", "damaged"])
def test_states_of_something_else_are_made_again(other: str, tiny_encoder: Path, tmp_path: Path) -> None:
    first = ready(tiny_encoder, "classify", TOP["last"], tmp_path / "first", torch.float32)
    with_cache(first, tmp_path / "states")
    choice = TOP["head"] if other == "layers" else TOP["last"]
    second = ready(tiny_encoder, "classify", choice, tmp_path / "second", torch.float32)
    assert second.validation is not None
    if other == "data":
        second.train, second.validation = second.validation, second.train
    elif other == "weights":
        with torch.no_grad():
            next(second.model.network.parameters()).mul_(1.01)
    elif other == "damaged":
        path = tmp_path / "states" / "frozen-train" / "states.bin"
        path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    events = tiny.Events()
    with_cache(second, tmp_path / "states", events)
    warnings = [notice.message for notice in events.of(Notice) if notice.level == "warning"]
    assert len(warnings) == (1 if other == "damaged" else 2) and all("made again" in line for line in warnings)
    states = second.train.states
    assert states is not None
    batch = collate(second.train, range(5), second.model.pad_id, 16)
    second.model.network.eval()
    with torch.no_grad():
        known = second.model.read(batch)
        assert torch.equal(known, second.model.read(dataclasses.replace(batch, states=None)))


def test_other_tokens_than_those_of_the_set_are_computed(tiny_encoder: Path, tmp_path: Path) -> None:
    """A batch made of another one must not begin with states of what it no longer holds."""
    trainer = ready(tiny_encoder, "classify", TOP["last"], tmp_path / "run", torch.float32)
    with_cache(trainer, tmp_path / "states")
    batch = collate(trainer.train, range(4), trainer.model.pad_id, 16)
    assert batch.known_states is not None
    other = dataclasses.replace(batch, input_ids=batch.input_ids.flip(0), attention_mask=batch.attention_mask.flip(0))
    assert other.known_states is None
    moved = batch.to(torch.device("cpu"))
    assert moved.known_states is not None


def test_frozen_layers_drop_nothing_and_the_others_do(tiny_encoder: Path, tmp_path: Path) -> None:
    trainer = ready(tiny_encoder, "classify", TOP["last"], tmp_path / "run", torch.float32)
    model = trainer.model
    model.train()
    assert model.prefix is not None and model.prefix.has_dropout()
    dropping = {name for name, m in model.network.named_modules() if isinstance(m, torch.nn.Dropout) and m.training}
    assert dropping and all("layer.1" in name or name == "dropout" for name in dropping)
    events = tiny.Events()
    with_cache(trainer, tmp_path / "states", events)
    assert any("without dropout" in notice.message for notice in events.of(Notice))


@pytest.mark.parametrize(
    "choice",
    [Full(), LoRA(rank=2), Layers(layers="first 1"), Layers(layers="embeddings"), Prompt(kind="prompt-tuning")],
    ids=["full", "lora", "first", "embeddings", "prompt"],
)
def test_without_frozen_layers_it_is_off_or_refused(choice: Parameters, tiny_decoder: Path, tmp_path: Path) -> None:
    trainer = ready(tiny_decoder, "generate", choice, tmp_path / "auto", torch.float32)
    assert trainer.model.prefix is None
    assert not with_cache(trainer, tmp_path / "states")
    asked = ready(tiny_decoder, "generate", choice, tmp_path / "on", torch.float32, cache="on")
    with pytest.raises(RecipeError, match=r"cannot be cached: there are none"):
        with_cache(asked, tmp_path / "states")


def test_a_tied_vocabulary_head_that_trains_is_an_embedding_that_trains(tiny_decoder: Path) -> None:
    assert tiny.build(tiny_decoder, "generate", Layers(layers=["last 1", "head"])).prefix is None


def test_limits(tiny_encoder: Path, tmp_path: Path) -> None:
    once = ready(tiny_encoder, "classify", TOP["last"], tmp_path / "once", torch.float32, epochs=1)
    assert not with_cache(once, tmp_path / "states")  # it would compute no less
    small = ready(tiny_encoder, "classify", TOP["last"], tmp_path / "small", torch.float32, cache_gigabytes=1e-6)
    events = tiny.Events()
    assert not with_cache(small, tmp_path / "states", events)
    assert any("more than `cache_gigabytes: 1e-06`" in notice.message for notice in events.of(Notice))
    off = ready(tiny_encoder, "classify", TOP["last"], tmp_path / "off", torch.float32, cache="off")
    assert not with_cache(off, tmp_path / "states")
    assert not (tmp_path / "states").exists()


def test_objectives_that_change_the_tokens_cannot_have_it(tiny_encoder: Path, tmp_path: Path) -> None:
    trainer = ready(tiny_encoder, "classify", TOP["last"], tmp_path / "run", torch.float32, cache="on")
    trainer.objective = objectives.make("masked-lm", trainer.settings)
    with pytest.raises(RecipeError, match="other texts in each epoch"):
        with_cache(trainer, tmp_path / "states")


def test_where_no_space_can_be_reserved_the_free_space_is_asked(
    tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """macOS and Windows have no `posix_fallocate`, and some file systems cannot do it."""
    known = ready(tiny_encoder, "classify", Head(), tmp_path / "known", torch.float32)
    assert with_cache(known, tmp_path / "states")

    def cannot(*_: Any) -> None:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    for number, change in enumerate((lambda: monkeypatch.setattr(os, "posix_fallocate", cannot, raising=False),
                                     lambda: monkeypatch.delattr(os, "posix_fallocate"))):  # fmt: skip
        change()
        trainer = ready(tiny_encoder, "classify", Head(), tmp_path / f"run{number}", torch.float32)
        assert with_cache(trainer, tmp_path / f"states{number}")
        assert trainer.train.states is not None and known.train.states is not None
        assert torch.equal(trainer.train.states.values_Td, known.train.states.values_Td)
    monkeypatch.setattr(frozen_cache, "free_bytes", lambda place: 10)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        frozen_cache._reserve(tmp_path / "full.bin", 11)
