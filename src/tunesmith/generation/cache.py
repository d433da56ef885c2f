"""Keys and values of rows of different lengths: one buffer a layer, one slot a row, no copies from step to step.

transformers' own caches grow by concatenation (a copy of everything at each token) and know one length for all rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from transformers import Cache


class SlotCache(Cache):
    """A cache for forward passes over some of its slots, each of which goes on at a place of its own.

    Before a pass :meth:`aim` says which slots the pass's rows are and where their new tokens belong. What lies in a
    slot behind a row's last token is left from earlier passes: the attention mask must hide it.

    Attributes:
        num_slots: How many rows fit.
        length: How many tokens of each.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.num_slots = 0
        self.length = 0
        self._keys: list[torch.Tensor] = []
        self._values: list[torch.Tensor] = []
        self._reach = 0
        self._slots: slice | torch.Tensor = slice(0, 0)
        self._index: tuple[Any, ...] = ()

    @torch.inference_mode()
    def resize(self, num_slots: int, length: int) -> None:
        """Change the room; what lies within the old and the new stays."""
        if (num_slots, length) == (self.num_slots, self.length):
            return
        self.num_slots, self.length = num_slots, length
        for layers in (self._keys, self._values):
            for number, old in enumerate(layers):  # one after the other, so that only one layer is there twice
                new = old.new_zeros(num_slots, old.shape[1], length, old.shape[3])
                slots, tokens = min(num_slots, old.shape[0]), min(length, old.shape[2])
                new[:slots, :, :tokens] = old[:slots, :, :tokens]
                layers[number] = new

    def aim(self, slots: Sequence[int], places_BS: torch.Tensor, reach: int) -> None:
        """Say where the next pass reads and writes.

        Args:
            slots: The slot of each of the pass's B rows.
            places_BS: The place in its slot of each new token, below ``reach``.
            reach: T, how many places of each slot the pass's attention is given.
        """
        self._reach = reach
        consecutive = all(b == a + 1 for a, b in itertools.pairwise(slots))
        index = torch.tensor(list(slots), device=places_BS.device)
        self._slots = slice(slots[0], slots[-1] + 1) if consecutive else index  # a slice is a view, not a copy
        # Indices on both sides of a slice put the indexed axes first: (B, S, K, h), or (B, K, h) for one token a row.
        single = places_BS.shape[1] == 1
        self._index = (index, slice(None), places_BS[:, 0]) if single else (index[:, None], slice(None), places_BS)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store the pass's keys and values, (B, K, S, h), and give back those of its slots, (B, K, T, h)."""
        keys, values = self._layer(layer_idx, key_states, value_states)
        keys[self._index] = key_states[:, :, 0] if key_states.shape[2] == 1 else key_states.transpose(1, 2)
        values[self._index] = value_states[:, :, 0] if value_states.shape[2] == 1 else value_states.transpose(1, 2)
        return keys[self._slots, :, : self._reach], values[self._slots, :, : self._reach]

    def _layer(self, number: int, *like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The buffers of a layer, made when its first keys and values come."""
        while len(self._keys) <= number:
            for layers, new in zip((self._keys, self._values), like, strict=True):
                layers.append(new.new_zeros(self.num_slots, new.shape[1], self.length, new.shape[3]))
        return self._keys[number], self._values[number]

    @torch.inference_mode()
    def begin(self, slot: int, layers: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Let a slot begin with given keys and values, (1, K, P, h) of every layer."""
        for number, given in enumerate(layers):
            for buffer, new in zip(self._layer(number, *given), given, strict=True):
                buffer[slot, :, : new.shape[2]] = new[0]

    @torch.inference_mode()
    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first tokens of a slot to another."""
        for tensor in (*self._keys, *self._values):
            tensor[target, :, :length] = tensor[source, :, :length]

    @torch.inference_mode()
    def swap(self, first: int, second: int, length: int) -> None:
        """Let two slots exchange their first tokens."""
        for tensor in (*self._keys, *self._values):
            kept = tensor[first, :, :length].clone()
            tensor[first, :, :length] = tensor[second, :, :length]
            tensor[second, :, :length] = kept
