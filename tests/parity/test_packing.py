"""Batches computed without padding give the hidden states and gradients of padded ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tunesmith.data.batches import cheapest_cuts
from tunesmith.models import attention, packing

LENGTHS = (16, 9, 5, 9, 1, 15)
SIZES = {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "max_position_embeddings": 64, "pad_token_id": 0}
DECODERS: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2},
    "gemma2": {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 40, "attn_logit_softcapping": 0.2},
    "mistral": {"num_key_value_heads": 2, "sliding_window": 40},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 8},
    "gpt_neox": {},
    "gpt2": {},
}
ENCODERS: dict[str, dict[str, Any]] = {"bert": {}, "roberta": {}, "xlm-roberta": {}}


def network(kind: str, own: dict[str, Any]) -> nn.Module:
    from transformers import AutoConfig, AutoModel

    attention.register()
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SIZES, **own)
    model = AutoModel.from_config(config, attn_implementation=attention.NAME).double().eval()
    for parameter in model.parameters():
        parameter.data.mul_(3)  # far from uniform attention
    return model


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(0)
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    return torch.randint(1, 60, mask.shape, generator=source).masked_fill(~mask, 0), mask


def gradients(model: nn.Module, hidden: torch.Tensor) -> dict[str, torch.Tensor]:
    upstream = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(1), dtype=hidden.dtype)
    model.zero_grad()
    (hidden * upstream).sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("overhead", [0, 8, 10**6], ids=["many", "some", "one"])
@pytest.mark.parametrize("kind", [*DECODERS, *ENCODERS])
def test_the_same_as_with_padding(kind: str, overhead: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "RECTANGLE_COST", overhead)
    model = network(kind, (DECODERS | ENCODERS)[kind])
    ids, mask = batch()
    padded = model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    padded = padded.masked_fill(~mask[..., None], 0.0)
    expected = gradients(model, padded)
    packed = packing.hidden_states(model, ids, mask)
    torch.testing.assert_close(packed, padded, rtol=1e-4, atol=1e-4)  # Gemma's norm computes in fp32, whatever it gets
    found = gradients(model, packed)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        difference = torch.linalg.vector_norm(found[name] - gradient)
        assert difference <= 1e-5 * torch.linalg.vector_norm(gradient) + 1e-8, name


def test_windows_limit_what_is_packed() -> None:
    assert packing.longest_row(network("llama", {}), attention.NAME) == 64
    assert packing.longest_row(network("mistral", DECODERS["mistral"]), attention.NAME) == 20


def test_a_model_that_mixes_neighbours_outside_attention_is_padded() -> None:
    """A convolution over the row would see the text before: the trial finds it."""
    model: Any = network("llama", {})
    convolution = nn.Conv1d(32, 32, 3, padding=2, groups=32).double()

    def mix(_: nn.Module, inputs: tuple[Any, ...], hidden_BSd: torch.Tensor) -> torch.Tensor:
        return hidden_BSd + convolution(hidden_BSd.transpose(1, 2))[..., :-2].transpose(1, 2)

    model.layers[0].mlp.register_forward_hook(mix)
    assert packing.longest_row(model, attention.NAME) == 0


def test_other_attention_is_padded() -> None:
    model: Any = network("llama", {})
    model.set_attn_implementation("eager")
    assert packing.longest_row(model, attention.NAME) == 0


def test_rows_of_one_length_need_no_mask() -> None:
    lengths, order = torch.tensor([4, 4, 4]), torch.arange(3)
    (one,), source, position = packing._lay_out(lengths, order, torch.ones(3, 4, dtype=torch.bool))
    assert (one.rows, one.width, one.mask) == (3, 4, None)
    assert source.tolist() == list(range(12)) and position.tolist() == [0, 1, 2, 3] * 3
    assert cheapest_cuts(lengths.numpy(), None, 0)[-1] == 3
