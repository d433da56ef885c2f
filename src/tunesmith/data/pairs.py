"""From ratings to preferences: pairs of texts of which one was rated clearly higher."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tunesmith.errors import DataError


@dataclass(frozen=True)
class Rated:
    """A text with its rating; only texts of one group (answers to one prompt) are compared."""

    text: str
    rating: float
    group: str | None = None


@dataclass
class PairSet:
    """Pairs, and what was left out of them.

    Attributes:
        pairs: Rows of the task ``preference``.
        unpaired: Texts for which no partner was far enough away.
        ties: Texts left out because they were rated several times and not alike: the ratings differ by the margin.
    """

    pairs: list[dict[str, Any]] = field(default_factory=list)
    unpaired: int = 0
    ties: int = 0


def make_pairs(rated: Sequence[Rated], *, margin: float, per_text: int = 2, seed: int = 0) -> PairSet:
    """Pair each text with up to ``per_text`` others of its group that are rated at least ``margin`` higher or lower.

    Partners are drawn by the seed; no pair occurs twice. The difference of the ratings becomes the pair's ``margin``.

    Args:
        rated: Texts; equal texts of a group count once, with their mean rating.
        margin: Least difference of the ratings, above 0: ties say nothing.
        per_text: Pairs that each text begins; a text may also be chosen by others.
        seed: Of the draw.

    Raises:
        DataError: The margin is not above 0, or no two texts are that far apart.
    """
    if not margin > 0:
        raise DataError(f"the margin is {margin}", where="--margin", fix="give a number above 0: ties say nothing")
    result = PairSet()
    for name, texts in sorted(_groups(rated, margin, result).items(), key=lambda item: item[0] or ""):
        _pair_group(name, texts, margin, per_text, seed, result)
    if not result.pairs:
        raise DataError(f"no two texts are rated {margin:g} apart", where="--margin", fix="lower the margin")
    return result


def split(rated: Iterable[Rated], share: float, seed: int = 0) -> tuple[list[Rated], list[Rated]]:
    """Divide by content before pairing, so that no text (or, with groups, no group) is on both sides."""
    sides: tuple[list[Rated], list[Rated]] = ([], [])
    for item in rated:
        key = f"{seed} {item.group if item.group is not None else item.text}"
        number = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") / 2**64
        sides[number < share].append(item)
    return sides


def _groups(rated: Sequence[Rated], margin: float, result: PairSet) -> dict[str | None, list[Rated]]:
    """Distinct texts of each group with their mean ratings."""
    ratings: dict[tuple[str | None, str], list[float]] = {}
    for item in rated:
        if not math.isfinite(item.rating):
            raise DataError(f"the rating of {item.text[:40]!r} is {item.rating}", fix="mend it or leave the row out")
        ratings.setdefault((item.group, item.text), []).append(item.rating)
    groups: dict[str | None, list[Rated]] = {}
    for (group, text), values in ratings.items():
        if max(values) - min(values) >= margin:
            result.ties += 1
            continue
        groups.setdefault(group, []).append(Rated(text, sum(values) / len(values), group))
    return groups


def _pair_group(name: str | None, texts: list[Rated], margin: float, per_text: int, seed: int, result: PairSet) -> None:
    texts = sorted(texts, key=lambda item: (item.rating, item.text))
    scores = np.asarray([item.rating for item in texts])
    random = np.random.default_rng([seed, *hashlib.blake2b((name or "").encode(), digest_size=8).digest()])
    taken: set[tuple[int, int]] = set()
    for number, item in enumerate(texts):
        below = int(np.searchsorted(scores, item.rating - margin, side="right"))
        above = int(np.searchsorted(scores, item.rating + margin, side="left"))
        partners = below + len(texts) - above
        if not partners:
            result.unpaired += 1
            continue
        for drawn in random.choice(partners, size=min(per_text, partners), replace=False).tolist():
            other = drawn if drawn < below else above + drawn - below
            better, worse = (number, other) if other < below else (other, number)
            if (better, worse) in taken:
                continue
            taken.add((better, worse))
            row = {"prompt": name} if name is not None else {}
            row |= {"chosen": texts[better].text, "rejected": texts[worse].text}
            result.pairs.append(row | {"margin": round(float(scores[better] - scores[worse]), 6)})
