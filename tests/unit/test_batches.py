"""Token files, the order of the examples, and how batches are cut and padded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiny
from tunesmith.data.batches import POOL_EXAMPLES, TokenFile, collate, epoch_batches, micro_batches, write_tokens
from tunesmith.data.render import Rendered
from tunesmith.events import Listener, Notice, nobody

LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=200).map(np.asarray)


def written(folder: Path, examples: list[Rendered], on_event: Listener = nobody) -> TokenFile:
    rows = tiny.rows_of([{"n": n} for n in range(len(examples))])
    return write_tokens(rows, lambda row: examples[row.fields["n"]], folder, on_event=on_event)


def test_a_token_file_gives_back_what_was_rendered(tmp_path: Path) -> None:
    examples = [Rendered([1, 2, 3], [0.0, 0.5, 1.0]), Rendered([9], [0.25]), Rendered([7, 70_000], [0.0, 1.0])]
    data = written(tmp_path, examples)
    assert len(data) == 3 and data.total_tokens == 6 and not data.has_labels
    for n, example in enumerate(examples):
        assert data.tokens(n).tolist() == example.input_ids
        assert data.weights(n).tolist() == example.loss_weights
    assert data.loss_weight.tolist() == [1.5, 0.25, 1.0]
    assert str(data.origins[1]) == "rows.jsonl:2"


def test_labels_are_kept(tmp_path: Path) -> None:
    data = written(tmp_path, [Rendered([1, 2], label=0), Rendered([3], label=4)])
    assert data.has_labels and [data.label(0), data.label(1)] == [0, 4]
    batch = collate(data, [1, 0], pad_id=0)
    assert batch.labels is not None and batch.labels.tolist() == [4, 0] and batch.loss_weights is None


def test_further_columns_are_kept_and_padded_each_to_its_own_width(tmp_path: Path) -> None:
    examples = [
        Rendered([1, 2, 3], label=0, extra={"tags": [4, 0, 5], "targets": [0.5], "summary": []}),
        Rendered([9], label=1, extra={"tags": [7], "targets": [1.0], "summary": [8, 6]}),
    ]
    batch = collate(written(tmp_path, examples), [1, 0], pad_id=0, multiple_of=8)
    assert batch.input_ids.shape == (2, 8)
    assert batch.extra["tags"].tolist() == [[7, -1, -1], [4, 0, 5]]
    assert batch.extra["targets"].tolist() == [[1.0], [0.5]] and batch.extra["targets"].is_floating_point()
    assert batch.extra["summary"].tolist() == [[8, 6], [-1, -1]]


def test_cut_examples_are_counted_and_said(tmp_path: Path) -> None:
    events = tiny.Events()
    data = written(tmp_path, [Rendered([1], [1.0], cut_tokens=3), Rendered([1], [1.0])], events)
    assert data.cut_examples == 1
    (notice,) = events.of(Notice)
    assert notice.level == "warning" and "1 of 2 examples" in notice.message


def test_rows_are_padded_on_the_right_without_loss(tmp_path: Path) -> None:
    """Padding is masked by length: the pad token inside an example (id 5) stays visible and carries its loss."""
    data = written(tmp_path, [Rendered([5, 6, 5], [0.0, 1.0, 1.0]), Rendered([6], [0.0])])
    batch = collate(data, [0, 1], pad_id=5, multiple_of=4)
    assert batch.input_ids.tolist() == [[5, 6, 5, 5], [6, 5, 5, 5]]
    assert batch.attention_mask.tolist() == [[True, True, True, False], [True, False, False, False]]
    assert batch.loss_weights is not None
    assert batch.loss_weights.tolist() == [[0, 1, 1, 0], [0, 0, 0, 0]]
    assert batch.tokens == 4 and batch.rows == [0, 1]


@given(lengths=LENGTHS, seed=st.integers(0, 5), epoch=st.integers(0, 3), size=st.integers(1, 64))
def test_an_epoch_has_each_example_once(lengths: np.ndarray, seed: int, epoch: int, size: int) -> None:
    batches = epoch_batches(lengths, seed=seed, epoch=epoch, batch_size=size)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    assert all(len(batch) <= size for batch in batches)
    assert sum(len(batch) < size for batch in batches) <= 1 + len(lengths) // POOL_EXAMPLES


@given(lengths=LENGTHS, budget=st.integers(16, 600))
def test_batches_by_tokens_keep_their_budget(lengths: np.ndarray, budget: int) -> None:
    batches = epoch_batches(lengths, seed=0, epoch=0, batch_tokens=budget)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    assert all(lengths[batch].sum() <= budget or len(batch) == 1 for batch in batches)


def test_the_order_follows_from_seed_and_epoch_alone() -> None:
    lengths = np.random.default_rng(0).integers(1, 100, 300)

    def order(seed: int, epoch: int) -> list[int]:
        return np.concatenate(epoch_batches(lengths, seed=seed, epoch=epoch, batch_size=8)).tolist()

    assert order(3, 1) == order(3, 1)
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_bucketing_saves_most_of_the_padding() -> None:
    lengths = np.random.default_rng(0).integers(10, 500, 2000)
    batches = epoch_batches(lengths, seed=0, epoch=0, batch_size=16)
    padded = sum(len(batch) * lengths[batch].max() for batch in batches)
    assert lengths.sum() / padded > 0.95  # shuffled alone it is 0.55


def test_large_batches_are_drawn_at_random() -> None:
    """A batch as large as the pool must not be a slice of one length."""
    lengths = np.arange(1, 4001)
    batches = epoch_batches(lengths, seed=0, epoch=0, batch_size=2000)
    assert all(abs(lengths[batch].mean() - 2000) < 150 for batch in batches)


@given(lengths=LENGTHS, budget=st.integers(16, 600), multiple=st.sampled_from([1, 8, 16]))
def test_rectangles_keep_their_budget_with_padding(lengths: np.ndarray, budget: int, multiple: int) -> None:
    pieces = list(micro_batches(lengths, np.arange(len(lengths)), budget, multiple))
    assert sorted(np.concatenate(pieces).tolist()) == list(range(len(lengths)))
    for piece in pieces:
        width = -(-int(lengths[piece].max()) // multiple) * multiple
        assert len(piece) * width <= budget or len(piece) == 1
    assert int(lengths[pieces[0]].max()) == int(lengths.max())  # the largest first: memory fails at once or never


def test_a_label_that_training_has_not_is_refused_with_its_place(tiny_encoder: Path, tmp_path: Path) -> None:
    from tunesmith.errors import DataError

    model = tiny.build(tiny_encoder, "classify")
    with pytest.raises(DataError, match="'neutral'") as caught:
        tiny.tokens(model, [{"text": "good", "label": "positive"}, {"text": "so", "label": "neutral"}], tmp_path)
    assert caught.value.where == "rows.jsonl:2"
