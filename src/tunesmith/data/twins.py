"""Training rows that repeat another one and are left out (``data.duplicates: drop``): of each group the first stays."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.ledger import PARTS
from tunesmith.data.near_duplicates import NearPairs

_TRAIN = PARTS.index("train")


class Twins:
    """For each row of a ledger the earlier row that it repeats, if any: on disk, 8 bytes a row.

    Args:
        num_rows: Of the ledger.
        by: What rows share with the one they repeat, beside the input: the target, or all that the task reads of them.
        folder: Where the file lies; default: the system's folder for temporary files.

    Attributes:
        by: As above.
        exact: Rows that are the same as another.
        near: Rows that are nearly the same.
    """

    def __init__(self, num_rows: int, by: Literal["target", "content"] = "content", folder: Path | None = None) -> None:
        file: Any = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - the map keeps it
        self._of = np.memmap(file, np.uint64, "w+", shape=(max(1, num_rows),))  # position + 1; 0 of rows that stay
        self.by = by
        self.exact = self.near = 0

    def mark(self, positions: NDArray[Any], partners: NDArray[Any], parts: NDArray[Any]) -> None:
        """Enter rows that are the same as an earlier one; those outside the training data are passed over."""
        here = parts == _TRAIN
        self._of[positions[here]] = partners[here] + 1
        self.exact += int(here.sum())

    def mark_near(self, pairs: NearPairs) -> None:
        """Enter training rows that are nearly the same as an earlier one which stays.

        So each row that goes has a near twin that stays, and no two that stay were found to be near twins.
        """
        gone: set[int] = set()
        inside = (pairs.parts == _TRAIN).all(axis=1)
        for earlier, later in pairs.positions[inside].tolist():  # in the order of the later row
            if earlier not in gone and later not in gone:
                gone.add(later)
                self._of[later] = earlier + 1
        self.near += len(gone)

    def leave(self, first: int, count: int) -> NDArray[np.bool_]:
        """Which of successive rows are left out."""
        result: NDArray[np.bool_] = np.asarray(self._of[first : first + count]) > 0
        return result

    def of(self, position: int) -> int | None:
        """The position of the row that this one repeats."""
        found = int(self._of[position])
        return found - 1 if found else None
