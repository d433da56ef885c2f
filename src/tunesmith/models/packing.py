"""Texts of different lengths in one forward pass without padding: their tokens stand in one long row.

Everything in a transformer but attention treats each token alone, so it may see all texts as one row. Attention gets
the texts back in rectangles of nearly equal lengths (Krell et al. 2021, arXiv 2107.02027, mask a packed row instead,
which computes the scores between texts for nothing). The gradient is that of the padded batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tunesmith.data.batches import cheapest_cuts

RECTANGLE_COST = 16
"""What attention to one more rectangle costs, counted in tokens of padding; 8 and 32 are about as fast."""

_PROBE_LENGTHS = (9, 6, 2)
_PROBE_ERROR = {torch.float64: 1e-9, torch.float32: 1e-3}
"""Largest relative difference that rounding explains; of the narrow types 0.05. A wrong position or a token that sees
another text gives more."""


@dataclass(frozen=True)
class Rectangle:
    """Consecutive texts of the long row, each padded to the same width.

    Attributes:
        start: Index of its first token in the long row.
        rows: Texts.
        width: Tokens of each.
        mask: (rows, width) bool, false on padding; ``None`` where all tokens are real.
    """

    start: int
    rows: int
    width: int
    mask: torch.Tensor | None


@dataclass(frozen=True)
class Layout:
    """Where the tokens of a padded batch stand in the long row.

    Attributes:
        rectangles: Which cover the long row.
        source_T: Index in the flat batch of each of its T tokens.
        mask_BS: False on padding.
    """

    rectangles: list[Rectangle]
    source_T: torch.Tensor
    mask_BS: torch.Tensor

    def packed(self, states_BSd: torch.Tensor) -> torch.Tensor:
        """States of a padded batch in one long row, (1, T, d)."""
        return states_BSd.flatten(0, 1)[self.source_T][None]

    def padded(self, states_1Td: torch.Tensor) -> torch.Tensor:
        """States of the long row as a padded batch, (B, S, d); zero on padding."""
        states_Td = states_1Td[0]
        real_T = self.mask_BS.flatten()[self.source_T]
        states_Nd = states_Td.new_zeros(self.mask_BS.numel(), states_Td.shape[-1])
        return states_Nd.index_copy(0, self.source_T[real_T], states_Td[real_T]).view(*self.mask_BS.shape, -1)


_layout: Layout | None = None  # of the forward pass that runs now


def layout() -> Layout | None:
    """The layout of the forward pass that runs now; ``None`` if it is an ordinary one."""
    return _layout


def active() -> list[Rectangle] | None:
    """The rectangles of the forward pass that runs now; ``None`` if it is an ordinary one."""
    return None if _layout is None else _layout.rectangles


def hidden_states(
    network: nn.Module, input_ids_BS: torch.Tensor, mask_BS: torch.Tensor, multiple_of: int = 1
) -> torch.Tensor:
    """Last hidden states (B, S, d) of a padded batch, computed without most of the padding; zero on padding.

    Args:
        network: A transformers model without a head, with :mod:`tunesmith.models.attention` as its attention.
        input_ids_BS: Token ids, padded on the right.
        mask_BS: False on padding.
        multiple_of: Rectangles are as wide as a multiple of this, see :data:`tunesmith.models.frozen.WIDTH_MULTIPLE`.
    """
    lengths, order = mask_BS.sum(1).sort(descending=True, stable=True)
    rectangles, source_T, position_T = _lay_out(lengths, order, mask_BS, multiple_of)
    where = Layout(rectangles, source_T, mask_BS)
    with laid_out(where):
        hidden_1Td = network(
            input_ids=input_ids_BS.flatten()[source_T][None],
            position_ids=(position_T + _first_position(network))[None],
            use_cache=False,
        ).last_hidden_state
    return where.padded(hidden_1Td)


def _lay_out(
    lengths: torch.Tensor, order: torch.Tensor, mask_BS: torch.Tensor, multiple_of: int = 1
) -> tuple[list[Rectangle], torch.Tensor, torch.Tensor]:
    """Rectangles of a batch, and for each of the T tokens of the long row its index in the flat batch and its position.

    Args:
        lengths: (B,) falling.
        order: (B,) which row of the batch has each length.
        mask_BS: As for :func:`hidden_states`.
        multiple_of: As for :func:`hidden_states`; no row gets wider than the batch.
    """
    widths = (-(-lengths // multiple_of) * multiple_of).clamp(max=mask_BS.shape[1])
    rectangles: list[Rectangle] = []
    sources: list[torch.Tensor] = []
    positions: list[torch.Tensor] = []
    begin = start = 0
    for end in cheapest_cuts(widths.cpu().numpy(), None, RECTANGLE_COST):
        width, rows = int(widths[begin]), end - begin
        column_W = torch.arange(width, device=order.device)
        even = int(lengths[end - 1]) == width
        rectangles.append(Rectangle(start, rows, width, None if even else mask_BS[order[begin:end], :width]))
        sources.append((order[begin:end, None] * mask_BS.shape[1] + column_W).flatten())
        positions.append(column_W.repeat(rows))
        begin, start = end, start + rows * width
    return rectangles, torch.cat(sources), torch.cat(positions)


@contextmanager
def laid_out(where: Layout) -> Iterator[None]:
    """Within it, attention takes a network's one long row for the layout's rectangles."""
    global _layout
    _layout = where
    try:
        yield
    finally:
        _layout = None


def _first_position(network: nn.Module) -> int:
    """Position of a text's first token: RoBERTa and its kin count from behind the padding's id."""
    embeddings: Any = getattr(network, "embeddings", None)
    return int(embeddings.padding_idx) + 1 if hasattr(embeddings, "create_position_ids_from_input_ids") else 0


def longest_row(network: nn.Module, attention: str) -> int:
    """Tokens of the longest row that may be packed with others: 0 if this model's rows must be padded.

    Some architectures mix neighbouring tokens outside attention, or count positions in ways of their own. So a model
    shows by a trial that it gives the same both ways; windows, which a short trial cannot see, limit the length.

    Args:
        network: A transformers model without a head.
        attention: The name that our attention is registered by.
    """
    config: Any = getattr(network, "config", None)
    if getattr(config, "_attn_implementation", None) != attention or not _same_when_packed(network, config):
        return 0
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size", "local_attention")]
    longest = int(getattr(config, "max_position_embeddings", None) or 2**31)
    return min([longest, *(int(window) // 2 for window in windows if window)])


def _same_when_packed(network: nn.Module, config: Any) -> bool:
    device = next(network.parameters()).device
    width = max(_PROBE_LENGTHS)
    ids = 1 + torch.arange(len(_PROBE_LENGTHS) * width, device=device).view(-1, width) % max(1, config.vocab_size - 1)
    mask = torch.arange(width, device=device) < torch.tensor(_PROBE_LENGTHS, device=device)[:, None]
    was_training = network.training
    network.eval()
    try:
        with torch.no_grad():
            padded = network(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state[mask]
            packed = hidden_states(network, ids, mask)[mask]
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError):  # it does not take rows like these
        return False
    finally:
        network.train(was_training)
    difference = torch.linalg.vector_norm((packed - padded).double()) / torch.linalg.vector_norm(padded.double())
    return bool(difference <= _PROBE_ERROR.get(padded.dtype, 0.05))
