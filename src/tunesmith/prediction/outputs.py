"""What a system said on the test rows: the one thing that all metrics read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.arrays import FloatArray, IntArray
from tunesmith.data.spans import Span
from tunesmith.tasks.base import Answer


@dataclass(frozen=True)
class Outputs:
    """Answers of one system on the N test rows, in the order of the rows.

    Attributes:
        probabilities: (N, C) float64; one column a class, in the order of the labels. ``None`` if there are none.
        thresholds: (C,) the probability from which on each label is given; of two classes the second one's counts.
            ``None``: 0.5, of classes the likeliest.
        scores: (N,) the score given to each row.
        texts: N generated answers.
        spans: N lists of the spans that were found.
        nats: (N,) negative log likelihood of each reference answer, in nats.
        reference_bytes: (N,) length of each reference answer in UTF-8 bytes: with ``nats`` it gives bits per byte.
        gaps: (N,) score of the better answer minus that of the worse one.
        log_odds: Whether ``gaps`` are log odds that the better answer is the better one, as a reward model's are.
        rewards: (N,) what each answer is worth by the reward that was learned from.
        judged: (N,) the same by a second judge.
        tokens: (N,) tokens of each text behind ``nats`` and ``correct``.
        correct: (N,) how many of those were the likeliest by the model.
        prompt_tokens: Tokens that the system read, summed over the N rows.
        written_tokens: Tokens that it wrote, summed over the N rows; 0 where it writes none.
        seconds: Wall-clock time for the N rows.
    """

    probabilities: FloatArray | None = None
    thresholds: FloatArray | None = None
    scores: FloatArray | None = None
    texts: list[str] | None = None
    spans: list[list[Span]] | None = None
    nats: FloatArray | None = None
    reference_bytes: FloatArray | IntArray | None = None
    gaps: FloatArray | None = None
    log_odds: bool = False
    rewards: FloatArray | None = None
    judged: FloatArray | None = None
    tokens: FloatArray | None = None
    correct: FloatArray | None = None
    prompt_tokens: int = 0
    written_tokens: int = 0
    seconds: float = 0.0

    @property
    def written_tokens_per_second(self) -> float:
        """Speed of writing, the reading of the prompts included; 0 where nothing is written."""
        return self.written_tokens / self.seconds if self.seconds else 0.0

    @property
    def rows(self) -> int:
        """N, the number of test rows."""
        for values in (self.probabilities, self.scores, self.spans, self.texts, self.nats, self.gaps):
            if values is not None:
                return len(values)
        return 0


@dataclass(frozen=True)
class Truth:
    """What would have been right on the N test rows, in the order of the rows.

    Attributes:
        answer: Kind of the answers; it decides which metrics there are.
        references: N right answers, in the form that the kind's metrics read: texts or labels unless they say else.
        labels: The classes, in the order of the columns of ``Outputs.probabilities``; ``None`` for tasks without.
        metric: The metric that decides; ``None`` leaves it to the kind of the answers.
    """

    answer: Answer
    references: Sequence[Any]
    labels: Sequence[str] | None = None
    metric: str | None = None
