"""How systems judge answers: reward models, likelihoods, features, and the floor of preferring the longer."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tunesmith.arrays import FloatArray
from tunesmith.data.render import ConversationRenderer, encode_text, only_last_learned
from tunesmith.data.render_pairs import score_reader
from tunesmith.data.rows import Origin, Row
from tunesmith.events import Listener
from tunesmith.models import inference
from tunesmith.models.model import Model
from tunesmith.prediction.outputs import Outputs
from tunesmith.prediction.references import UNCUT, answer_nats
from tunesmith.prediction.setting import Setting
from tunesmith.tasks.base import Message
from tunesmith.tasks.preference import conversations, text_of, tools_of

Scored = tuple[list[Message], Any, Origin]
"""A conversation or a bare text that is to be scored, the tools that may be called in it, and whence it is."""


def judge(model: Model, rows: Sequence[Row], setting: Setting) -> Outputs:
    """Which answer of each row a model prefers: by its scalar head, else by the mean likelihood of the answers' tokens.

    The mean, because under a sum every model prefers the shorter answer.
    """
    started = time.perf_counter()
    pairs = [(turns, row) for row in rows for turns in conversations(row, setting.system_prompt)]
    if model.form == "classify":
        examples = _read(model, [(turns, tools_of(row), row.origin) for turns, row in pairs])
        scores = inference.head_scores(model, examples, on_event=setting.on_event)[:, 0]
        return replace(_outputs(scores, sum(len(ids) for ids in examples), started), log_odds=True)
    return _outputs(*_mean_likelihoods(model, pairs, setting.on_event), started)


def weigh(model: Model, rows: Sequence[Row], setting: Setting) -> Outputs:
    """How likely a model finds single answers: the mean log likelihood of their tokens."""
    started = time.perf_counter()
    asked = [(only_last_learned(setting.task.conversation(row, None, setting.system_prompt)), row) for row in rows]
    scores, tokens = _mean_likelihoods(model, asked, setting.on_event)
    return Outputs(scores=scores, prompt_tokens=tokens, seconds=time.perf_counter() - started)


def _mean_likelihoods(
    model: Model, asked: Sequence[tuple[list[Message], Row]], on_event: Listener
) -> tuple[FloatArray, int]:
    """Mean log likelihood (N,) of the learned tokens of N conversations, and the tokens that were read."""
    renderer = ConversationRenderer(model.tokenizer, UNCUT, model.eos_ids)
    rendered = [renderer(turns, tools=tools_of(row), origin=row.origin) for turns, row in asked]
    nats, sizes = answer_nats(model, rendered, model.max_length, on_event)
    return -nats / sizes, sum(min(len(example.input_ids), model.max_length) for example in rendered)


def score_texts(model: Model, texts: Sequence[Scored], on_event: Listener) -> FloatArray:
    """Scores (N,) that a reward model gives to N texts."""
    return inference.head_scores(model, _read(model, texts), on_event=on_event)[:, 0]


def _read(model: Model, texts: Sequence[Scored]) -> list[list[int]]:
    read = score_reader(model.tokenizer, model.max_length, model.eos_ids)
    return [read(*text)[0] for text in texts]


def longer(rows: Sequence[Row]) -> Outputs:
    """Prefer the longer answer: what a judge with nothing but a bias for length would do."""
    started = time.perf_counter()
    lengths = [len(text_of(turns)) for row in rows for turns in conversations(row, None)]
    return _outputs(np.asarray(lengths, dtype=np.float64), 0, started)


def by_features(model: Model, train: Sequence[Row], rows: Sequence[Row], setting: Setting) -> Outputs:
    """Logistic regression, without intercept, on the difference of the frozen model's vectors of both answers."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    started = time.perf_counter()

    def differences(of: Sequence[Row]) -> FloatArray:
        texts = [text_of(turns) for row in of for turns in conversations(row, None)]
        examples = [encode_text(model.tokenizer, text, model.max_length)[0] for text in texts]
        vectors = inference.embeddings(model, examples, on_event=setting.on_event)
        return np.asarray(vectors[0::2] - vectors[1::2])

    known = differences(train)
    head = make_pipeline(StandardScaler(with_mean=False), LogisticRegression(fit_intercept=False, max_iter=1000))
    head.fit(np.concatenate([known, -known]), np.repeat([1, 0], len(known)))
    gaps = head.decision_function(differences(rows))
    return Outputs(gaps=gaps, log_odds=True, seconds=time.perf_counter() - started)


def _outputs(scores: FloatArray, tokens: int, started: float) -> Outputs:
    gaps = np.asarray(scores[0::2] - scores[1::2], dtype=np.float64)
    return Outputs(gaps=gaps, prompt_tokens=tokens, seconds=time.perf_counter() - started)
