"""What a stage does when memory runs out: the same with less of it, or else say so."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch

from tunesmith.data.batches import TokenFile
from tunesmith.errors import ResourceError
from tunesmith.events import Listener, Notice
from tunesmith.models import recomputing
from tunesmith.models.model import Model
from tunesmith.training.optimizer import MasterAdamW
from tunesmith.training.position import Position

Result = TypeVar("Result")


class ScarceMemory:
    """Begins again in smaller pieces, and at last with recomputed activations. Neither changes the result.

    Args:
        model: What is trained.
        optimizer: Forgets the gradients of what has to be done again.
        position: Holds how many tokens go into a forward pass.
        may_recompute: Whether activations may be computed again.
        on_event: Told what was changed.
    """

    def __init__(
        self, model: Model, optimizer: MasterAdamW, position: Position, *, may_recompute: bool, on_event: Listener
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.position = position
        self.may_recompute = may_recompute
        self.on_event = on_event

    def fitted(self, data: TokenFile, rows: np.ndarray, work: Callable[[], Result]) -> Result:
        """Do what the rows ask for, in smaller pieces each time that memory runs out."""
        while True:
            try:
                return work()
            except RuntimeError as error:
                self._make_do(error, data, rows)

    def _make_do(self, error: RuntimeError, data: TokenFile, rows: np.ndarray) -> None:
        """Out of memory: start the same rows again in smaller pieces. Gradients and metrics stay the same."""
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise error
        self.optimizer.discard()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        longest = int(data.lengths[rows].max())
        alone = self.position.micro_tokens <= longest
        if alone and self.may_recompute and recomputing.obstacle(self.model) is None:
            self.may_recompute = False
            recomputing.begin(self.model)
            self.on_event(
                Notice(
                    level="warning",
                    message="out of memory with one example at a time: the layers' activations are computed again in "
                    "the backward pass from now on; the result stays the same",
                    fix="set `training.recompute: on` to begin with it",
                )
            )
            return
        if alone:
            raise ResourceError(
                f"not enough memory even for one example of {longest} tokens at a time",
                where=str(data.origins[int(rows[data.lengths[rows].argmax()])]),
                fix="lower `data.max_length`, train fewer parameters (`method: peft`), or take a smaller model",
            ) from error
        self.position.micro_tokens = max(longest, self.position.micro_tokens // 2)
        self.on_event(
            Notice(
                level="warning",
                message=f"out of memory: going on with forward passes of {self.position.micro_tokens} tokens; "
                "the global batch, and so the result, stays the same",
                fix=f"set `training.micro_tokens: {self.position.micro_tokens}` to begin with it",
            )
        )
