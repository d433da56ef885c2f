"""Learning from preferences without a reward model: DPO and its kin, as losses of one objective.

Each loss is a function of the log likelihoods of the better and the worse answer under the model and, for those that
need one, under the *reference*: the model as it was before its first update. The reference's are computed once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from tunesmith.data.batches import Batch, TokenFile
from tunesmith.data.render_pairs import CHOSEN, REJECTED
from tunesmith.events import Listener, Progress
from tunesmith.models.model import Model
from tunesmith.objectives.base import LossSum, Objective
from tunesmith.objectives.supervised import token_nats
from tunesmith.recipe import PreferenceLoss, Training

NEEDS_REFERENCE = {"sigmoid", "hinge", "ipo", "robust"}
REFERENCE = "reference"
"""Extra column of the reference's log likelihoods: those of the better and of the worse answer."""


@dataclass(frozen=True)
class Pairs:
    """Log likelihoods of B pairs of answers.

    Attributes:
        chosen: (B,) sum over the tokens of the better answer, in nats.
        rejected: (B,) of the worse one.
        chosen_tokens: (B,) its tokens.
        rejected_tokens: (B,) of the worse one.
        reference_chosen: (B,) the same under the reference; zeros for losses without one.
        reference_rejected: (B,).
    """

    chosen: torch.Tensor
    rejected: torch.Tensor
    chosen_tokens: torch.Tensor
    rejected_tokens: torch.Tensor
    reference_chosen: torch.Tensor
    reference_rejected: torch.Tensor

    def log_ratios(self, *, mean: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Log p(answer) - log p_reference(answer) of both answers; ``mean``: per token."""
        better, worse = self.chosen - self.reference_chosen, self.rejected - self.reference_rejected
        return (better / self.chosen_tokens, worse / self.rejected_tokens) if mean else (better, worse)


def pair_loss(pairs: Pairs, settings: PreferenceLoss) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The loss of each pair and the implicit rewards of its answers, (B,) each.

    - ``sigmoid``: DPO, -log sigmoid(h) with h = beta (log ratio of the better - that of the worse)
      (Rafailov et al. 2023, arXiv 2305.18290, equation 7); ``label_smoothing`` is the chance that the label is wrong.
    - ``robust``: the same, unbiased under that noise (Chowdhury et al. 2024, arXiv 2403.00409).
    - ``hinge``: max(0, 1 - h) (SLiC, Zhao et al. 2023, arXiv 2305.10425).
    - ``ipo``: (h / beta - 1 / (2 beta))^2 over mean log likelihoods (Azar et al. 2023, arXiv 2310.12036, equation 17).
    - ``simpo``: -log sigmoid(beta (difference of the mean log likelihoods) - gamma), no reference (Meng et al. 2024,
      arXiv 2405.14734, equation 6).
    - ``orpo``: beta times -log sigmoid of the log odds ratio of the mean likelihoods, to be added to the better
      answer's own loss (Hong et al. 2024, arXiv 2403.07691, equation 7).
    """
    kind, beta, noise = settings.loss, settings.beta, settings.label_smoothing
    mean = kind in ("ipo", "simpo", "orpo") or settings.length_normalised
    better, worse = pairs.log_ratios(mean=mean)
    gap = beta * (better - worse)
    if kind == "sigmoid":
        loss = -(1 - noise) * functional.logsigmoid(gap) - noise * functional.logsigmoid(-gap)
    elif kind == "robust":
        loss = (-(1 - noise) * functional.logsigmoid(gap) + noise * functional.logsigmoid(-gap)) / (1 - 2 * noise)
    elif kind == "hinge":
        loss = torch.relu(1 - gap)
    elif kind == "ipo":
        loss = (better - worse - 1 / (2 * beta)).square()
    elif kind == "simpo":
        loss = -functional.logsigmoid(gap - settings.gamma)
    else:  # orpo: odds(p) = p / (1 - p)
        odds = (better - worse) - (torch.log1p(-better.exp()) - torch.log1p(-worse.exp()))
        loss = -beta * functional.logsigmoid(odds)
    return loss, beta * better.detach(), beta * worse.detach()


class Preference(Objective):
    """A loss over pairs (:func:`pair_loss`), plus ``sft_weight`` times the better answer's mean token loss.

    The last keeps the better answer likely: DPO alone may lower both (Pang et al. 2024, arXiv 2404.19733). For ORPO it
    is part of the method, with weight 1.
    """

    name = "dpo"

    def __init__(self, settings: Training) -> None:
        self.settings = settings.preference
        chosen = self.settings.sft_weight
        self.sft_weight = (1.0 if self.settings.loss == "orpo" else 0.0) if chosen is None else chosen

    def start(self, model: Model, sets: list[TokenFile], folder: Path, tell: Listener) -> None:
        """Ask the model, which is still the reference, what it thinks of all answers."""
        if self.settings.loss in NEEDS_REFERENCE:
            for data in sets:
                data.add(REFERENCE, reference_likelihoods(model, data, tell))

    def loss(self, model: Model, batch: Batch) -> LossSum:
        """Sum over B pairs; each weighs 1.

        Metrics: ``pair_accuracy`` (the implicit reward of the better answer is the higher one), ``reward_gap``,
        ``chosen_nats`` and ``rejected_nats`` (of whole answers: both rising together is the known illness).
        """
        pairs = likelihoods(model, batch)
        loss_B, better_B, worse_B = pair_loss(pairs, self.settings)
        if self.sft_weight:
            loss_B = loss_B - self.sft_weight * pairs.chosen / pairs.chosen_tokens
        gap_B = better_B - worse_B
        right = (gap_B > 0).sum() + 0.5 * (gap_B == 0).sum()
        metrics = {
            "pair_accuracy": right,
            "reward_gap": gap_B.sum(),
            "chosen_nats": -pairs.chosen.detach().sum(),
            "rejected_nats": -pairs.rejected.detach().sum(),
        }
        return LossSum(loss_B.sum(), float(len(gap_B)), metrics)

    def score(self, metrics: dict[str, float]) -> list[float]:
        """The lower loss is better."""
        return [-metrics["loss"]]


def likelihoods(model: Model, batch: Batch) -> Pairs:
    """What the model, and the reference if it was asked, thinks of both answers of each row."""
    found, rows_N, columns_N = token_nats(model, batch)
    segments_N = batch.extra["segments"][rows_N, columns_N]
    sums, counts = [], []
    for segment in (CHOSEN, REJECTED):
        inside = segments_N == segment
        zeros_B = found.nats_N.new_zeros(len(batch.rows))
        sums.append(zeros_B.index_add(0, rows_N[inside], -found.nats_N[inside]))
        counts.append(zeros_B.index_add(0, rows_N[inside], torch.ones_like(found.nats_N[inside])))
    reference_B2 = batch.extra.get(REFERENCE, torch.zeros(len(batch.rows), 2, device=found.nats_N.device))
    reference_B2 = reference_B2.to(found.nats_N.dtype)
    return Pairs(sums[0], sums[1], counts[0], counts[1], reference_B2[:, 0], reference_B2[:, 1])


def reference_likelihoods(model: Model, data: TokenFile, tell: Listener) -> np.ndarray:
    """Log likelihoods of the better and the worse answer of each example, (N, 2) float32."""
    from tunesmith.data.batches import collate, micro_batches
    from tunesmith.models.inference import TOKENS_A_PASS

    result = np.zeros((len(data), 2), dtype=np.float32)
    model.network.eval()
    done = 0
    with torch.no_grad():
        for rows in micro_batches(data.lengths, np.arange(len(data)), TOKENS_A_PASS):
            batch = collate(data, rows.tolist(), model.pad_id).to(model.device)
            pairs = likelihoods(model, batch)
            result[rows] = torch.stack([pairs.chosen, pairs.rejected], dim=1).float().cpu().numpy()
            done += len(rows)
            tell(Progress(what="asking the reference", done=done, total=len(data)))
    return result
