"""Weights in 4 bits: each group of 32 shares a smallest value and a step, which are kept in 8 bits themselves.

The layout is that of GGUF's Q4_1 with the double quantization of QLoRA (arXiv 2305.14314, section 3): 4.53 bits a
weight. A uniform grid between the smallest and the largest value of a small group loses less than NF4's grid, made for
normal values in blocks of 64, and a base that was published in 4 bits of this kind is met almost exactly.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn
from torchao.utils import TorchAOBaseTensor

GROUP = 32
"""Weights that share a step and a smallest value."""
GROUPS = 64
"""Groups whose steps share a scale, and whose smallest values share another."""
WIDENED = 2**15
"""Groups that are widened at a time: what lies between fits the caches."""


class GroupedInt4(TorchAOBaseTensor):
    """A matrix of N weights, row by row, in G = N / 32 groups, of which 64 make one of the P parts.

    Attributes:
        packed_G16: uint8; the low halves are a group's first 16 weights, the high ones its last.
        steps_P64: uint8, a group's step over its part's ``step_scales_P1`` (fp32).
        lows_P64: int8, a group's smallest value over its part's ``low_scales_P1`` (fp32).
    """

    tensor_data_names: ClassVar = ["packed_G16", "steps_P64", "lows_P64", "step_scales_P1", "low_scales_P1"]
    tensor_attribute_names: ClassVar = ["size_", "dtype"]

    def __new__(
        cls,
        packed_G16: torch.Tensor,
        steps_P64: torch.Tensor,
        lows_P64: torch.Tensor,
        step_scales_P1: torch.Tensor,
        low_scales_P1: torch.Tensor,
        size: tuple[int, int],
        dtype: torch.dtype,
    ) -> GroupedInt4:
        """A tensor that looks like the matrix it stands for."""
        made: Any = torch.Tensor._make_wrapper_subclass(cls, size, device=packed_G16.device, dtype=dtype)
        made.packed_G16, made.steps_P64, made.lows_P64 = packed_G16, steps_P64, lows_P64
        made.step_scales_P1, made.low_scales_P1, made.size_ = step_scales_P1, low_scales_P1, size
        return made

    def dequantize(self, output_dtype: torch.dtype | None = None) -> torch.Tensor:
        """The matrix that the numbers stand for."""
        groups = len(self.packed_G16)
        steps_G1 = _from_8_bits(self.steps_P64, self.step_scales_P1, groups)
        lows_G1 = _from_8_bits(self.lows_P64, self.low_scales_P1, groups)
        wide_GW = torch.empty(groups, GROUP, dtype=output_dtype or self.dtype, device=self.device)
        for start in range(0, groups, WIDENED):
            part = slice(start, start + WIDENED)
            packed = self.packed_G16[part]
            values = torch.cat([packed & 15, packed >> 4], 1).to(torch.float32)
            wide_GW[part] = values.mul_(steps_G1[part]).add_(lows_G1[part])
        return wide_GW.view(self.shape)


def to_int4(weight: torch.Tensor) -> GroupedInt4:
    """Round a matrix, whose number of elements is a multiple of 32."""
    wide_GW = weight.detach().float().reshape(-1, GROUP)
    lows_G = wide_GW.amin(1)
    steps_P64, step_scales_P1 = _in_8_bits((wide_GW.amax(1) - lows_G) / 15, torch.uint8)
    lows_P64, low_scales_P1 = _in_8_bits(lows_G, torch.int8)
    steps_G1 = _from_8_bits(steps_P64, step_scales_P1, len(wide_GW))
    lows_G1 = _from_8_bits(lows_P64, low_scales_P1, len(wide_GW))
    # A group whose step rounds to nothing is constant: any number stands for its smallest value.
    values = ((wide_GW - lows_G1) / steps_G1.clamp_min(torch.finfo(torch.float32).tiny)).round_().clamp_(0, 15)
    values = values.to(torch.uint8)
    packed_G16 = values[:, :16] | (values[:, 16:] << 4)
    size = (int(weight.shape[0]), int(weight.shape[1]))
    return GroupedInt4(packed_G16, steps_P64, lows_P64, step_scales_P1, low_scales_P1, size, weight.dtype)


def _in_8_bits(values_G: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers (P, 64) and their scales (P, 1), fp32; the last part is filled up with zeros."""
    values_P64 = nn.functional.pad(values_G, (0, -len(values_G) % GROUPS)).view(-1, GROUPS)
    scales_P1 = values_P64.abs().amax(1, keepdim=True) / torch.iinfo(dtype).max
    return (values_P64 / scales_P1.clamp_min(torch.finfo(torch.float32).tiny)).round().to(dtype), scales_P1


def _from_8_bits(numbers_P64: torch.Tensor, scales_P1: torch.Tensor, groups: int) -> torch.Tensor:
    """What they stand for, (G, 1), without those that filled up the last part."""
    return (numbers_P64 * scales_P1).reshape(-1, 1)[:groups]


class _Product(torch.autograd.Function):
    """``x @ weight.T`` that keeps the narrow weight for the way back, not the wide one."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: GroupedInt4) -> torch.Tensor:
        ctx.weight = weight
        return nn.functional.linear(x, weight.dequantize(x.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[torch.Tensor, None]:
        (grad,) = grads
        return grad @ ctx.weight.dequantize(grad.dtype), None


@GroupedInt4.implements_torch_function(nn.functional.linear)  # type: ignore[untyped-decorator]
def _linear(function: Any, types: Any, args: Any, kwargs: Any) -> torch.Tensor:
    x, weight, bias = args[0], args[1], args[2] if len(args) > 2 else kwargs.get("bias")
    product: torch.Tensor = _Product.apply(x, weight)
    return product if bias is None else product + bias
