"""Learning from bare text: predict the next token, or the masked ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch

from tunesmith.data.batches import Batch, TokenFile
from tunesmith.models.model import Model
from tunesmith.objectives.base import LossSum, Objective
from tunesmith.objectives.cross_entropy import TokenLosses, token_cross_entropy
from tunesmith.objectives.supervised import Supervised
from tunesmith.recipe import Training

KEPT = -1
"""Target of a token that is not asked for."""


class CausalLM(Supervised):
    """-log p(token | what stands before it in its document), summed over all tokens of the documents."""

    name = "causal-lm"


class MaskedLM(Objective):
    """-log p(token | the block with some tokens hidden), summed over the hidden ones.

    Devlin et al. 2018 (BERT, arXiv 1810.04805, 3.1). Masks are drawn anew each epoch from (seed, epoch, row); while
    validating they are the same each time.
    """

    name = "masked-lm"
    skips_frozen = False
    shows_others = True

    def __init__(self, settings: Training) -> None:
        self.share = settings.mask_share
        self.whole_words = settings.whole_words
        self.seed = settings.seed
        self.label_smoothing = settings.label_smoothing

    def weight_of(self, model: Model, data: TokenFile) -> float:
        """The share of the tokens that is hidden."""
        return self.share * super().weight_of(model, data)

    def loss(self, model: Model, batch: Batch) -> LossSum:
        """Sum over the hidden tokens of (B, S), each of weight 1. Metric: ``token_accuracy``."""
        hidden, targets_BS = self._hide(model, batch)
        losses, _ = masked_losses(model, hidden, targets_BS, self.label_smoothing)
        return LossSum(losses.total, float(len(losses.losses_N)), {"token_accuracy": losses.correct_N.sum()})

    def score(self, metrics: dict[str, float]) -> list[float]:
        """The lower loss is better."""
        return [-metrics["loss"]]

    def _hide(self, model: Model, batch: Batch) -> tuple[Batch, torch.Tensor]:
        """The batch with tokens hidden, and what they were: (B, S) int64, :data:`KEPT` elsewhere."""
        assert batch.loss_weights is not None, "the data were rendered for another objective"
        ids, maskable = batch.input_ids.cpu().numpy().copy(), batch.loss_weights.cpu().numpy() > 0
        words = batch.extra["word"].cpu().numpy()
        drawn = 0 if batch.epoch is None else batch.epoch + 1
        targets = np.full_like(ids, KEPT)
        for n, row in enumerate(batch.rows):
            random = np.random.default_rng([self.seed, drawn, row])
            length = int(maskable[n].nonzero()[0].max(initial=-1)) + 1
            ids[n, :length], targets[n, :length] = hide(
                ids[n, :length],
                words[n, :length] if self.whole_words else np.arange(length),
                maskable[n, :length],
                model.tokenizer,
                self.share,
                random,
            )
        hidden = replace(batch, input_ids=torch.from_numpy(ids).to(batch.input_ids.device))
        return hidden, torch.from_numpy(targets).to(batch.input_ids.device)


def hide(
    ids_S: np.ndarray,
    words_S: np.ndarray,
    maskable_S: np.ndarray,
    tokenizer: Any,
    share: float,
    random: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Hide a share of a block's tokens: 80 % become the mask, 10 % any token, 10 % stay as they are (BERT, A.1).

    Args:
        ids_S: Token ids.
        words_S: Number of the unit that each token belongs to; units are hidden whole.
        maskable_S: False for special tokens.
        tokenizer: Says what the mask is.
        share: Of the maskable tokens, rounded, and at least one; a whole word may go over it.
        random: Where chance comes from.

    Returns:
        The ids with tokens hidden, and what those were (:data:`KEPT` elsewhere).
    """
    places = np.flatnonzero(maskable_S)
    units, unit_of, sizes = np.unique(words_S[places], return_inverse=True, return_counts=True)
    wanted = max(1, round(share * len(places)))
    order = random.permutation(len(units))
    hidden_units = order[: int(np.searchsorted(np.cumsum(sizes[order]), wanted)) + 1]
    chosen = places[np.isin(unit_of, hidden_units)]
    targets_S = np.full_like(ids_S, KEPT)
    targets_S[chosen] = ids_S[chosen]
    fate = random.random(len(chosen))
    replaced_S = ids_S.copy()
    replaced_S[chosen[fate < 0.8]] = tokenizer.mask_token_id
    anything = chosen[(fate >= 0.8) & (fate < 0.9)]
    replaced_S[anything] = random.integers(0, len(tokenizer), size=len(anything))
    return replaced_S, targets_S


def masked_losses(
    model: Model, batch: Batch, targets_BS: torch.Tensor, label_smoothing: float = 0.0
) -> tuple[TokenLosses, torch.Tensor]:
    """Losses of the tokens that have a target, and the batch row each belongs to (N,)."""
    rows, columns = (targets_BS != KEPT).nonzero(as_tuple=True)
    targets_N = targets_BS[rows, columns]
    scores_NV = _scores(model, batch, rows, columns)
    weights_N = torch.ones(len(targets_N), device=scores_NV.device)
    return token_cross_entropy(scores_NV, targets_N, weights_N, label_smoothing), rows


def _scores(model: Model, batch: Batch, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Scores of the vocabulary at N places, (N, V); at these alone where the model's head stands by itself."""
    network: Any = model.transformer()
    head = next((getattr(network, name) for name in ("cls", "lm_head") if hasattr(network, name)), None)
    if head is None:
        found = network(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
        return cast(torch.Tensor, found.logits[rows, columns])
    return cast(torch.Tensor, head(model.encoded(batch)[rows, columns]))
