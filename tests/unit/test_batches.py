"""Token files, the order of the examples, and how batches are cut and padded."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiny
from tunesmith.data.batches import TokenFile, cheapest_cuts, collate, epoch_batches, micro_batches, write_tokens
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
    assert all(len(batch) == size for batch in batches[:-1])


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


def test_batches_are_drawn_whatever_the_lengths() -> None:
    """A batch of like length would weigh the tokens of short texts more: a mean over tokens has few of them."""
    lengths = np.arange(1, 4001)
    batches = epoch_batches(lengths, seed=0, epoch=0, batch_size=16)
    assert min(lengths[batch].std() for batch in batches) > 500  # of a uniform draw 1155
    assert abs(np.mean([lengths[batch].mean() for batch in batches]) - 2000) < 1


def test_rectangles_save_most_of_the_padding() -> None:
    lengths = np.random.default_rng(0).integers(50, 450, 1600)
    padded = widest = pieces = 0
    for batch in epoch_batches(lengths, seed=0, epoch=0, batch_size=32):
        widest += len(batch) * int(lengths[batch].max())
        for piece in micro_batches(lengths, batch, 4096, 1):
            padded, pieces = padded + len(piece) * int(lengths[piece].max()), pieces + 1
    assert lengths.sum() / widest < 0.6
    assert lengths.sum() / padded > 0.85 and pieces / 50 < 8


@given(widths=st.lists(st.integers(1, 40), min_size=1, max_size=9), most=st.integers(1, 120))
def test_no_other_cuts_are_cheaper(widths: list[int], most: int) -> None:
    """Against every way of cutting."""
    widths.sort(reverse=True)

    def cost(ends: tuple[int, ...]) -> float:
        total, start = 0, 0
        for end in ends:
            tokens = widths[start] * (end - start)
            total += 7 + (tokens if tokens <= most or end - start == 1 else 10**9)
            start = end
        return total

    last = len(widths)
    every = [(*cut, last) for size in range(last) for cut in itertools.combinations(range(1, last), size)]
    assert cost(tuple(cheapest_cuts(np.asarray(widths), most, 7))) == min(cost(ends) for ends in every)


@given(lengths=LENGTHS, budget=st.integers(16, 600))
def test_pieces_without_padding_keep_their_budget(lengths: np.ndarray, budget: int) -> None:
    pieces = list(micro_batches(lengths, np.arange(len(lengths)), budget, 16, False))
    assert sorted(np.concatenate(pieces).tolist()) == list(range(len(lengths)))
    assert all(lengths[piece].sum() <= budget or len(piece) == 1 for piece in pieces)


@given(lengths=LENGTHS, budget=st.integers(16, 600), multiple=st.sampled_from([1, 8, 16]))
def test_rectangles_keep_their_budget_with_padding(lengths: np.ndarray, budget: int, multiple: int) -> None:
    pieces = list(micro_batches(lengths, np.arange(len(lengths)), budget, multiple))
    assert sorted(np.concatenate(pieces).tolist()) == list(range(len(lengths)))
    for piece in pieces:
        width = -(-int(lengths[piece].max()) // multiple) * multiple
        assert len(piece) * width <= budget or len(piece) == 1
    assert int(lengths[pieces[0]].max()) == int(lengths.max())


def test_a_label_that_training_has_not_is_refused_with_its_place(tiny_encoder: Path, tmp_path: Path) -> None:
    from tunesmith.errors import DataError

    model = tiny.build(tiny_encoder, "classify")
    with pytest.raises(DataError, match="'neutral'") as caught:
        tiny.tokens(model, [{"text": "good", "label": "positive"}, {"text": "so", "label": "neutral"}], tmp_path)
    assert caught.value.where == "rows.jsonl:2"
