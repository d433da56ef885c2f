"""Word vectors of which the data read few: only those are updated.

A row that no text reads has no gradient and no moments, so AdamW would change it by weight decay alone. It is left as
it is, and needs no master, no moments and no time. Half of MiniLM-L6 is a table of 30,522 rows: 4,000 sentences read a
third of them, and a batch of eight two hundred.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrize

from tunesmith.data.batches import TokenFile
from tunesmith.models.model import Model

WORTHWHILE_SHARE = 0.5
"""Of the rows that may be read, for the others to be left out: rows in fp32 get a copy that they need not otherwise."""


class ReadRows:
    """The rows of one table that are read, and the sum of their gradients.

    Args:
        layer: Which looks them up; its weight is (V, d).
        read_V: Whether each row is read.
    """

    def __init__(self, layer: nn.Embedding, read_V: torch.Tensor) -> None:
        self.layer = layer
        self.ids_A = read_V.nonzero()[:, 0]
        self._slots_V = torch.full(read_V.shape, -1, device=read_V.device)
        self._slots_V[self.ids_A] = torch.arange(len(self.ids_A), device=read_V.device)
        self._sum_Ad: torch.Tensor | None = None  # kept: nearly all of it is zero again after each update
        self._filled: list[torch.Tensor] = []

    def master(self) -> nn.Parameter:
        """A wide copy of the rows, (A, d)."""
        weight = self.layer.weight.detach()[self.ids_A]
        return nn.Parameter(weight.to(torch.promote_types(weight.dtype, torch.float32)))

    def accumulate(self, gradient_Vd: torch.Tensor, master_Ad: nn.Parameter) -> None:
        """Add the gradient of a micro-batch to that of the master; each lookup in the master's type.

        Raises:
            RuntimeError: A row has a gradient that no text should read.
        """
        found = gradient_Vd if gradient_Vd.is_sparse else gradient_Vd.to_sparse(1)
        values = found._values().to(master_Ad.dtype)
        found = torch.sparse_coo_tensor(found._indices(), values, found.shape, check_invariants=False).coalesce()
        slots = self._slots_V[found.indices()[0]]
        if bool((slots < 0).any()):
            raise RuntimeError("a word vector has a gradient, and no text reads it")
        if self._sum_Ad is None:
            self._sum_Ad = torch.zeros_like(master_Ad)
        self._sum_Ad.index_add_(0, slots, found.values())
        self._filled.append(slots)
        master_Ad.grad = self._sum_Ad

    def discard(self) -> None:
        """Forget the gradients."""
        for slots in self._filled:
            assert self._sum_Ad is not None
            self._sum_Ad[slots] = 0.0
        self._filled.clear()

    @torch.no_grad()
    def put_back(self, master_Ad: torch.Tensor) -> None:
        """Give the table what the master has become."""
        self.layer.weight.index_copy_(0, self.ids_A, master_Ad.to(self.layer.weight.dtype))


def read_rows(model: Model, texts: Iterable[TokenFile] | None) -> dict[str, ReadRows]:
    """Name of a table of word vectors that trains -> its rows that are read, where they are few enough.

    Args:
        model: Ready to train.
        texts: All that it will be shown while it learns; ``None`` if that is not known.
    """
    layer = table_of(model)
    if texts is None or layer is None:
        return {}
    read_V = np.zeros(layer.weight.shape[0], dtype=bool)
    read_V[model.pad_id] = True
    for data in texts:
        read_V |= data.used(len(read_V))
    if read_V.mean() > WORTHWHILE_SHARE:
        return {}
    names = [name for name, parameter in model.trainable() if parameter is layer.weight]
    return {name: ReadRows(layer, torch.from_numpy(read_V).to(model.device)) for name in names}


def table_of(model: Model) -> nn.Embedding | None:
    """The word vectors, where they train, and by nothing but the tokens of the texts."""
    if model.reads_pictures or model.form == "seq2seq":  # whose decoder reads other tokens
        return None
    network: Any = model.transformer()
    layer = network.get_input_embeddings()
    if not isinstance(layer, nn.Embedding) or not _is_looked_up_alone(model, layer):
        return None
    name = next((name for name, parameter in model.trainable() if parameter is layer.weight), None)
    return None if name is None or name in model.undecayed else layer  # undecayed: new tokens' rows alone train


def _is_looked_up_alone(model: Model, layer: nn.Embedding) -> bool:
    """Whether the table is nothing else besides, such as the vocabulary's head, and nothing changes its gradient."""
    users = [
        module for module in model.network.modules() if any(p is layer.weight for p in module._parameters.values())
    ]
    weight = layer.weight
    plain = type(weight) is nn.Parameter and not weight._backward_hooks and not parametrize.is_parametrized(layer)
    return users == [layer] and plain and not layer.scale_grad_by_freq


@contextmanager
def sparse_gradients(tables: Mapping[str, ReadRows]) -> Iterator[None]:
    """While it lasts, the tables' gradients hold only the rows that were looked up."""
    before = {name: table.layer.sparse for name, table in tables.items()}
    for table in tables.values():
        table.layer.sparse = True
    try:
        yield
    finally:
        for name, table in tables.items():
            table.layer.sparse = before[name]
