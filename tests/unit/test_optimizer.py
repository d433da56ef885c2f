"""The optimizer against torch's own, its masters, and the schedule against values worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tunesmith.errors import ResourceError
from tunesmith.recipe import Training
from tunesmith.training import compiling
from tunesmith.training.optimizer import MasterAdamW, Schedule


def network(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3)).to(dtype)


def backward(model: nn.Module, seed: int) -> None:
    inputs = torch.randn(4, 5, generator=torch.Generator().manual_seed(seed))
    model(inputs.to(next(model.parameters()).dtype)).float().square().sum().backward()


def test_updates_equal_those_of_torch() -> None:
    """Five updates in fp32: decay on matrices only, the gradient scaled as torch's would be."""
    mine, theirs = network(torch.float32), network(torch.float32)
    optimizer = MasterAdamW(mine.named_parameters(), Training(weight_decay=0.1, betas=(0.8, 0.95), epsilon=1e-6))
    matrices = [p for p in theirs.parameters() if p.ndim == 2]
    vectors = [p for p in theirs.parameters() if p.ndim < 2]
    reference = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        lr=1e-2, betas=(0.8, 0.95), eps=1e-6, foreach=False, fused=False,
    )  # fmt: skip
    for step in range(5):
        backward(mine, step)
        optimizer.accumulate()
        optimizer.step(1e-2, 0.5)
        backward(theirs, step)
        for p in theirs.parameters():
            assert p.grad is not None
            p.grad *= 0.5
        reference.step()
        reference.zero_grad()
    for one, other in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_tiny_updates_are_not_lost_in_bf16() -> None:
    """200 updates of 1e-5 x the sign move a weight of 1 by 2e-3: bf16 alone would stay at 1 for ever."""
    weight = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    bare = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    optimizer = MasterAdamW(iter([("w", weight)]), Training(weight_decay=0.0))
    plain = torch.optim.AdamW([bare], lr=1e-4, weight_decay=0.0)
    for _ in range(200):
        weight.grad = torch.ones_like(weight)
        optimizer.accumulate()
        optimizer.step(1e-4, 1.0)
        bare.grad = torch.ones_like(bare)
        plain.step()
    assert torch.equal(bare.detach(), torch.ones(4, dtype=torch.bfloat16))
    torch.testing.assert_close(optimizer.masters[0].detach(), torch.full((4,), 0.98), rtol=1e-4, atol=0)
    torch.testing.assert_close(weight.detach(), torch.full((4,), 0.98).to(torch.bfloat16), rtol=0, atol=0)


def test_gradients_of_micro_batches_are_added_in_fp32() -> None:
    """1 + 1/512 is 1 in bf16; over 512 micro-batches it must come to 2."""
    weight = nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
    optimizer = MasterAdamW(iter([("w", weight)]), Training())
    for value in (1.0, *[1 / 512] * 512):
        weight.grad = torch.full((1,), value, dtype=torch.bfloat16)
        optimizer.accumulate()
        assert weight.grad is None
    assert float(optimizer.gradients()[0]) == 2.0


def test_fp32_weights_are_their_own_masters() -> None:
    model = network(torch.float32)
    optimizer = MasterAdamW(model.named_parameters(), Training())
    assert all(m is p for m, p in zip(optimizer.masters, model.parameters(), strict=True))
    assert not any(name.startswith("master.") for name in optimizer.state())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_going_on_from_a_state_is_exact(dtype: torch.dtype) -> None:
    def trained(steps: range, model: nn.Module, optimizer: MasterAdamW) -> None:
        for step in steps:
            backward(model, step)
            optimizer.accumulate()
            optimizer.step(1e-3 * (step + 1), 0.7)

    straight = network(dtype)
    optimizer = MasterAdamW(straight.named_parameters(), Training())
    trained(range(3), straight, optimizer)
    kept = {name: tensor.clone() for name, tensor in optimizer.state().items()}
    weights = {name: p.detach().clone() for name, p in straight.named_parameters()}
    trained(range(3, 6), straight, optimizer)

    other = network(dtype)
    again = MasterAdamW(other.named_parameters(), Training())
    with torch.no_grad():
        for name, p in other.named_parameters():
            p.copy_(weights[name])
    again.load_state(kept)
    trained(range(3, 6), other, again)
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(tensor, again.state()[name]) for name, tensor in optimizer.state().items())


