"""Groups of texts for contrastive learning: every text of a group is compared with every other one of it."""

from __future__ import annotations

import math

import numpy as np

FEWEST_ROUNDS, MOST_ROUNDS, ENOUGH_GROUPS = 8, 40, 150
"""With 32 snippets of each of two labels, 16, 64 and 160 updates of MiniLM-L6 gave an accuracy of 0.60, 0.68 and 0.73
on 500 rows of sentence_polarity: few texts need many rounds."""


def default_rounds(texts: int, size: int) -> int:
    """How often to go through so many texts: until there are about 150 groups, within limits."""
    return min(MOST_ROUNDS, max(FEWEST_ROUNDS, math.ceil(ENOUGH_GROUPS / math.ceil(texts / size))))


def draw_groups(classes: np.ndarray, size: int, rounds: int, seed: int) -> list[np.ndarray]:
    """Groups of texts that hold pairs of the same class and pairs of different ones.

    In each round every text is in one group, and is there together with another text of its class if there is one.
    Classes take turns, so that a group holds as many as there is room for: m texts give m (m - 1) / 2 pairs for the
    price of encoding m texts, where pairs drawn one by one (arXiv 2209.11055) give m / 2.

    Args:
        classes: (N,) class of each text.
        size: Texts in a group, 4 or more; the last one of a round may have a few more or fewer.
        rounds: How often to go through the texts.
        seed: Of the drawing.

    Returns:
        Indices of the texts of each group; no group of a single text, which has nothing to be compared with.
    """
    random = np.random.default_rng([seed, 3])
    groups: list[np.ndarray] = []
    for _ in range(rounds):
        couples = _couples_in_turn(classes, random)
        per_group = max(2, size // 2)
        starts = list(range(0, len(couples), per_group))
        if len(starts) > 1 and len(couples) - starts[-1] < 2:  # a couple alone has nothing to differ from
            starts.pop()
        ends = [*starts[1:], len(couples)]
        groups += [np.concatenate(couples[start:end]) for start, end in zip(starts, ends, strict=True)]
    return [group for group in groups if len(group) > 1]


def _couples_in_turn(classes: np.ndarray, random: np.random.Generator) -> list[np.ndarray]:
    """Two texts of one class at a time, the classes in turn; a class of one text gives that one."""
    waiting = []
    for number in random.permutation(np.unique(classes)):
        own = random.permutation(np.flatnonzero(classes == number))
        if len(own) % 2 and len(own) > 1:
            own = np.append(own, own[0])
        waiting.append([own[start : start + 2] for start in range(0, len(own), 2)])
    deepest = max(len(couples) for couples in waiting)
    return [couples[depth] for depth in range(deepest) for couples in waiting if depth < len(couples)]
