"""Cross-entropy of the tokens of wanted answers."""

from __future__ import annotations

import torch

from tunesmith.data.batches import Batch
from tunesmith.data.source_target import TARGET_IDS
from tunesmith.models.model import Model
from tunesmith.objectives.base import LossSum, Objective
from tunesmith.objectives.cross_entropy import (
    TokenLosses,
    TokenNats,
    linear_cross_entropy,
    linear_token_nats,
    scored_token_nats,
    token_cross_entropy,
)
from tunesmith.recipe import Training


class Supervised(Objective):
    """-log p(token | what stands before it), weighted and summed over the answers' tokens."""

    name = "supervised"

    def __init__(self, settings: Training) -> None:
        self.label_smoothing = settings.label_smoothing

    def loss(self, model: Model, batch: Batch) -> LossSum:
        """Weighted sum over the loss-bearing tokens of (B, S). Metric: ``token_accuracy``."""
        losses, weights_N, _ = token_losses(model, batch, self.label_smoothing)
        return LossSum(
            losses.total,
            float(weights_N.sum(dtype=torch.float64)),
            {"token_accuracy": torch.dot(losses.correct_N.to(weights_N.dtype), weights_N)},
        )

    def score(self, metrics: dict[str, float]) -> list[float]:
        """The lower loss is better."""
        return [-metrics["loss"]]


def token_nats(model: Model, batch: Batch, temperature: float = 1.0) -> tuple[TokenNats, torch.Tensor, torch.Tensor]:
    """What the model thinks of the tokens that carry weight, each differentiable.

    Returns:
        The tokens' nats and entropies (N,), the batch row of each (N,), and its column (N,).
    """
    assert batch.loss_weights is not None, "the data were rendered for another objective"
    rows, columns = batch.loss_weights[:, 1:].nonzero(as_tuple=True)
    targets_N = batch.input_ids[rows, columns + 1]
    if model.scores_are_plain():
        hidden_Nd = model.hidden_states(batch)[rows, columns]
        weight_Vd = model.vocabulary_weight()
        return linear_token_nats(hidden_Nd, weight_Vd, targets_N, temperature), rows, columns + 1
    logits_NV = model.run(model.network, batch, **model.causal_inputs(batch)).logits[rows, columns]
    return scored_token_nats(logits_NV, targets_N, temperature), rows, columns + 1


def token_losses(
    model: Model, batch: Batch, label_smoothing: float = 0.0
) -> tuple[TokenLosses, torch.Tensor, torch.Tensor]:
    """Losses of the tokens that carry weight, in row-major order of the batch.

    Scores of the vocabulary are computed at those positions only.

    Returns:
        The losses of N tokens, their weights (N,), and the batch row each belongs to (N,).
    """
    if model.form == "seq2seq":
        return _target_losses(model, batch, label_smoothing)
    assert batch.loss_weights is not None, "the data were rendered for another objective"
    weights_BS = batch.loss_weights[:, 1:]
    rows, columns = weights_BS.nonzero(as_tuple=True)
    weights_N = weights_BS[rows, columns]
    targets_N = batch.input_ids[rows, columns + 1]
    if model.scores_are_plain():
        hidden_Nd = model.hidden_states(batch)[rows, columns]
        weight_Vd = model.vocabulary_weight()
        return linear_cross_entropy(hidden_Nd, weight_Vd, targets_N, weights_N, label_smoothing), weights_N, rows
    logits_NV = model.run(model.transformer(), batch, **model.causal_inputs(batch)).logits[rows, columns]
    return token_cross_entropy(logits_NV, targets_N, weights_N, label_smoothing), weights_N, rows


def _target_losses(
    model: Model, batch: Batch, label_smoothing: float
) -> tuple[TokenLosses, torch.Tensor, torch.Tensor]:
    """The same for an encoder-decoder model: every token of the target weighs 1."""
    targets_BT = batch.extra[TARGET_IDS]
    rows, columns = (targets_BT >= 0).nonzero(as_tuple=True)
    logits_NV = model.target_logits(batch, targets_BT)[rows, columns]
    weights_N = torch.ones(len(rows), device=rows.device)
    losses = token_cross_entropy(logits_NV, targets_BT[rows, columns], weights_N, label_smoothing)
    return losses, weights_N, rows
