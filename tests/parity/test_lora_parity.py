"""A LoRA layer in one operation against PEFT's own code: outputs and all gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tunesmith.parameters.fused_lora import fuse


def layer(bias: bool, dropout: float = 0.0) -> nn.Module:
    import peft

    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 10, bias=bias)).double()
    adapted = peft.get_peft_model(network, peft.LoraConfig(r=3, lora_alpha=6, target_modules="0", lora_dropout=dropout))
    for parameter in adapted.parameters():
        nn.init.normal_(parameter)
    return adapted.double()


def passed(network: Any, inputs: torch.Tensor) -> list[torch.Tensor]:
    inputs = inputs.clone().requires_grad_(True)
    output = network(inputs)
    network.zero_grad()
    (output * torch.arange(10.0, dtype=torch.float64)).sum().backward()
    return [output, inputs.grad, *(p.grad for p in network.parameters() if p.requires_grad)]  # type: ignore[list-item]


@pytest.mark.parametrize("shape", [(4, 6), (2, 5, 6)])
@pytest.mark.parametrize("bias", [True, False])
def test_outputs_and_gradients(bias: bool, shape: tuple[int, ...]) -> None:
    inputs = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    network = layer(bias)
    expected = passed(network, inputs)
    assert fuse(network) == 1
    found = passed(network, inputs)
    assert len(found) == 4
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_what_is_not_plain_lora_is_left_to_peft() -> None:
    network: Any = layer(True, dropout=0.5)
    inputs = torch.randn(4, 6, dtype=torch.float64)
    torch.manual_seed(5)
    expected = network(inputs)
    fuse(network)
    torch.manual_seed(5)
    assert torch.equal(network(inputs), expected)
    with network.disable_adapter():
        torch.testing.assert_close(network(inputs), network.base_model.model[0].base_layer(inputs))
    merged = network.eval()(inputs)
    torch.testing.assert_close(network.merge_and_unload()(inputs), merged)
