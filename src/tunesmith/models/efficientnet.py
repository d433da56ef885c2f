"""EfficientNet-Lite0 under the names of its published weights: what a picture looks like, in 1,280 numbers.

Tan & Le 2019, arXiv 1905.11946, without squeeze-and-excitation and with ReLU6, as Google published it for mobile
devices ("EfficientNet-Lite", 2020). The layers pad as TensorFlow does, in which the weights were trained.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

MODEL_TYPE = "efficientnet-lite0"
STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192))
"""Of each stage: blocks, kernel, stride of the first block, expansion, channels."""
LAST_STAGE = (1, 3, 1, 6, 320)
STEM, WIDTH = 32, 1280
BATCH_NORM_EPSILON = 1e-3


class SameConv2d(nn.Conv2d):
    """A convolution that pads as TensorFlow's ``SAME``: with a stride, more on the right and below than before."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, C', ceil(H / stride), ceil(W / stride))."""
        padding: list[int] = []
        for size, kernel, stride in zip(pixels.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            missing = max(0, (math.ceil(size / stride) - 1) * stride + kernel - size)
            padding += [missing // 2, missing - missing // 2]
        return functional.conv2d(functional.pad(pixels, padding), self.weight, None, self.stride, groups=self.groups)


def _conv(channels_in: int, channels: int, kernel: int, stride: int = 1, groups: int = 1) -> SameConv2d:
    return SameConv2d(channels_in, channels, kernel, stride, groups=groups, bias=False)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=BATCH_NORM_EPSILON)


class Block(nn.Module):
    """Widen, convolve each channel by itself, narrow; added to its input where the shapes are equal."""

    def __init__(self, channels_in: int, channels: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = channels_in * expansion
        self.widens = expansion > 1
        if self.widens:
            self._expand_conv, self._bn0 = _conv(channels_in, wide, 1), _norm(wide)
        self._depthwise_conv, self._bn1 = _conv(wide, wide, kernel, stride, groups=wide), _norm(wide)
        self._project_conv, self._bn2 = _conv(wide, channels, 1), _norm(channels)
        self.adds = stride == 1 and channels_in == channels

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        hidden = pixels
        if self.widens:
            hidden = functional.relu6(self._bn0(self._expand_conv(hidden)))
        hidden = functional.relu6(self._bn1(self._depthwise_conv(hidden)))
        hidden = self._bn2(self._project_conv(hidden))
        return hidden + pixels if self.adds else hidden


class EfficientNetLite0(nn.Module):
    """Pictures (B, 3, 224, 224) to feature maps (B, 1280, 7, 7), without the layer for ImageNet's classes."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = _conv(3, STEM, 3, stride=2), _norm(STEM)
        blocks, channels_in = [], STEM
        for number, kernel, stride, expansion, channels in (*STAGES, LAST_STAGE):
            for place in range(number):
                blocks.append(Block(channels_in, channels, kernel, stride if place == 0 else 1, expansion))
                channels_in = channels
        self._blocks = nn.ModuleList(blocks)
        self._conv_head, self._bn1 = _conv(channels_in, WIDTH, 1), _norm(WIDTH)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """The last feature maps."""
        hidden = functional.relu6(self._bn0(self._conv_stem(pixels)))
        for block in self._blocks:
            hidden = block(hidden)
        return functional.relu6(self._bn1(self._conv_head(hidden)))
