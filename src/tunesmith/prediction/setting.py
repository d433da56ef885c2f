"""What all systems share that answer the same rows."""

from __future__ import annotations

from dataclasses import dataclass

from tunesmith.events import Listener, nobody
from tunesmith.prediction.rewarded import Judges
from tunesmith.recipe import Generation
from tunesmith.tasks.base import Task


@dataclass(frozen=True)
class Setting:
    """What all systems share in one evaluation.

    Attributes:
        task: Theirs.
        labels: That there are; ``None`` for tasks without.
        system_prompt: The recipe's.
        generation: How answers are written.
        seed: Of answers that are drawn.
        on_event: Told the progress.
        judges: What scores answers, where the model learned from that.
        may_think: Whether a model that thinks before it answers may. If not, the empty thought which its template puts
            before an answer without one stands in the prompt.
    """

    task: Task
    labels: list[str] | None
    system_prompt: str | None
    generation: Generation
    seed: int = 0
    on_event: Listener = nobody
    judges: Judges | None = None
    may_think: bool = True
