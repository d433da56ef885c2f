"""Weights as small integers with scales, and back.

Symmetric around zero: a weight is its integer times the scale of its row (8 bits) or of its group in the row (4 bits).
The scale is the largest magnitude over half the range, which is what torchao's fake quantization learns with too, so
what a model was trained for is what it gets.
"""

from __future__ import annotations

import torch

SMALLEST_SCALE = 1e-8


def to_int8(weight_NK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Integers (N, K) int8 and a scale for each row (N,) fp32."""
    wide = weight_NK.detach().float()
    scale_N = (wide.abs().amax(1) / 127.5).clamp_(min=SMALLEST_SCALE)
    return (wide / scale_N[:, None]).round_().clamp_(-128, 127).to(torch.int8), scale_N


def to_int4(weight_NK: torch.Tensor, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two integers a byte, (N, K/2) int8, and a scale for each group, (N, K/group) fp16.

    The first of two weights lies in the low bits, and 8 stands for zero.
    """
    rows, width = weight_NK.shape
    groups = weight_NK.detach().float().view(rows, width // group, group)
    scale = (groups.abs().amax(2) / 7.5).clamp_(min=2.0**-14).to(torch.float16)  # 2^-14: its smallest normal number
    values = (groups / scale.float()[:, :, None]).round_().clamp_(-8, 7).add_(8).to(torch.uint8).view(rows, width)
    return (values[:, 0::2] | (values[:, 1::2] << 4)).view(torch.int8), scale


def unpacked(packed: torch.Tensor) -> torch.Tensor:
    """Integers -8 to 7, (N, K) int8, from two a byte."""
    low, high = packed.view(torch.uint8) & 15, packed.view(torch.uint8) >> 4
    return torch.stack([low, high], dim=2).flatten(1).to(torch.int8) - 8


def widened(values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The weights (N, K) fp32 that narrow ones stand for, whichever way they are kept."""
    if scale.dim() == 1:
        return values.float() * scale.float()[:, None]
    whole = unpacked(values).float()
    rows, groups = scale.shape
    return (whole.view(rows, groups, -1) * scale.float()[:, :, None]).flatten(1)


def to_fp8(weight_NK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """8-bit floats (N, K) e4m3 and a scale for each row (N,) fp32."""
    wide = weight_NK.detach().float()
    scale_N = (wide.abs().amax(1) / torch.finfo(torch.float8_e4m3fn).max).clamp_(min=SMALLEST_SCALE)
    return (wide / scale_N[:, None]).to(torch.float8_e4m3fn), scale_N
