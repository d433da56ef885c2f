"""The chunked cross-entropy against PyTorch's, gradients included."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from tunesmith.objectives import cross_entropy
from tunesmith.objectives.cross_entropy import linear_cross_entropy, token_cross_entropy

N, D, V = 23, 8, 50


def inputs(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, D, generator=source, dtype=torch.float64).to(dtype).requires_grad_(True)
    weight = torch.randn(V, D, generator=source, dtype=torch.float64).to(dtype).requires_grad_(True)
    targets = torch.randint(0, V, (N,), generator=source)
    return hidden, weight, targets, torch.rand(N, generator=source) + 0.1


def reference(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, smoothing: float
) -> torch.Tensor:
    losses = functional.cross_entropy(hidden @ weight.T, targets, reduction="none", label_smoothing=smoothing)
    return (losses * weights).sum()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("head_trains", [True, False])
@pytest.mark.parametrize("chunk_scores", [1, 4 * V, 7 * V, 10**6], ids=["1 row", "4 rows", "7 rows", "all"])
def test_values_and_gradients(
    smoothing: float, head_trains: bool, chunk_scores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross_entropy, "CHUNK_SCORES", chunk_scores)
    hidden, weight, targets, weights = inputs()
    weight.requires_grad_(head_trains)
    found = linear_cross_entropy(hidden, weight, targets, weights, smoothing)
    (found.total * 3).backward()  # an upstream gradient other than 1
    mine = hidden.grad, weight.grad
    hidden.grad = weight.grad = None
    expected = reference(hidden, weight, targets, weights, smoothing)
    (expected * 3).backward()
    torch.testing.assert_close(found.total, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(mine[0], hidden.grad, rtol=1e-10, atol=1e-13)
    if head_trains:
        torch.testing.assert_close(mine[1], weight.grad, rtol=1e-10, atol=1e-13)
    else:
        assert mine[1] is None
    one_by_one = functional.cross_entropy(hidden @ weight.T, targets, reduction="none", label_smoothing=smoothing)
    torch.testing.assert_close(found.losses_N, one_by_one.detach(), rtol=1e-12, atol=0)
    assert torch.equal(found.correct_N, (hidden @ weight.T).argmax(-1) == targets)


def test_a_head_that_trains_below_frozen_states() -> None:
    hidden, weight, targets, weights = inputs()
    frozen = hidden.detach()
    linear_cross_entropy(frozen, weight, targets, weights).total.backward()
    mine, weight.grad = weight.grad, None
    reference(frozen, weight, targets, weights, 0.0).backward()
    torch.testing.assert_close(mine, weight.grad, rtol=1e-10, atol=1e-13)


def test_scores_that_exist_already_give_the_same() -> None:
    hidden, weight, targets, weights = inputs()
    one = linear_cross_entropy(hidden, weight, targets, weights, 0.1)
    other = token_cross_entropy(hidden @ weight.T, targets, weights, 0.1)
    torch.testing.assert_close(one.total, other.total)
    torch.testing.assert_close(one.losses_N, other.losses_N)
    assert torch.equal(one.correct_N, other.correct_N)


def test_bf16_chunks_are_added_up_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """The head's gradient over many one-row chunks stays as near to the truth as over one chunk."""
    hidden, weight, targets, weights = inputs(torch.bfloat16)
    wide_hidden, wide_weight = hidden.detach().double(), weight.detach().double().requires_grad_(True)
    reference(wide_hidden, wide_weight, targets, weights, 0.0).backward()
    assert wide_weight.grad is not None
    errors = []
    for chunk in (1, 10**6):
        monkeypatch.setattr(cross_entropy, "CHUNK_SCORES", chunk)
        weight.grad = None
        found = linear_cross_entropy(hidden, weight, targets, weights)
        found.total.backward()
        assert found.losses_N.dtype == torch.float32 and weight.grad is not None
        errors.append(float((weight.grad.double() - wide_weight.grad).norm() / wide_weight.grad.norm()))
    assert max(errors) < 0.02


def test_no_gradient_is_computed_where_none_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation must not pay for the backward pass of a head that trains."""

    def refuse(*_: object) -> torch.Tensor:
        raise AssertionError("a gradient was computed")

    hidden, weight, targets, weights = inputs()
    expected = reference(hidden, weight, targets, weights, 0.0)
    monkeypatch.setattr(cross_entropy, "_gradient", refuse)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            torch.testing.assert_close(linear_cross_entropy(hidden, weight, targets, weights).total, expected.detach())
