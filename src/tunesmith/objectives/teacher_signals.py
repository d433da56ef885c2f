"""What a teacher thinks, asked once and kept on disk beside the tokens: scores of labels, and sparse distributions.

Kept under what it was made from (the teacher's files, the rows, the settings): a resumed run finds it, and what no
longer matches is made again.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tunesmith.catalog import cache
from tunesmith.data.batches import Batch, Ragged, TokenFile, collate, micro_batches
from tunesmith.data.rows import content_key
from tunesmith.events import Listener, Progress
from tunesmith.models.inference import TOKENS_A_PASS
from tunesmith.models.model import Model
from tunesmith.objectives.cross_entropy import chunks
from tunesmith.objectives.divergence import Drawn, Target, TopK
from tunesmith.objectives.teacher import Teacher, label_scores
from tunesmith.recipe import Distillation

SCORES, WORDS, VALUES = "teacher_scores", "teacher_words", "teacher_values"
"""Columns of a set: scores of the labels; words of each place; their log probabilities, or the entropy there."""


def keep_scores(
    teacher: Teacher, identity: str, data: TokenFile, labels: list[str], folder: Path, tell: Listener
) -> None:
    """Give a set the teacher's scores of its labels.

    Args:
        teacher: Who is asked.
        identity: Hash of the teacher's files.
        data: Gets the column :data:`SCORES`.
        labels: In the order of the columns.
        folder: Where they are kept.
        tell: Told the progress.
    """
    texts = [str(row.fields["text"]) for row in data.rows]
    key = {"teacher": identity, "texts": content_key(texts), "labels": labels, "format": 1}

    def build(staging: Path) -> dict[str, Any]:
        np.save(staging / "scores.npy", label_scores(teacher, data.rows, labels, tell).astype(np.float32))
        return {}

    place = cache.ensure(folder, build, key=key, on_event=tell)
    data.add(SCORES, np.load(place / "scores.npy", allow_pickle=False))


def keep_words(
    teacher: Model,
    identity: str,
    data: TokenFile,
    own: Distillation,
    temperature: float,
    vocabulary: int,
    seed: int,
    folder: Path,
    tell: Listener,
) -> None:
    """Give a set the words that the teacher finds likely, or that were drawn from it, at each place with loss.

    Args:
        teacher: Who is asked.
        identity: Hash of the teacher's files.
        data: Gets the columns :data:`WORDS` and :data:`VALUES`.
        own: ``cache`` and ``kept_tokens``.
        temperature: Of the distributions.
        vocabulary: Words that the student knows; the rest is padding of the teacher's matrix.
        seed: Of the draws.
        folder: Where they are kept.
        tell: Told the progress.
    """
    words = min(own.kept_tokens, vocabulary) if own.cache == "top-k" else own.kept_tokens
    values = words if own.cache == "top-k" else 1
    counts = np.asarray([int((data.weights(row)[1:] > 0).sum()) for row in range(len(data))], dtype=np.int64)
    starts = np.concatenate([[0], np.cumsum(counts)])
    key = {
        "teacher": identity,
        "tokens": data.digest,
        "kept": [own.cache, words, temperature, vocabulary, seed],
        "format": 1,
    }

    def build(staging: Path) -> dict[str, Any]:
        ids_MK = np.lib.format.open_memmap(staging / "words.npy", "w+", np.int32, (int(starts[-1]), words))
        values_MK = np.lib.format.open_memmap(staging / "values.npy", "w+", np.float32, (int(starts[-1]), values))
        random = torch.Generator().manual_seed(seed)
        for places_N, log_p_NV in _distributions(teacher, data, starts, temperature, vocabulary, tell):
            if own.cache == "top-k":
                top = log_p_NV.topk(words, dim=-1)
                ids, kept = top.indices, top.values
            else:
                p_NV = log_p_NV.exp()
                ids = torch.multinomial(p_NV.cpu(), words, replacement=True, generator=random)
                kept = -(p_NV * log_p_NV).sum(-1, keepdim=True)
            ids_MK[places_N], values_MK[places_N] = ids.cpu().numpy(), kept.cpu().numpy()
        ids_MK.flush()
        values_MK.flush()
        return {}

    place = cache.ensure(folder, build, key=key, on_event=tell)
    for name, file, width in ((WORDS, "words.npy", words), (VALUES, "values.npy", values)):
        data.extra[name] = Ragged(starts * width, np.load(place / file, mmap_mode="r", allow_pickle=False).reshape(-1))


def _distributions(
    teacher: Model, data: TokenFile, starts: np.ndarray, temperature: float, vocabulary: int, tell: Listener
) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    """Numbers of places with loss, counted over the whole set, and the teacher's log probabilities there (N, V)."""
    teacher.network.eval()
    done = 0
    for rows in micro_batches(data.lengths, np.arange(len(data)), TOKENS_A_PASS):
        batch = collate(data, rows.tolist(), teacher.pad_id).to(teacher.device)
        assert batch.loss_weights is not None
        lines, columns = batch.loss_weights[:, 1:].nonzero(as_tuple=True)
        with torch.no_grad():
            hidden_Nd = teacher.hidden_states(batch)[lines, columns]
            places_N = np.concatenate([np.arange(starts[row], starts[row + 1]) for row in rows])
            for part in chunks(len(hidden_Nd), vocabulary):
                scores_NV = teacher.vocabulary_scores(hidden_Nd[part])[:, :vocabulary].float()
                yield places_N[part], torch.log_softmax(scores_NV / temperature, dim=-1)
        done += len(rows)
        tell(Progress(what="asking the teacher", done=done, total=len(data)))


def kept_target(batch: Batch, own: Distillation, temperature: float) -> Target:
    """What was kept for the N places with loss of a batch, in row-major order."""
    assert batch.loss_weights is not None
    counts_B = (batch.loss_weights[:, 1:] > 0).sum(1)
    inside_Bn = torch.arange(int(counts_B.max()), device=counts_B.device) < counts_B[:, None]
    ids_NK, values_NK = (_places(batch.extra[name], inside_Bn) for name in (WORDS, VALUES))
    if own.cache == "top-k":
        return TopK(ids_NK, values_NK, own.divergence, own.beta, temperature)
    return Drawn(ids_NK, values_NK[:, 0], temperature)


def _places(column_BW: torch.Tensor, inside_Bn: torch.Tensor) -> torch.Tensor:
    """A column with K values a place, (B, n K) padded, as (N, K)."""
    return column_BW.view(*inside_Bn.shape, -1)[inside_Bn]
