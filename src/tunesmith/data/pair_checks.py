"""What can be said of a set of preferences as a whole: contradictions, texts on both sides, bias by length."""

from __future__ import annotations

from array import array

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.ledger import PARTS, Ledger, hash64, normalised
from tunesmith.data.problems import PLACES, Findings
from tunesmith.data.rows import Row
from tunesmith.data.splits import TRAIN, Assignment
from tunesmith.tasks.preference import text_of, turns_of

FEWEST = 50
"""Training pairs from which the bias by length is spoken of."""
BIASED = 0.65
"""Share of pairs whose better answer is the longer one, from which a judge that goes by length does well (a choice)."""

_NO_PROMPT = hash64(b"")


class PairBook:
    """Hashes and lengths of each row's texts, in the order of the ledger: 28 bytes a row."""

    def __init__(self) -> None:
        self._prompts, self._better, self._worse = array("Q"), array("Q"), array("Q")
        self._longer = array("i")

    def add(self, row: Row) -> None:
        """Enter a row."""
        prompt, better, worse = (text_of(turns) for turns in turns_of(row))
        for book, text in ((self._prompts, prompt), (self._better, better), (self._worse, worse)):
            book.append(hash64(normalised(text).encode()))
        self._longer.append(max(-(2**30), min(2**30, len(better) - len(worse))))

    def judge(self, findings: Findings, ledger: Ledger, assignment: Assignment) -> list[str]:
        """Report what is wrong, and say how lengths differ, in notes."""
        prompts, better, worse = (
            np.asarray(book, dtype=np.uint64) for book in (self._prompts, self._better, self._worse)
        )
        sides = np.empty(len(prompts), dtype=np.int64)
        for first, chunk, of_chunk in assignment.sides(ledger):
            sides[first : first + len(chunk)] = of_chunk
        _contradictions(findings, ledger, prompts, better, worse)
        for side in range(TRAIN + 1, len(PARTS)):
            _shared_texts(findings, ledger, prompts, better, worse, sides, side)
        return _by_length(findings, np.asarray(self._longer, dtype=np.int64)[sides == TRAIN])


def _contradictions(
    findings: Findings,
    ledger: Ledger,
    prompts: NDArray[np.uint64],
    better: NDArray[np.uint64],
    worse: NDArray[np.uint64],
) -> None:
    """Pairs that an earlier row states the other way round."""
    known: dict[tuple[int, int, int], int] = {}
    swapped = []
    for position, (prompt, one, other) in enumerate(
        zip(prompts.tolist(), better.tolist(), worse.tolist(), strict=True)
    ):
        if (prompt, other, one) in known:
            swapped.append((position, known[prompt, other, one]))
        known.setdefault((prompt, one, other), position)
    if not swapped:
        return
    position, partner = swapped[0]
    findings.add_many(
        "contradiction",
        "warning",
        f"pairs are stated the other way round by an earlier row (the first at {ledger.origin(partner)}, "
        f"against {ledger.origin(position)})",
        [ledger.origin(row) for row, _ in swapped[:PLACES]],
        len(swapped),
        fix="decide which answer is better, or take out both: they cancel each other",
    )


def _shared_texts(
    findings: Findings,
    ledger: Ledger,
    prompts: NDArray[np.uint64],
    better: NDArray[np.uint64],
    worse: NDArray[np.uint64],
    sides: NDArray[np.int64],
    side: int,
) -> None:
    """Pairs without a prompt, to measure on, of which a text stands in a training pair too."""
    bare = prompts == _NO_PROMPT
    trained = np.concatenate([better[bare & (sides == TRAIN)], worse[bare & (sides == TRAIN)]])
    here = np.flatnonzero(bare & (sides == side))
    seen = here[np.isin(better[here], trained) | np.isin(worse[here], trained)]
    findings.add_many(
        "shared-text",
        "warning",
        f"{PARTS[side]} pairs hold a text that a training pair holds too: what is measured on them is flattered",
        [ledger.origin(row) for row in seen[:PLACES].tolist()],
        len(seen),
        fix="divide the texts before they are paired (`tunesmith pairs --test-out FILE`), or name a column with "
        "`data.group_by`",
        group=PARTS[side],
    )


def _by_length(findings: Findings, differences: NDArray[np.int64]) -> list[str]:
    """How often the better answer of a training pair is the longer one."""
    telling = differences[differences != 0]
    if len(telling) < FEWEST:
        return []
    share = float((telling > 0).mean())
    said = f"the better answer is the longer one in {share:.0%} of the training pairs that differ in length"
    if max(share, 1 - share) >= BIASED:
        findings.add_many(
            "length-bias",
            "warning",
            f"{said}: a judge can learn to go by length, and a model to write {'long' if share > 0.5 else 'short'}",
            [],
            1,
            fix="look at accuracy by length in the report; balance the pairs, or use `preference.length_normalised`",
        )
    return [f"{said}; by {differences.mean():+.0f} characters on the average"]
