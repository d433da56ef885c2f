"""Tokens that a model did not know: added to its tokenizer, each with a row in its embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn

from tunesmith.errors import RecipeError
from tunesmith.models.model import Model


def add_tokens(model: Model, tokens: Sequence[str]) -> None:
    """Add tokens to a model's tokenizer and embeddings, in place. Tokens that it knows stay as they are.

    A new row begins as the mean of the rows of the pieces that the token was cut into before (Gee et al. 2022, "Fast
    Vocabulary Transfer for Language Model Compression", section 2): the same each time, so that an adapter needs no
    copy of it.

    Args:
        model: Without adapters; texts must not have been rendered yet.
        tokens: As they stand in the texts.

    Raises:
        RecipeError: The model reads pictures, or a token is cut into nothing that it knows.
    """
    if model.reads_pictures:
        raise RecipeError("pictures have no tokens", where="parameters.new_tokens", fix="leave it out")
    known = model.tokenizer.get_vocab()
    pieces = {t: model.tokenizer(t, add_special_tokens=False)["input_ids"] for t in tokens if t not in known}
    empty = [token for token, ids in pieces.items() if not ids]
    if empty:
        raise RecipeError(
            f"the tokenizer of {model.name} sees nothing in the token {empty[0]!r}",
            where="parameters.new_tokens",
            fix="leave it out",
        )
    model.new_tokens = tuple(tokens)
    if not pieces:
        return
    from transformers import AddedToken

    model.tokenizer.add_tokens([AddedToken(token, normalized=False) for token in pieces])
    network: Any = model.transformer()
    rows = network.get_input_embeddings().weight.shape[0]
    if len(model.tokenizer) > rows:
        network.resize_token_embeddings(len(model.tokenizer), mean_resizing=False)
    with torch.no_grad():
        for weight in tables(model):
            for token, ids in pieces.items():
                weight[model.tokenizer.convert_tokens_to_ids(token)] = weight[ids].mean(0)


def tables(model: Model) -> list[nn.Parameter]:
    """The matrices with a row for each token: of the input and, if it is not the same one, of the output."""
    return list({id(layer.weight): layer.weight for _, layer in token_layers(model)}.values())


def token_layers(model: Model) -> list[tuple[str, Any]]:
    """Names, in the transformers model, of the layers that hold them, and the layers."""
    network: Any = model.transformer()
    wanted = [layer for layer in (network.get_input_embeddings(), network.get_output_embeddings()) if layer is not None]
    return [(name, layer) for name, layer in network.named_modules() if any(layer is one for one in wanted)]


def ids_of(model: Model) -> list[int]:
    """Numbers of the new tokens."""
    return [int(model.tokenizer.convert_tokens_to_ids(token)) for token in model.new_tokens]


def train_rows(model: Model) -> None:
    """Let the rows of the new tokens train, and those of all others stay to the bit unless they train already.

    The whole matrix is the parameter, as transformers has it; the gradient of the other rows is zero, and so is the
    decay, so that Adam's step on them is exactly zero.
    """
    ids = ids_of(model)
    names = {id(parameter): name for name, parameter in model.network.named_parameters()}
    for weight in tables(model):
        if weight.requires_grad:
            continue
        weight.requires_grad_(True)
        if not weight.is_meta:
            weight.register_hook(_only(torch.tensor(ids, device=weight.device)))
        model.undecayed.add(names[id(weight)])


def _only(ids_K: torch.Tensor) -> Any:
    """A hook that keeps some rows of a gradient."""

    def keep(gradient: torch.Tensor) -> torch.Tensor:
        kept = torch.zeros_like(gradient)
        kept[ids_K] = gradient[ids_K]
        return kept

    return cast(Any, keep)
