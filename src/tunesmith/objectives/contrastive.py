"""Teaching a sentence encoder to put texts of one class near each other and others apart (SetFit's first phase)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from tunesmith.data.batches import Batch, TokenFile
from tunesmith.data.groups import default_rounds, draw_groups
from tunesmith.data.render import Render, Rendered
from tunesmith.data.rows import Row
from tunesmith.events import Listener
from tunesmith.models.model import Model
from tunesmith.objectives.base import LossSum, Objective
from tunesmith.recipe import Training

WIDTH_MULTIPLE = 16


class Contrastive(Objective):
    """(cos(a, b) - y)^2 over pairs of texts; y is 1 for texts of one class and 0 for others.

    The loss of SetFit (Tunstall et al. 2022, arXiv 2209.11055) and Sentence-BERT (arXiv 1908.10084, section 3). As its
    oversampling does, pairs of either sort weigh the same in sum; an example is a group of texts with all its pairs.
    """

    name = "contrastive"
    skips_frozen = False
    joins_rows = True

    def __init__(self, settings: Training) -> None:
        self.size, self.rounds = settings.contrastive.group_size, settings.contrastive.rounds
        self.seed = settings.seed
        self.weight_of_others: float | None = None  # of a pair of two classes; a pair of one class weighs 1

    def examples_of(self, rows: Sequence[Row], render: Render) -> tuple[Sequence[Row], Render]:
        """Groups of the rows, each rendered as its texts one after the other."""
        texts = [render(row) for row in rows]
        if not texts:
            return rows, render
        classes = np.asarray([text.label for text in texts])
        rounds = self.rounds or default_rounds(len(texts), self.size)
        groups = draw_groups(classes, self.size, rounds, self.seed)
        if self.weight_of_others is None:
            self.weight_of_others = _balance([classes[group] for group in groups])

        def render_group(group: Row) -> Rendered:
            members = [texts[number] for number in group.fields["members"]]
            return Rendered(
                input_ids=[token for text in members for token in text.input_ids],
                label=0,
                cut_tokens=sum(text.cut_tokens for text in members),
                extra={
                    "sizes": [len(text.input_ids) for text in members],
                    "classes": [int(text.label or 0) for text in members],
                },
            )

        return [Row({"members": group.tolist()}, rows[int(group[0])].origin) for group in groups], render_group

    def start(self, model: Model, sets: list[TokenFile], folder: Path, tell: Listener) -> None:
        """Keep the head, which this loss does not see, out of the training."""
        for name in model.head_names:
            model.network.get_submodule(name).requires_grad_(False)

    def loss(self, model: Model, batch: Batch) -> LossSum:
        """Weighted sum over the pairs of each group. Metrics: mean cosines, ``same`` and ``other``, by weight."""
        sizes_Bm, classes_Bm = batch.extra["sizes"], batch.extra["classes"]
        filled_Bm = sizes_Bm >= 0
        vectors_Td = functional.normalize(model.sentence_vectors(texts_of(batch, model.pad_id)), dim=-1)
        vectors_Bmd = vectors_Td.new_zeros(*sizes_Bm.shape, vectors_Td.shape[-1])
        vectors_Bmd[filled_Bm] = vectors_Td
        cosine_Bmm = vectors_Bmd @ vectors_Bmd.transpose(1, 2)
        pairs_Bmm = (filled_Bm[:, :, None] & filled_Bm[:, None, :]).triu(1)
        same_Bmm = classes_Bm[:, :, None] == classes_Bm[:, None, :]
        weights_Bmm = pairs_Bmm * torch.where(same_Bmm, 1.0, self.weight_of_others or 1.0).to(cosine_Bmm.dtype)
        total = (weights_Bmm * (cosine_Bmm - same_Bmm.to(cosine_Bmm.dtype)).square()).sum()
        weighed = (weights_Bmm * cosine_Bmm).detach()
        metrics = {
            "same": weighed[same_Bmm].sum(),
            "other": weighed[~same_Bmm].sum(),
            "share_same": weights_Bmm[same_Bmm].sum(),
        }
        return LossSum(total, float(weights_Bmm.sum()), metrics)

    def metrics(self, sums: dict[str, float], weight: float) -> dict[str, float]:
        """Mean cosine of texts of the same class, and of others; of one example of each class there are no former."""
        weights = {"same": sums["share_same"], "other": weight - sums["share_same"]}
        return {name: sums[name] / share for name, share in weights.items() if share > 1e-9}

    def score(self, metrics: dict[str, float]) -> list[float]:
        """The lower the loss the better."""
        return [-metrics["loss"]]


def texts_of(batch: Batch, pad_id: int) -> Batch:
    """The T texts of a batch of groups as a batch of their own, in order."""
    sizes_Bm = batch.extra["sizes"]
    sizes_T = sizes_Bm[sizes_Bm >= 0]
    width = math.ceil(int(sizes_T.max()) / WIDTH_MULTIPLE) * WIDTH_MULTIPLE
    mask_TS = torch.arange(width, device=sizes_T.device) < sizes_T[:, None]
    ids_TS = torch.full(mask_TS.shape, pad_id, dtype=batch.input_ids.dtype, device=batch.input_ids.device)
    ids_TS[mask_TS] = batch.input_ids[batch.attention_mask]
    return dataclasses.replace(batch, input_ids=ids_TS, attention_mask=mask_TS, labels=None, extra={})


def _balance(groups: Sequence[np.ndarray]) -> float:
    """The weight of a pair of two classes with which all of these weigh as much as all pairs of one class."""
    pairs = sum(len(group) * (len(group) - 1) // 2 for group in groups)
    same = sum(int((count * (count - 1) // 2).sum()) for count in (np.unique(g, return_counts=True)[1] for g in groups))
    return same / (pairs - same) if same and pairs > same else 1.0