def test_discarding_forgets_all_gradients() -> None:
    model = network(torch.bfloat16)
    optimizer = MasterAdamW(model.named_parameters(), Training())
    backward(model, 0)
    optimizer.accumulate()
    assert optimizer.gradients()
    optimizer.discard()
    assert not optimizer.gradients()


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        # ten updates, two of warm-up, peak 8
        ("constant", [4, 8, 8, 8, 8, 8, 8, 8, 8, 8]),
        ("linear", [4, 8, 8, 7, 6, 5, 4, 3, 2, 1]),
        ("cosine", [4, 8, 8, 7.695518, 6.828427, 5.530734, 4, 2.469266, 1.171573, 0.304482]),
    ],
)
def test_the_schedule_by_hand(kind: str, expected: list[float]) -> None:
    schedule = Schedule(peak=8.0, steps=10, warmup=0.2, kind=kind)
    assert [schedule.at(step) for step in range(10)] == pytest.approx(expected, rel=1e-6)


def test_a_schedule_without_warm_up_begins_at_its_peak() -> None:
    assert Schedule(peak=3.0, steps=4, warmup=0.0, kind="linear").at(0) == 3.0
    assert Schedule(peak=3.0, steps=1, warmup=0.1, kind="linear").at(0) == 3.0


def quadratic(seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(64, 64)


def after(model: nn.Linear, optimizer: MasterAdamW, steps: range) -> torch.Tensor:
    """The weights after updates on batches of their own."""
    for step in steps:
        inputs = torch.randn(8, 64, generator=torch.Generator().manual_seed(step))
        (model(inputs) - inputs).square().mean().backward()
        optimizer.accumulate()
        optimizer.step(1e-3, 1.0)
    return model.weight.detach().clone()


def test_moments_in_8_bits_take_a_quarter_and_lead_to_the_same_place() -> None:
    """After 30 updates of 1e-3 the weights lie where AdamW's lie, to a small part of the way that they went."""
    wide, narrow = quadratic(), quadratic()
    begun = wide.weight.detach().clone()
    plain = MasterAdamW(wide.named_parameters(), Training())
    small = MasterAdamW(narrow.named_parameters(), Training(optimizer="adamw-8bit"))
    expected, found = after(wide, plain, range(30)), after(narrow, small, range(30))
    assert not torch.equal(expected, found)
    assert torch.linalg.vector_norm(found - expected) < 0.05 * torch.linalg.vector_norm(expected - begun)
    kept = [sum(t.numel() * t.element_size() for t in o.state().values()) for o in (plain, small)]
    assert kept[1] < 0.27 * kept[0]


def test_8_bit_moments_are_put_back_as_they_were() -> None:
    unbroken, broken, resumed = quadratic(), quadratic(), quadratic(1)
    settings = Training(optimizer="adamw-8bit")
    expected = after(unbroken, MasterAdamW(unbroken.named_parameters(), settings), range(6))
    first = MasterAdamW(broken.named_parameters(), settings)
    after(broken, first, range(3))
    second = MasterAdamW(resumed.named_parameters(), settings)
    resumed.load_state_dict(broken.state_dict())
    second.load_state(first.state())
    assert torch.equal(after(resumed, second, range(3, 6)), expected)


def test_8_bits_without_a_compiler_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "has_compiler", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ResourceError, match="no C\\+\\+ compiler") as caught:
        MasterAdamW(quadratic().named_parameters(), Training(optimizer="adamw-8bit"))
    assert caught.value.fix is not None and "optimizer: adamw" in caught.value.fix
