"""How likely models find documents: decoders all of it, encoders what is masked."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from tunesmith.arrays import FloatArray
from tunesmith.data.documents import masked_blocks, opened, windows
from tunesmith.data.rows import Row
from tunesmith.events import Listener, nobody
from tunesmith.models import inference
from tunesmith.models.model import Model
from tunesmith.objectives.language import KEPT, hide
from tunesmith.prediction.outputs import Outputs
from tunesmith.tasks.base import Task

MASK_SHARE = 0.15
"""Of the tokens of each document measured on, whatever a stage trained with: figures stay comparable."""


def score_documents(model: Model, rows: Sequence[Row], task: Task, on_event: Listener = nobody) -> Outputs:
    """The surprise of a model at each document.

    Decoders read a long document in windows that overlap by half, so that every token but the first few has at least
    half a window before it. Encoders fill in masks that the document's content decides: the same for all models.
    """
    texts = [task.input_text(row) for row in rows]
    if model.form == "mask":
        return _masked(model, texts, [int(row.key, 16) for row in rows], on_event)
    started = time.perf_counter()
    examples: list[list[int]] = []
    weights: list[list[float]] = []
    owners: list[int] = []
    for number, text in enumerate(texts):
        for ids, carried in windows(opened(model.tokenizer, text), model.max_length, max(1, model.max_length // 2)):
            examples.append(ids)
            weights.append(carried)
            owners.append(number)
    nats = inference.answer_nats(model, examples, weights, what="scoring documents", on_event=on_event)
    return Outputs(
        nats=_sums(nats, owners, len(rows)),
        tokens=_sums(np.array([sum(carried) for carried in weights]), owners, len(rows)),
        reference_bytes=np.array([max(1, len(text.encode())) for text in texts], dtype=np.float64),
        prompt_tokens=sum(len(ids) for ids in examples),
        seconds=time.perf_counter() - started,
    )


def _masked(model: Model, texts: Sequence[str], seeds: Sequence[int], on_event: Listener) -> Outputs:
    started = time.perf_counter()
    examples: list[list[int]] = []
    targets: list[list[int]] = []
    owners: list[int] = []
    for number, (text, seed) in enumerate(zip(texts, seeds, strict=True)):
        for place, block in enumerate(masked_blocks(model.tokenizer, text, model.max_length)):
            ids = np.array(block.input_ids)
            maskable = np.array(block.loss_weights) > 0
            random = np.random.default_rng([seed, place])
            hidden, asked = hide(ids, np.arange(len(ids)), maskable, model.tokenizer, MASK_SHARE, random)
            examples.append(hidden.tolist())
            targets.append(asked.tolist())
            owners.append(number)
    found = inference.masked_answers(model, examples, targets, on_event=on_event)
    asked_N = np.array([sum(target != KEPT for target in line) for line in targets], dtype=np.float64)
    return Outputs(
        nats=_sums(found[:, 0], owners, len(texts)),
        correct=_sums(found[:, 1], owners, len(texts)),
        tokens=_sums(asked_N, owners, len(texts)),
        prompt_tokens=sum(len(ids) for ids in examples),
        seconds=time.perf_counter() - started,
    )


def unigram(model: Model, train: Sequence[Row], rows: Sequence[Row], task: Task) -> Outputs:
    """What guessing by the frequency of tokens in the training documents gives, every token counted once more."""
    counts = np.ones(len(model.tokenizer))
    for row in train:
        np.add.at(counts, _plain(model, task.input_text(row)), 1.0)
    surprise = -np.log(counts / counts.sum())
    texts = [task.input_text(row) for row in rows]
    tokens = [_plain(model, text) for text in texts]
    nats = np.array([surprise[ids].sum() for ids in tokens])
    sizes = np.array([max(1, len(text.encode())) for text in texts], dtype=np.float64)
    lengths = np.array([len(ids) for ids in tokens], dtype=np.float64)
    if model.form != "mask":
        return Outputs(nats=nats, tokens=lengths, reference_bytes=sizes)
    best = int(counts.argmax())
    return Outputs(nats=nats, tokens=lengths, correct=np.array([float((ids == best).sum()) for ids in tokens]))


def _plain(model: Model, text: str) -> np.ndarray:
    ids = model.tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    return np.asarray(ids, dtype=np.int64)


def _sums(values: FloatArray, owners: Sequence[int], size: int) -> FloatArray:
    """Windows added up to their documents, (N,)."""
    return np.bincount(np.asarray(owners, dtype=np.int64), weights=values, minlength=size).astype(np.float64)
