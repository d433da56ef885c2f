"""A student's layers held against its teacher's: hidden states, and what queries think of keys.

Jiao et al. 2019, "TinyBERT" (arXiv 1909.10351, equations 7 and 8): mean squared errors of hidden states, through a
learned projection where the widths differ, and of attention scores before the softmax. Layer m of M is held against
layer round(m N / M) of N.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import nn

from tunesmith.errors import RecipeError
from tunesmith.models.model import Model

PROJECTION = "hidden_projection"
_QUERIES_AND_KEYS = (("query", "key"), ("q_lin", "k_lin"))
"""Names of the two products in BERT and its kin, and in DistilBERT."""


@dataclass
class Seen:
    """What passed through a model's L layers: hidden states behind each, (B, S, d), queries and keys."""

    hidden: list[torch.Tensor] = field(default_factory=list)
    queries: list[torch.Tensor] = field(default_factory=list)
    keys: list[torch.Tensor] = field(default_factory=list)


class Layers:
    """The distance between layers of a student and its teacher.

    Args:
        model: The student; gets a projection that trains, if it is narrower or wider than the teacher.
        teacher: Of the same tokens.
        hidden_weight: Of the hidden states.
        attention_weight: Of the attention scores.
        seed: Of the projection's first weights.

    Raises:
        RecipeError: The attention of the two cannot be compared.
    """

    def __init__(
        self, model: Model, teacher: Model, *, hidden_weight: float, attention_weight: float, seed: int
    ) -> None:
        self.teacher = teacher
        self.hidden_weight, self.attention_weight = hidden_weight, attention_weight
        ours, theirs = len(model.blocks()), len(teacher.blocks())
        self.pairs = [(number, (2 * (number + 1) * theirs + ours) // (2 * ours) - 1) for number in range(ours)]
        self.heads = int(cast(Any, model.transformer()).config.num_attention_heads)
        model.packable_length = teacher.packable_length = 0  # layers are compared token by token of one rectangle
        own, other = (int(cast(Any, one.transformer()).config.hidden_size) for one in (model, teacher))
        if attention_weight:
            self._refuse_other_attention(model, teacher)
        if hidden_weight and own != other:
            torch.manual_seed(seed)
            model.network.add_module(PROJECTION, nn.Linear(own, other).to(model.device, torch.float32))

    def finish(self, model: Model) -> None:
        """Take the projection away again."""
        if hasattr(model.network, PROJECTION):
            delattr(model.network, PROJECTION)

    @contextlib.contextmanager
    def watching(self, model: Model) -> Iterator[Seen]:
        """Note what passes through a model's layers while the context lasts."""
        seen = Seen()

        def hidden(module: nn.Module, inputs: Any, output: Any) -> None:
            seen.hidden.append(output if isinstance(output, torch.Tensor) else output[0])

        def noting(into: list[torch.Tensor]) -> Any:
            return lambda module, inputs, output: into.append(output)

        handles = []
        for block in model.blocks():
            handles.append(block.register_forward_hook(hidden))
            if self.attention_weight:
                query, key = _queries_and_keys(block)
                handles.append(query.register_forward_hook(noting(seen.queries)))
                handles.append(key.register_forward_hook(noting(seen.keys)))
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()

    def distance(self, model: Model, ours: Seen, theirs: Seen, mask_BS: torch.Tensor) -> torch.Tensor:
        """The weighted distances of B examples: for each a mean over its tokens, widths and layers; (B,)."""
        total_B = torch.zeros(len(mask_BS), device=mask_BS.device)
        projection = getattr(model.network, PROJECTION, None)
        for student, teacher in self.pairs:
            if self.hidden_weight:
                state_BSd = ours.hidden[student].float()
                state_BSd = state_BSd if projection is None else projection(state_BSd)
                square_BS = (state_BSd - theirs.hidden[teacher].float()).square().mean(-1)
                total_B = total_B + self.hidden_weight * _mean(square_BS, mask_BS)
            if self.attention_weight:
                gap_BHSS = self._attention(ours, student) - self._attention(theirs, teacher)
                both_BSS = mask_BS[:, :, None] & mask_BS[:, None, :]
                square_BSS = gap_BHSS.square().mean(1)
                total_B = total_B + self.attention_weight * _mean(square_BSS.flatten(1), both_BSS.flatten(1))
        return total_B / len(self.pairs)

    def _attention(self, seen: Seen, layer: int) -> torch.Tensor:
        """Attention scores before the softmax, (B, H, S, S)."""
        query, key = (
            product[layer].float().unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for product in (seen.queries, seen.keys)
        )
        return query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5

    def _refuse_other_attention(self, model: Model, teacher: Model) -> None:
        heads = int(cast(Any, teacher.transformer()).config.num_attention_heads)
        for one in (model, teacher):
            if heads != self.heads or _queries_and_keys(one.blocks()[0]) == (None, None):
                raise RecipeError(
                    f"the attention of the student ({self.heads} heads) cannot be held against the teacher's "
                    f"({heads} heads): it takes as many heads, and the layers of BERT or DistilBERT",
                    where="training.distillation.attention_weight",
                    fix="leave it out, and use `hidden_weight`",
                )


def _queries_and_keys(block: nn.Module) -> tuple[Any, Any]:
    """The products that give a layer's queries and keys; ``None`` where they are not known."""
    named = {name.rpartition(".")[2]: module for name, module in block.named_modules()}
    for query, key in _QUERIES_AND_KEYS:
        if query in named and key in named:
            return named[query], named[key]
    return None, None


def _mean(values_BN: torch.Tensor, mask_BN: torch.Tensor) -> torch.Tensor:
    return (values_BN * mask_BN).sum(1) / mask_BN.sum(1)
