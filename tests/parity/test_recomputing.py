"""Activations that are computed again: the same updates to the bit, from less memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from tunesmith.errors import ResourceError
from tunesmith.events import Notice
from tunesmith.models import recomputing
from tunesmith.models.model import Form, Model
from tunesmith.recipe import Full, LoRA, Parameters, Prompt, Training

ROWS: dict[str, list[dict[str, Any]]] = {
    "classify": [{"text": f"a {'very ' * (n % 9)}lovely film", "label": tiny.LABELS[n % 2]} for n in range(12)],
    "tag": tiny.tagged_rows(12),
    "generate": tiny.question_rows(12),
    "seq2seq": tiny.question_rows(12),
}
CASES: list[tuple[Form, Parameters]] = [
    ("classify", Full()),
    ("tag", LoRA(rank=2, dropout=0.2)),
    ("generate", Full()),
    ("generate", LoRA(rank=2)),
    ("seq2seq", Full()),
]


@contextmanager
def kept_bytes() -> Iterator[list[int]]:
    """Collects the size of everything that a forward pass keeps for the backward pass."""
    sizes: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        sizes.append(tensor.numel() * tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield sizes


def folder_of(form: Form, request: pytest.FixtureRequest) -> Path:
    name = {"classify": "tiny_encoder", "tag": "tiny_encoder", "generate": "tiny_decoder", "seq2seq": "tiny_t5"}[form]
    return Path(request.getfixturevalue(name))


def updated(folder: Path, form: Form, parameters: Parameters, place: Path, again: bool) -> tuple[Model, int]:
    """A model after three updates with dropout, and what a forward pass kept for the backward pass."""
    torch.manual_seed(0)
    training = Training(dropout=0.3)
    model = tiny.build(folder, form, parameters, training, dtype=torch.float32)
    if again:
        assert recomputing.obstacle(model) is None
        recomputing.begin(model)
    trainer = tiny.trainer(model, ROWS[form], place, batch_size=6, max_steps=3, micro_tokens=64)
    model.train()
    with kept_bytes() as sizes:
        trainer.objective.loss(model, trainer._batch(trainer.train, next(trainer._remaining_batches())))
    trainer.position.batch = 0
    trainer.run()
    return model, sum(sizes)


@pytest.mark.parametrize(("form", "parameters"), CASES)
def test_the_updates_are_the_same_to_the_bit_and_keep_less(
    form: Form, parameters: Parameters, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder = folder_of(form, request)
    plain, kept = updated(folder, form, parameters, tmp_path / "plain", again=False)
    other, less = updated(folder, form, parameters, tmp_path / "again", again=True)
    assert less < 0.6 * kept
    moved = 0
    for (name, one), (_, two) in zip(plain.trainable(), other.trainable(), strict=True):
        assert torch.equal(one, two), name
        moved += one.numel()
    assert moved == plain.trainable_parameters


def test_it_begins_by_itself_where_one_example_is_too_much(tiny_encoder: Path, tmp_path: Path) -> None:
    """Whatever a pass keeps, it runs out of memory until the layers keep only their inputs."""

    def run(folder: Path, most: int | None, **settings: Any) -> tuple[Model, tiny.Events]:
        events = tiny.Events()
        model = tiny.build(tiny_encoder, "classify", training=Training(dropout=0.0))
        trainer = tiny.trainer(
            model, ROWS["classify"], folder, events=events, batch_size=6, max_steps=2, micro_tokens=32, **settings
        )
        good = trainer.objective.loss

        def loss(model: Model, batch: Any) -> Any:
            with kept_bytes() as sizes:
                found = good(model, batch)
            if most is not None and sum(sizes) > most:
                raise torch.OutOfMemoryError("out of memory")
            return found

        trainer.objective.loss = loss  # type: ignore[method-assign]
        trainer.run()
        return model, events

    plain, _ = run(tmp_path / "plenty", None)
    scarce, events = run(tmp_path / "scarce", 60_000)
    notices = [n for n in events.of(Notice) if "computed again" in n.message]
    assert len(notices) == 1 and notices[0].fix == "set `training.recompute: on` to begin with it"
    for (_, one), (_, two) in zip(plain.trainable(), scarce.trainable(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-12)
    with pytest.raises(ResourceError, match="one example of"):
        run(tmp_path / "off", 60_000, recompute="off")
    with pytest.raises(ResourceError, match="one example of"):
        run(tmp_path / "hopeless", 1)


def test_what_cannot_be_computed_again_is_named(tiny_decoder: Path) -> None:
    model = tiny.build(tiny_decoder, "generate", Prompt(kind="prefix-tuning"))
    assert "virtual tokens" in str(recomputing.obstacle(model))
    compiled = tiny.build(tiny_decoder, "generate")
    compiled.blocks()[0].compile()
    assert recomputing.obstacle(compiled) == "the layers are compiled"


def test_compiled_layers_and_recomputing_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="compiled layers cannot recompute"):
        Training(recompute="on", compile="on")
