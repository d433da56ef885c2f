"""Our attention against PyTorch's: values and gradients, with grouped heads, masks and softcapping."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from tunesmith.errors import UsageError
from tunesmith.models import attention, packing
from tunesmith.models.attention import batched_attention

B, S, H = 3, 7, 8


def tensors(heads: int, keys: int, length: int, total: int) -> list[torch.Tensor]:
    source = torch.Generator().manual_seed(0)
    shapes = ((B, heads, length, H), (B, keys, total, H), (B, keys, total, H))
    return [torch.randn(shape, generator=source, dtype=torch.float64).requires_grad_(True) for shape in shapes]


def reference(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **keys: Any) -> torch.Tensor:
    group = query.shape[1] // key.shape[1]
    repeated = (each.repeat_interleave(group, dim=1) for each in (key, value))
    return functional.scaled_dot_product_attention(query, *repeated, **keys).transpose(1, 2)


def assert_same(mine: torch.Tensor, theirs: torch.Tensor, inputs: list[torch.Tensor], rows: Any = slice(None)) -> None:
    """Values and gradients, on the rows that are no padding."""
    upstream = torch.randn(mine.shape, generator=torch.Generator().manual_seed(1), dtype=mine.dtype)
    torch.testing.assert_close(mine[rows], theirs[rows], rtol=1e-10, atol=1e-12)
    found = torch.autograd.grad((mine[rows] * upstream[rows]).sum(), inputs, retain_graph=True)
    expected = torch.autograd.grad((theirs[rows] * upstream[rows]).sum(), inputs)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def module(is_causal: bool) -> nn.Module:
    layer = nn.Module()
    layer.is_causal = is_causal
    return layer


HEADS = pytest.mark.parametrize(("heads", "keys"), [(4, 4), (4, 2), (6, 1)], ids=["each", "grouped", "one"])


@HEADS
def test_causal_without_a_mask(heads: int, keys: int) -> None:
    inputs = tensors(heads, keys, S, S)
    mine, weights = batched_attention(module(True), *inputs, None)
    assert weights is None and mine.shape == (B, S, heads, H)
    assert_same(mine, reference(*inputs, is_causal=True), inputs)


@HEADS
def test_both_ways_without_a_mask(heads: int, keys: int) -> None:
    inputs = tensors(heads, keys, S, S)
    assert_same(batched_attention(module(False), *inputs, None)[0], reference(*inputs), inputs)


WIDE, MASKED = (
    packing.Rectangle(0, 2, 6, None),
    packing.Rectangle(12, 3, 4, torch.tensor([[True] * 4, [True, True, True, False], [True, False, False, False]])),
)
TEXTS = [(0, 6), (6, 6), (12, 4), (16, 3), (20, 1)]
"""Where the texts of these rectangles begin in the long row, and their lengths."""


def long_row(heads: int, keys: int, like: torch.dtype = torch.float64) -> list[torch.Tensor]:
    """Queries, keys and values of 24 tokens as a model lays them out, token by token: (1, H or K, T, h) views."""
    source = torch.Generator().manual_seed(0)
    made = [torch.randn(1, 24, count, H, generator=source, dtype=like) for count in (heads, keys, keys)]
    return [states.requires_grad_(True).transpose(1, 2) for states in made]


def packed(layer: nn.Module, inputs: list[torch.Tensor], **keys: Any) -> torch.Tensor:
    with packing.laid_out(packing.Layout([WIDE, MASKED], torch.arange(24), torch.ones(1, 24, dtype=torch.bool))):
        return batched_attention(layer, *inputs, None, **keys)[0]


@HEADS
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("causal", [True, False])
def test_texts_in_one_long_row_see_themselves_alone(heads: int, keys: int, causal: bool, softcap: float | None) -> None:
    inputs = long_row(heads, keys)
    real = torch.tensor([number for start, length in TEXTS for number in range(start, start + length)])
    alone = [
        batched_attention(module(causal), *(each[:, :, a : a + n] for each in inputs), None, softcap=softcap)[0]
        for a, n in TEXTS
    ]
    mine = packed(module(causal), inputs, softcap=softcap)
    assert mine.shape == (1, 24, heads, H)
    upstream = torch.randn(1, len(real), heads, H, generator=torch.Generator().manual_seed(1), dtype=mine.dtype)
    torch.testing.assert_close(mine[:, real], torch.cat(alone, 1), rtol=1e-10, atol=1e-12)
    found = torch.autograd.grad((mine[:, real] * upstream).sum(), inputs)
    expected = torch.autograd.grad((torch.cat(alone, 1) * upstream).sum(), inputs)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("learning", ["qkv", "q", "k", "v"])
def test_the_gradient_that_is_written_out(dropout: float, learning: str, softcap: float | None) -> None:
    """Against finite differences, with the same elements dropped each time; also where not all of the states learn."""
    inputs = [each.detach().requires_grad_(name in learning) for each, name in zip(long_row(4, 2), "qkv", strict=True)]
    layer = module(False).train()

    def attend(*states: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(0)
        return packed(layer, list(states), dropout=dropout, softcap=softcap)

    assert torch.autograd.gradcheck(attend, inputs)
    if dropout:
        assert not torch.equal(attend(*inputs), packed(module(False).eval(), inputs, dropout=dropout, softcap=softcap))
    once = attend(*inputs)
    again = checkpoint(attend, *inputs, use_reentrant=False)  # as recomputed activations are
    wanted = [each for each in inputs if each.requires_grad]
    for one, other in zip(
        torch.autograd.grad(once.sum(), wanted), torch.autograd.grad(again.sum(), wanted), strict=True
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize("few", [0, attention.FEW_SCORES], ids=["narrow", "wide"])
def test_narrow_states_of_few_tokens_may_be_computed_in_fp32(few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values and gradients are those of fp32 rounded once, or of bf16 throughout; both in bf16."""
    monkeypatch.setattr(attention, "FEW_SCORES", few)
    inputs = long_row(4, 2, torch.bfloat16)
    wide = [each.detach().float().requires_grad_(True) for each in inputs]
    mine, theirs = packed(module(True), inputs), packed(module(True), wide)
    found = [mine, *torch.autograd.grad(mine.sum(), inputs)]
    expected = [theirs, *torch.autograd.grad(theirs.sum(), wide)]
    assert all(one.dtype == torch.bfloat16 for one in found)
    rounded = [torch.equal(one, other.bfloat16()) for one, other in zip(found, expected, strict=True)]
    assert all(rounded) if few else not all(rounded)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.float(), other, rtol=0.05, atol=0.05)


