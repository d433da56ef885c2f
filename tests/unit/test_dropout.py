"""Dropout that is cheap on a processor: the law of what it drops, its gradient, and where it stands."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import tiny
from tunesmith.models.dropout import CheapDropout, cheapen, draw, dropout
from tunesmith.recipe import LoRA, Training


def test_the_share_that_is_dropped_and_the_scale_of_the_rest() -> None:
    """Of a million elements each probability drops its share, within five standard deviations."""
    torch.manual_seed(0)
    for p in (0.01, 0.1, 0.5, 0.9):
        found = dropout(torch.ones(1_000_000), p)
        zeros = float((found == 0).double().mean())
        assert abs(zeros - p) < 5 * (p * (1 - p) / 1e6) ** 0.5 + 2**-16
        assert torch.unique(found).tolist() == pytest.approx([0, 1 / (1 - p)], rel=1e-3)
        assert float(found.double().mean()) == pytest.approx(1, abs=5 * (p / (1 - p) / 1e6) ** 0.5)


def test_neighbours_fall_independently() -> None:
    """Four elements share a draw: of each pair of places in it, both fall in p squared of all cases."""
    torch.manual_seed(1)
    fallen = (dropout(torch.ones(1_000_000), 0.3) == 0).view(-1, 4).double()
    both = fallen.T @ fallen / len(fallen)
    off = both[~torch.eye(4, dtype=torch.bool)]
    torch.testing.assert_close(off, torch.full_like(off, 0.09), rtol=0, atol=0.003)


def test_all_values_of_a_draw_occur_and_are_as_likely() -> None:
    torch.manual_seed(2)
    values = draw(4_000_001).long()
    assert len(values) == 4_000_001 and int(values.min()) == -(2**15) and int(values.max()) == 2**15 - 1
    counts = torch.histc(values.double(), 256, -(2**15), 2**15)
    assert float(((counts - 15_625) ** 2 / 15_625).sum()) < 255 + 5 * (2 * 255) ** 0.5  # chi squared


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_gradient_passes_where_the_value_did(dtype: torch.dtype) -> None:
    states = torch.randn(7, 5, 3, dtype=dtype, requires_grad=True)
    found = dropout(states, 0.5)
    assert found.dtype == dtype and found.shape == states.shape
    found.sum().backward()
    assert states.grad is not None
    torch.testing.assert_close(found, states * states.grad)
    assert set(states.grad.flatten().tolist()) == {0.0, 2.0}


def test_the_seed_decides_and_the_generators_state_goes_on() -> None:
    ones = torch.ones(1000)
    torch.manual_seed(3)
    first, state = dropout(ones, 0.2), torch.get_rng_state()
    second = dropout(ones, 0.2)
    torch.set_rng_state(state)
    assert torch.equal(dropout(ones, 0.2), second) and not torch.equal(first, second)
    torch.manual_seed(3)
    assert torch.equal(dropout(ones, 0.2), first)


@pytest.mark.parametrize(("p", "left"), [(0.0, 100), (1.0, 0), (1e-9, 100)])
def test_nothing_all_and_next_to_nothing_are_left_to_torch(p: float, left: int) -> None:
    torch.manual_seed(4)
    assert float(dropout(torch.ones(100), p).sum()) == pytest.approx(left)


def test_it_stands_in_the_place_of_each_layer_and_rests_in_evaluation(tiny_encoder: Path) -> None:
    model = tiny.build(tiny_encoder, "classify", LoRA(rank=2, dropout=0.3), Training(dropout=0.2))
    layers = [module for module in model.network.modules() if isinstance(module, nn.Dropout)]
    assert layers and all(type(layer) is CheapDropout for layer in layers) and {0.2, 0.3} <= {x.p for x in layers}
    model.network.eval()
    states = torch.randn(3, 4)
    assert all(layer(states) is states for layer in layers)
    network = nn.Sequential(nn.Dropout(0.1), nn.AlphaDropout(0.1)).eval()
    cheapen(network)
    assert type(network[0]) is CheapDropout and not network[0].training and type(network[1]) is nn.AlphaDropout
