"""Summaries made of a document's own sentences: the first ones, a strong rival, and the best ones, a ceiling."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Sequence

from tunesmith.data.rows import Row
from tunesmith.evaluation.text_scores import rouge_scorer, rouge_tokenizer
from tunesmith.prediction.outputs import Outputs
from tunesmith.tasks.summarization import Summarization

MOST_SENTENCES = 200
"""Of a document, that are tried for the ceiling."""


def lead(rows: Sequence[Row], task: Summarization, sentences: int) -> Outputs:
    """The first sentences of each document: what editors put first is the usual baseline (Nenkova 2005)."""
    started = time.perf_counter()
    texts = [" ".join(task.sentences(row)[:sentences]) for row in rows]
    return Outputs(texts=texts, seconds=time.perf_counter() - started)


def oracle(rows: Sequence[Row], task: Summarization, metric: str) -> Outputs:
    """The sentences of each document that come nearest to its summaries, chosen one by one with the answer in sight.

    Greedy, as long as the score rises (Nallapati et al. 2017, "SummaRuNNer", arXiv 1611.04230, section 3): what no
    extract can beat by much.

    Args:
        rows: With their summaries.
        task: Knows their sentences.
        metric: The ROUGE that counts.
    """
    started = time.perf_counter()
    score = rouge_scorer(metric, rouge_tokenizer(itertools.chain.from_iterable(map(task.reference, rows))))

    texts = [
        _best_extract(task.sentences(row)[:MOST_SENTENCES], functools.partial(_nearest, score, task.reference(row)))
        for row in rows
    ]
    return Outputs(texts=texts, seconds=time.perf_counter() - started)


def _nearest(score: Callable[[str, str], float], references: Sequence[str], text: str) -> float:
    return max(score(text, reference) for reference in references)


def _best_extract(sentences: Sequence[str], score: Callable[[str], float]) -> str:
    """Sentences in the order of the document, added while that raises the score."""
    chosen: list[int] = []
    best = 0.0
    while True:
        left = [n for n in range(len(sentences)) if n not in chosen]
        tried = [(score(" ".join(sentences[n] for n in sorted([*chosen, one]))), -one) for one in left]
        found, place = max(tried, default=(0.0, 0))
        if found <= best:
            return " ".join(sentences[n] for n in sorted(chosen))
        best = found
        chosen.append(-place)
