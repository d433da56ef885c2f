"""Learning from thumbs: answers that were liked or disliked, each by itself (KTO)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from tunesmith.data.batches import Batch, TokenFile, write_tokens
from tunesmith.data.render import Rendered
from tunesmith.events import Listener
from tunesmith.models.model import Model
from tunesmith.objectives.base import Experience, LossSum, Objective
from tunesmith.objectives.preference import REFERENCE
from tunesmith.objectives.rollouts import Reference, log_likelihoods
from tunesmith.objectives.supervised import token_nats
from tunesmith.recipe import KTOLoss, Training

LIKED = "liked"
"""Extra column: 1 for an answer that was liked, 0 for one that was not."""


def thumb_loss(log_ratios_B: torch.Tensor, liked_B: torch.Tensor, divergence: float, settings: KTOLoss) -> torch.Tensor:
    """The loss of each answer, (B,), without its weight.

    1 - sigmoid(beta (r - z)) for what was liked and 1 - sigmoid(beta (z - r)) for what was not, with r the log ratio of
    the answer to the reference and z the divergence from it (Ethayarajh et al. 2024, arXiv 2402.01306, equation 7).
    """
    sign_B = torch.where(liked_B, 1.0, -1.0).to(log_ratios_B.dtype)
    return 1 - torch.sigmoid(settings.beta * sign_B * (log_ratios_B - divergence))


class KTO(Objective):
    """The loss of :func:`thumb_loss`; both sides weigh alike unless the recipe says otherwise.

    The divergence z is estimated before each update, over the whole batch: from each prompt with the answer to another
    one, never below 0, and without a gradient (section 4.1 there). In validation it is that of the last update.
    """

    name = "kto"

    def __init__(self, settings: Training) -> None:
        self.own = settings.kto
        self.divergence = 0.0
        self._weights = (1.0, 1.0)  # of disliked and liked answers

    def start(self, model: Model, sets: list[TokenFile], folder: Path, tell: Listener) -> None:
        """Remember the reference and what it thinks of all answers; find out how many were liked."""
        self.folder, self.reference = folder / "mismatched", Reference(model)
        for data in sets:
            sums = [nats.sum() for nats in log_likelihoods(model, data, 1.0)]
            data.add(REFERENCE, np.asarray(sums, dtype=np.float32).reshape(-1, 1))
        train = sets[0]
        liked = sum(float(train.extra[LIKED][row][0]) for row in range(len(train)))
        usual = [len(train) / (2 * count) if count else 1.0 for count in (len(train) - liked, liked)]
        own = (self.own.undesirable_weight, self.own.desirable_weight)
        self._weights = (usual[0] if own[0] is None else own[0], usual[1] if own[1] is None else own[1])

    def experience(self, model: Model, data: TokenFile, rows: np.ndarray, step: int) -> Experience:
        """The batch itself; before it, the divergence is estimated on prompts with the answers to others."""
        mixed = self._mismatched(model, data, rows.tolist())
        ours = log_likelihoods(model, mixed, 1.0)
        with self.reference.of(model) as first:
            theirs = log_likelihoods(first, mixed, 1.0)
        nats = [float((a - b).sum()) for a, b in zip(ours, theirs, strict=True)]
        self.divergence = max(0.0, float(np.mean(nats)))
        return Experience(data, [rows], {"kl": self.divergence})

    def _mismatched(self, model: Model, data: TokenFile, rows: list[int]) -> TokenFile:
        """Each prompt with the answer to the prompt before it, cut to what the model takes."""
        examples = {}
        for row, other in zip(rows, rows[-1:] + rows[:-1], strict=True):
            prompt = data.tokens(row)[: int(np.flatnonzero(data.weights(row))[0])].tolist()
            begin = int(np.flatnonzero(data.weights(other))[0])
            answer, weights = data.tokens(other)[begin:].tolist(), data.weights(other)[begin:].tolist()
            room = max(1, model.max_length - len(prompt))
            examples[row] = Rendered(prompt + answer[:room], [0.0] * len(prompt) + weights[:room])
        carriers = [data.rows[row] for row in rows]
        waiting = iter(rows)
        return write_tokens(carriers, lambda _: examples[next(waiting)], self.folder)

    def loss(self, model: Model, batch: Batch) -> LossSum:
        """Weighted sum over B answers; the sum is divided by their number.

        Metrics: ``agreement`` (liked answers are further above the reference than the divergence, disliked ones below)
        and ``log_ratio``.
        """
        found, rows_N, _ = token_nats(model, batch)
        sums_B = found.nats_N.new_zeros(len(batch.rows)).index_add(0, rows_N, -found.nats_N)
        log_ratios_B = sums_B - batch.extra[REFERENCE][:, 0].to(sums_B.dtype)
        liked_B = batch.extra[LIKED][:, 0] > 0
        weights_B = torch.where(liked_B, self._weights[1], self._weights[0]).to(sums_B.dtype)
        loss_B = thumb_loss(log_ratios_B, liked_B, self.divergence, self.own)
        agree_B = (log_ratios_B.detach() > self.divergence) == liked_B
        metrics = {"agreement": agree_B.sum(), "log_ratio": log_ratios_B.detach().sum()}
        return LossSum(loss_B @ weights_B, float(len(liked_B)), metrics)

    def state(self) -> dict[str, float]:
        """The divergence, with which validations go on after a resume."""
        return {"divergence": self.divergence}

    def load_state(self, state: dict[str, float]) -> None:
        """Take it back."""
        self.divergence = state["divergence"]

    def score(self, metrics: dict[str, float]) -> list[float]:
        """The lower loss is better."""
        return [-metrics["loss"]]
