"""Weights that are kept in fewer bits than they compute with, whichever library made them tensors of their own kind."""

from __future__ import annotations

from typing import Any

import torch


def is_narrow(weight: Any) -> bool:
    """Whether a weight is kept in fewer bits than it computes with."""
    return isinstance(weight, torch.Tensor) and hasattr(weight, "__tensor_flatten__")


def widened(weight: Any) -> torch.Tensor:
    """An ordinary tensor with the values of a narrow weight, in the dtype that it computes with."""
    whole = weight.get_original_weight() if hasattr(weight, "get_original_weight") else weight.dequantize()
    return whole.to(weight.dtype)
