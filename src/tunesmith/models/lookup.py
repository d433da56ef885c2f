"""A table of word vectors in 8 bits, of which a lookup widens only the rows that it needs.

torchao's own tensor widens the whole table for each lookup, which takes longer than the rest of a small model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torchao.quantization import Int8Tensor, Int8WeightOnlyConfig, quantize_

ROWS = 512
"""Rows that are widened at a time."""
aten = torch.ops.aten


class LookupTensor(Int8Tensor):
    """int8 with a scale a row, symmetric around zero; also the vocabulary's head where the two are one."""

    def dequantize(self, output_dtype: torch.dtype | None = None) -> torch.Tensor:
        """The whole table, (V, d), without a second one in fp32 beside it."""
        whole_Vd = torch.empty(self.shape, dtype=output_dtype or self.dtype, device=self.device)
        for part, values, scale in zip(
            whole_Vd.split(ROWS), self.qdata.split(ROWS), self.scale.split(ROWS), strict=True
        ):
            part.copy_(values * scale)
        return whole_Vd


@LookupTensor.implements(aten.embedding.default)  # type: ignore[untyped-decorator]
def _rows(function: Any, types: Any, args: Any, kwargs: Any) -> torch.Tensor:
    table_Vd, ids = args[0], args[1]
    rows = table_Vd.qdata[ids].to(torch.float32) * table_Vd.scale[ids].to(torch.float32)
    return rows.to(table_Vd.dtype)


def to_int8(weight: torch.Tensor) -> Int8Tensor:
    """A matrix (out, in) with a scale for each row, symmetric around zero."""
    holder = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    holder.weight = nn.Parameter(weight, requires_grad=False)
    quantize_(holder, Int8WeightOnlyConfig())
    return holder.weight.data


def to_table(weight_Vd: torch.Tensor) -> LookupTensor:
    """The same, to be looked up in."""
    narrow = to_int8(weight_Vd)
    return LookupTensor(narrow.qdata, narrow.scale, narrow.block_size, narrow.dtype)
