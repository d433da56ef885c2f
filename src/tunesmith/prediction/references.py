"""How likely a model finds right answers: what is too long loses the beginning of its prompt, not its answer."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np

from tunesmith.arrays import FloatArray
from tunesmith.data.render import Rendered
from tunesmith.events import Listener, nobody
from tunesmith.models import inference
from tunesmith.models.model import Model

UNCUT = sys.maxsize
"""For renderers whose examples are cut here: those that training sees lose their end."""


def answer_nats(
    model: Model, examples: Sequence[Rendered], limit: int, on_event: Listener = nobody
) -> tuple[FloatArray, FloatArray]:
    """Negative log likelihood of the learned tokens of examples, (N,) in nats, and the tokens that it is of, (N,).

    Args:
        model: That writes.
        examples: Rendered uncut.
        limit: Most tokens that the model can read.
        on_event: Told the progress.
    """
    kept = [_tail(example, limit) for example in examples]
    nats = inference.answer_nats(model, [ids for ids, _ in kept], [weights for _, weights in kept], on_event=on_event)
    return nats, np.asarray([learned(weights) for _, weights in kept], dtype=np.float64)


def learned(weights: Sequence[float] | None) -> int:
    """How many tokens carry loss."""
    return sum(weight > 0 for weight in weights or ())


def _tail(example: Rendered, limit: int) -> tuple[list[int], list[float]]:
    """At most so many tokens: as much of the prompt as the answer leaves, and a token of it in any case."""
    weights = example.loss_weights or []
    before = next(n for n, weight in enumerate(weights) if weight)
    lost = min(max(0, len(weights) - limit), max(0, before - 1))
    return example.input_ids[lost:][:limit], weights[lost:][:limit]
