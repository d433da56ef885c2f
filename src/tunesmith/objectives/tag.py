"""Cross-entropy of the tags of tokens."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from tunesmith.data.batches import Batch
from tunesmith.data.tagging import IGNORED
from tunesmith.models.model import Model
from tunesmith.objectives.base import LossSum, Objective
from tunesmith.recipe import Training

COUNTS = ("right_spans", "predicted_spans", "true_spans")


class Tag(Objective):
    """-log softmax(logits)[tag], summed over the tokens that carry a tag; with label smoothing if asked for."""

    name = "tag"

    def __init__(self, settings: Training) -> None:
        self.label_smoothing = settings.label_smoothing

    def loss(self, model: Model, batch: Batch) -> LossSum:
        """Sum over the N tagged tokens of (B, S); each weighs 1. Metrics: ``token_accuracy`` and ``span_f1``."""
        assert "tags" in batch.extra, "the data were rendered for another objective"
        tags_BS = batch.extra["tags"]
        rows, columns = (tags_BS != IGNORED).nonzero(as_tuple=True)
        tags_N = tags_BS[rows, columns]
        return self.of_logits(model.token_logits(batch, rows, columns), tags_N, rows)

    def of_logits(self, logits_NC: torch.Tensor, tags_N: torch.Tensor, rows_N: torch.Tensor) -> LossSum:
        """The same from scores that the head gave already, with the batch row that each token belongs to."""
        total = functional.cross_entropy(logits_NC, tags_N, reduction="sum", label_smoothing=self.label_smoothing)
        chosen_N = logits_NC.detach().argmax(-1)
        row_N, tag_N, chose_N = (values.cpu().numpy() for values in (rows_N, tags_N, chosen_N))
        counts = dict(zip(COUNTS, span_counts(chose_N, tag_N, row_N), strict=True))
        sums = {"token_accuracy": (chosen_N == tags_N).sum()} | {n: torch.tensor(c) for n, c in counts.items()}
        return LossSum(total, float(len(tags_N)), sums)

    def metrics(self, sums: dict[str, float], weight: float) -> dict[str, float]:
        """Share of right tags, and the strict F1 of spans of words."""
        right, predicted, true = (sums[name] for name in COUNTS)
        return {
            "span_f1": 2 * right / max(1.0, predicted + true),
            "token_accuracy": sums["token_accuracy"] / weight,
        }

    def score(self, metrics: dict[str, float]) -> list[float]:
        """Span F1 first; of two equal ones the lower loss."""
        return [metrics["span_f1"], -metrics["loss"]]


def span_counts(chosen_N: np.ndarray, true_N: np.ndarray, row_N: np.ndarray) -> tuple[int, int, int]:
    """Spans that are right, predicted and true, from the tags of words in their order.

    Args:
        chosen_N: Numbers of tags: 0 is O, then B- and I- of each label.
        true_N: The same.
        row_N: The text that each word belongs to; no span goes from one to the next.
    """
    num_labels = int(max(chosen_N.max(initial=0), true_N.max(initial=0)) + 1) // 2
    chosen, true = _spans(chosen_N, row_N, num_labels), _spans(true_N, row_N, num_labels)
    return len(np.intersect1d(chosen, true, assume_unique=True)), len(chosen), len(true)


def _spans(tags_N: np.ndarray, row_N: np.ndarray, num_labels: int) -> np.ndarray:
    """Each span as one number, made of its first word, its last word and its label; ``conlleval``'s rule."""
    label_N = (tags_N + 1) // 2  # 0 outside
    begins_N = tags_N % 2 == 1
    new_N = np.ones(len(tags_N), dtype=bool)
    new_N[1:] = (label_N[1:] != label_N[:-1]) | (row_N[1:] != row_N[:-1]) | begins_N[1:]
    starts = np.flatnonzero(new_N)
    ends = np.append(starts[1:], len(tags_N))
    labels = label_N[starts]
    return ((starts * (len(tags_N) + 1) + ends) * (num_labels + 1) + labels)[labels > 0]
