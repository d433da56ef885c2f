"""Examples in the prompt: which ones, and what to do about a model's liking for some labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tunesmith.data.rows import Row
from tunesmith.data.shots import Shown
from tunesmith.recipe import InContext
from tunesmith.tasks.base import Task

Shots = Callable[[Row], Sequence[Row]]
"""Which examples to show before a row."""

CONTENT_FREE = ("N/A", "[MASK]", "")
"""Texts that say nothing: what a model answers to them is its own bias (Zhao et al. 2021, arXiv 2102.09690)."""


_WORD = r"[\u3040-\u30ff\u3400-\u9fff]|(?:(?![\u3040-\u30ff\u3400-\u9fff])\w){2,}"
"""Chinese and Japanese write no spaces between words: each of their characters is a word of its own."""


def choose(train: Sequence[Row], settings: InContext, task: Task, labels: list[str] | None, seed: int) -> Shown:
    """The examples of a run; with ``nearest`` every training row, of which each question takes its own."""
    if settings.choose == "nearest":
        return Shown(list(train), settings)
    in_turn = labels if settings.choose == "by-label" and task.answer == "label" else None
    return Shown(random_shots(train, settings.examples, task, in_turn, seed), settings)


def shots_of(shown: Shown, rows: Sequence[Row], task: Task) -> Shots:
    """What to show before each of some rows."""
    if shown.settings.choose == "nearest":
        return nearest_shots(shown.rows, rows, shown.settings.examples, task)
    return lambda row: shown.rows


def random_shots(train: Sequence[Row], k: int, task: Task, labels: Sequence[str] | None, seed: int) -> list[Row]:
    """The same k examples for every row, drawn by the seed; with a label each, these in turn, so k >= C shows all."""
    order = np.random.default_rng([seed, 1]).permutation(len(train)).tolist()
    if labels is None or task.answer != "label":
        return [train[n] for n in order[:k]]
    waiting: dict[str, list[Row]] = {label: [] for label in labels}
    for n in order:
        bucket = waiting[task.target_text(train[n])]
        if len(bucket) < k:
            bucket.append(train[n])
    ranks = [(depth, rows[depth]) for rows in waiting.values() for depth in range(len(rows))]
    chosen = [row for _, row in sorted(ranks, key=lambda pair: pair[0])][:k]
    return [chosen[n] for n in np.random.default_rng([seed, 2]).permutation(len(chosen))]


def nearest_shots(train: Sequence[Row], rows: Sequence[Row], k: int, task: Task) -> Shots:
    """For each row the k training examples most like it, the likest last (nearest to the question).

    Likeness is the cosine of TF-IDF vectors; where fewer than k share a word with the row, others stand before them.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    others = np.random.default_rng(0).permutation(len(train))[: 2 * k].tolist()
    vectorizer = TfidfVectorizer(sublinear_tf=True, token_pattern=_WORD)
    try:
        known = vectorizer.fit_transform([task.input_text(row) for row in train])
    except ValueError:  # there is no word in any of them
        return lambda row: [train[n] for n in others[:k]]
    asked = vectorizer.transform([task.input_text(row) for row in rows])
    similarity = (asked @ known.T).tocsr()
    found: dict[str, list[int]] = {}
    for n, row in enumerate(rows):
        line = similarity.getrow(n)
        best = line.indices[np.argsort(-line.data, kind="stable")[:k]].tolist()
        rest = [other for other in others if other not in best]
        found[row.key] = rest[: k - len(best)] + best[::-1]
    return lambda row: [train[n] for n in found[row.key]]


def calibrated(
    probabilities: np.ndarray,
    rows: Sequence[Row],
    shots: Shots,
    task: Task,
    ask: Callable[[Sequence[Row], Shots], np.ndarray],
) -> np.ndarray:
    """Contextual calibration: each label's probability over its mean after texts that say nothing, normalised.

    Zhao et al. 2021, arXiv 2102.09690, section 4 (W = diag(p_cf)^-1, b = 0). Rows with the same examples share it.

    Args:
        probabilities: (N, C) of the rows.
        rows: N rows.
        shots: What was shown before each.
        task: Whose first field is emptied.
        ask: Gives (M, C) for M rows and what is shown before them.
    """
    numbers: dict[tuple[str, ...], int] = {}
    shown: list[Sequence[Row]] = []
    set_of_row = []
    for row in rows:
        examples = shots(row)
        key = tuple(example.key for example in examples)
        if key not in numbers:
            numbers[key] = len(shown)
            shown.append(examples)
        set_of_row.append(numbers[key])
    field = task.forms[0][0].name
    empty = [
        (examples, Row({**rows[0].fields, field: text}, rows[0].origin)) for examples in shown for text in CONTENT_FREE
    ]
    before = {id(row): examples for examples, row in empty}
    answers = ask([row for _, row in empty], lambda row: before[id(row)])
    bias = answers.reshape(len(shown), len(CONTENT_FREE), -1).mean(axis=1)
    scores = probabilities / np.maximum(bias[set_of_row], np.finfo(np.float64).tiny)
    result: np.ndarray = scores / scores.sum(axis=1, keepdims=True)
    return result
