"""Which tokens of a row may see which: rows that hold several texts, side by side or behind a common beginning.

A row's *segments* number its texts: every token of text k sees the earlier tokens of text k and those of the trunk,
segment 0, that stand before it. Packed documents have no trunk; two answers to one prompt have the prompt as theirs.
"""

from __future__ import annotations

from typing import Any

import torch

TRUNK = 0


def allowed(segments_BS: torch.Tensor) -> torch.Tensor:
    """True where the token of line i may see that of column j, (B, S, S) bool; padding (-1) sees only padding."""
    size = segments_BS.shape[1]
    earlier = torch.ones(size, size, dtype=torch.bool, device=segments_BS.device).tril()
    same = segments_BS[:, :, None] == segments_BS[:, None, :]
    return earlier & (same | ((segments_BS == TRUNK)[:, None, :] & (segments_BS >= 0)[:, :, None]))


def positions(allowed_BSS: torch.Tensor) -> torch.Tensor:
    """Position of each token in its own text, (B, S): as many tokens stand before it as it sees besides itself."""
    return allowed_BSS.sum(-1) - 1


def masks(config: Any, allowed_BST: torch.Tensor, queries_BS: torch.Tensor, keys_BT: torch.Tensor) -> Any:
    """The mask in the form that transformers' models take, one for each kind of layer if some have a sliding window.

    Args:
        config: The model's.
        allowed_BST: True where a query may see a key.
        queries_BS: Position of each query in its text.
        keys_BT: Position of each key.
    """
    allowed_B1ST = allowed_BST[:, None]
    window, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    if not window or (kinds and "sliding_attention" not in kinds):
        return allowed_B1ST
    near = allowed_B1ST & ((queries_BS[:, :, None] - keys_BT[:, None, :]) < window)[:, None]
    # Without kinds every layer has the window (Mistral 7B v0.1).
    return {"full_attention": allowed_B1ST, "sliding_attention": near} if kinds else near
