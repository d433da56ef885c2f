"""Word vectors that no text reads are left as they are; all others learn what they would learn in any case."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tiny
from tunesmith import objectives
from tunesmith.data.batches import SECOND_TEXT, write_tokens
from tunesmith.data.render import Rendered
from tunesmith.models.model import Model
from tunesmith.objectives.replay import Memory, Replay
from tunesmith.recipe import LoRA, Training
from tunesmith.training import read_rows

ROWS = [
    {"text": f"the film was {word} and long", "label": tiny.LABELS[n % 2]} for n, word in enumerate(["good", "bad"] * 8)
]


def table_of(model: Model) -> nn.Embedding:
    network: Any = model.transformer()
    layer = network.get_input_embeddings()
    assert isinstance(layer, nn.Embedding)
    return layer


def learned(folder: Path, out: Path, dtype: torch.dtype, **settings: Any) -> tuple[Model, Any]:
    model = tiny.build(folder, "classify", training=Training(dropout=0.0), dtype=dtype)
    trainer = tiny.trainer(model, ROWS, out, batch_size=4, epochs=3, learning_rate=1e-2, micro_tokens=16, **settings)
    trainer.run()
    return model, trainer


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_what_is_read_learns_the_same_and_the_rest_stays(
    tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    """Twelve updates of several micro-batches each, with decay, against an optimizer of the whole table."""
    before = table_of(tiny.build(tiny_encoder, "classify", dtype=dtype)).weight.detach().clone()
    mine, trainer = learned(tiny_encoder, tmp_path / "some", dtype, weight_decay=0.1)
    ((name, table),) = trainer.tables.items()
    assert not table.layer.sparse, "put back after the run"
    monkeypatch.setattr(read_rows, "WORTHWHILE_SHARE", 0.0)
    theirs, plain = learned(tiny_encoder, tmp_path / "all", dtype, weight_decay=0.1)
    assert not plain.tables
    found, expected = table_of(mine).weight.detach(), table_of(theirs).weight.detach()
    unread = torch.ones(len(found), dtype=torch.bool).index_fill(0, table.ids_A, False)
    assert 0 < len(table.ids_A) < len(found) / 2
    assert torch.equal(found[unread], before[unread])
    assert not torch.equal(expected[unread], before[unread]), "decay alone"
    rounding = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.02}[dtype]
    torch.testing.assert_close(found[~unread], expected[~unread], rtol=rounding, atol=rounding)
    assert not torch.equal(found[~unread], before[~unread])
    state = trainer.optimizer.state()
    assert state[f"exp_avg.{name}"].shape == state[f"master.{name}"].shape == (len(table.ids_A), found.shape[1])


def test_no_gradient_of_an_update_is_left_for_the_next(tiny_encoder: Path, tmp_path: Path) -> None:
    model = tiny.build(tiny_encoder, "classify", training=Training(dropout=0.0))
    trainer = tiny.trainer(model, ROWS, tmp_path, batch_size=4)
    ((name, table),) = trainer.tables.items()
    master = trainer.optimizer.masters[trainer.optimizer.names.index(name)]
    first, second = table.ids_A[1:3], table.ids_A[3:4]
    for ids, expected in ((first, 2), (second, 1)):
        for _ in range(2):
            table_of(model)(ids).sum().backward()
            trainer.optimizer.accumulate()
        assert master.grad is not None
        assert torch.equal(master.grad.sum(1), torch.isin(table.ids_A, ids) * 2.0 * master.shape[1])
        assert int(master.grad.any(1).sum()) == expected
        trainer.optimizer.discard()
        assert master.grad is None


def test_a_gradient_where_no_text_reads_is_no_small_matter(tiny_encoder: Path, tmp_path: Path) -> None:
    model = tiny.build(tiny_encoder, "classify")
    trainer = tiny.trainer(model, ROWS, tmp_path)
    (table,) = trainer.tables.values()
    other = next(n for n in range(table.layer.num_embeddings) if n not in table.ids_A.tolist())
    for sparse in (False, True):
        table.layer.sparse = sparse
        table.layer(torch.tensor([other])).sum().backward()
        with pytest.raises(RuntimeError, match="no text reads it"):
            trainer.optimizer.accumulate()
        trainer.optimizer.discard()


def test_tables_that_are_used_otherwise_are_trained_whole(
    tiny_encoder: Path, tiny_decoder: Path, tmp_path: Path
) -> None:
    tied = tiny.build(tiny_decoder, "generate")
    assert not tiny.trainer(tied, tiny.question_rows(4), tmp_path / "tied").tables
    frozen = tiny.build(tiny_encoder, "classify", LoRA())
    assert not tiny.trainer(frozen, ROWS, tmp_path / "frozen").tables
    model = tiny.build(tiny_encoder, "classify")
    assert not tiny.trainer(model, ROWS, tmp_path / "narrow", optimizer="adamw-8bit").tables
    assert read_rows.read_rows(model, None) == {}


def test_the_second_text_of_a_pair_is_read_too(tiny_encoder: Path, tmp_path: Path) -> None:
    model = tiny.build(tiny_encoder, "classify")
    pair = Rendered([5, 6], label=0, extra={SECOND_TEXT: [7, 8, 9], "margin": [0.0]})
    data = write_tokens(tiny.rows_of([{}]), lambda row: pair, tmp_path)
    (table,) = read_rows.read_rows(model, [data]).values()
    assert {5, 6, 7, 8, 9} <= set(table.ids_A.tolist())


def test_the_texts_of_earlier_tasks_are_read_too(tiny_encoder: Path, tmp_path: Path) -> None:
    model = tiny.build(tiny_encoder, "classify")
    own = tiny.tokens(model, ROWS, tmp_path / "own")
    earlier = tiny.tokens(model, [{"text": "a dreary mess", "label": "negative"}] * 4, tmp_path / "earlier")
    inner = objectives.make("classify", Training())
    replay = Replay(inner, [Memory(inner, model, earlier)], 0.5, 0)
    (alone,) = read_rows.read_rows(model, inner.texts(own)).values()
    (together,) = read_rows.read_rows(model, replay.texts(own)).values()
    assert set(alone.ids_A.tolist()) < set(together.ids_A.tolist())
    # (a model that fills in masks is shown any word)
    masked = objectives.make("masked-lm", Training())
    assert Replay(inner, [Memory(masked, model, earlier)], 0.5, 0).texts(own) is None