def test_rectangles_that_do_not_cover_the_row_are_refused() -> None:
    query, key, value = long_row(4, 4)
    with pytest.raises(ValueError, match="24 tokens for 20 queries"):
        packed(module(False), [query[:, :, :20], key, value])


@HEADS
def test_padding_and_causal_mask(heads: int, keys: int) -> None:
    inputs = tensors(heads, keys, S, S)
    lengths = torch.tensor([S, 4, 1])
    real = torch.arange(S)[None] < lengths[:, None]
    mask = (real[:, None, :] & torch.ones(S, S, dtype=torch.bool).tril())[:, None]
    mine = batched_attention(module(True), *inputs, mask)[0]
    assert_same(mine, reference(*inputs, attn_mask=mask), inputs, rows=real)


def test_behind_a_cache() -> None:
    """Queries are the last of the keys: each sees what is before it and itself."""
    inputs = tensors(4, 2, 3, S)
    mask = torch.ones(3, S, dtype=torch.bool).tril(S - 3)
    assert_same(batched_attention(module(True), *inputs, None)[0], reference(*inputs, attn_mask=mask), inputs)


def test_a_single_query_sees_all_keys() -> None:
    inputs = tensors(4, 2, 1, S)
    assert_same(batched_attention(module(True), *inputs, None)[0], reference(*inputs), inputs)


def test_scaling_is_obeyed() -> None:
    inputs = tensors(4, 2, S, S)
    mine = batched_attention(module(False), *inputs, None, scaling=0.3)[0]
    assert_same(mine, reference(*inputs, scale=0.3), inputs)


def test_a_row_that_sees_nothing_gives_no_nan() -> None:
    """Padding on the left leaves such rows; one NaN would reach the whole batch."""
    inputs = tensors(2, 2, S, S)
    mask = torch.zeros(B, 1, S, S, dtype=torch.bool)
    assert batched_attention(module(True), *inputs, mask)[0].isfinite().all()


def test_softcapping_as_gemma_2_has_it() -> None:
    query, key, value = tensors(4, 4, S, S)
    scores = torch.tanh(query @ key.transpose(2, 3) * H**-0.5 / 0.5) * 0.5
    expected = (torch.softmax(scores, -1) @ value).transpose(1, 2)
    mine = batched_attention(module(False), query, key, value, None, softcap=0.5)[0]
    assert_same(mine, expected, [query, key, value])


def test_attention_sinks_are_refused_not_left_out() -> None:
    with pytest.raises(UsageError, match="sinks"):
        batched_attention(module(True), *tensors(4, 4, S, S), None, s_aux=torch.zeros(4))


def test_dropout_only_while_training() -> None:
    inputs = tensors(4, 4, S, S)
    layer = module(True)
    plain = batched_attention(layer.eval(), *inputs, None, dropout=0.5)[0]
    torch.testing.assert_close(plain, batched_attention(layer, *inputs, None)[0])
    torch.manual_seed(0)
    dropped = torch.stack([batched_attention(layer.train(), *inputs, None, dropout=0.5)[0] for _ in range(2000)])
    assert not torch.allclose(dropped[0], plain)
    torch.testing.assert_close(dropped.mean(0), plain, rtol=0, atol=0.35)  # unbiased


@pytest.mark.parametrize("kind", ["gemma2", "mistral", "qwen3", "gpt_neox", "gpt2"])
def test_whole_models_give_the_logits_of_eager_attention(kind: str) -> None:
    """What a family passes to its attention (windows, softcapping, norms, biases) arrives."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from tunesmith.models import attention

    attention.register()
    sizes = {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "max_position_embeddings": 64, "pad_token_id": 0}
    own: dict[str, dict[str, Any]] = {
        "gemma2": {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4, "attn_logit_softcapping": 0.2},
        "mistral": {"num_key_value_heads": 2, "sliding_window": 4},
        "qwen3": {"num_key_value_heads": 2, "head_dim": 8},
        "gpt_neox": {},
        "gpt2": {},
    }
    config = AutoConfig.for_model(kind, **sizes, **own[kind])
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").double().eval()
    for parameter in model.parameters():
        parameter.data.mul_(4)  # far from uniform attention
    ids = torch.randint(1, 60, (3, 16), generator=torch.Generator().manual_seed(0))
    lengths = (16, 9, 5)
    mask = torch.arange(16)[None] < torch.tensor(lengths)[:, None]
    with torch.no_grad():  # each row alone: eager attention gives NaN for padding outside a window
        expected = torch.cat([model(input_ids=ids[n : n + 1, :length]).logits[0] for n, length in enumerate(lengths)])
        model.set_attn_implementation(attention.NAME)
        found = model(input_ids=ids, attention_mask=mask.long()).logits
        bare = model(input_ids=ids).logits  # as the loop asks: rows are padded on the right, so no mask is needed
    torch.testing.assert_close(found[mask], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(bare[mask], expected, rtol=1e-4, atol=1e-4)
