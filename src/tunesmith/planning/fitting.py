"""What would make a run fit into memory: changes that are planned like the run itself, the gentlest first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from tunesmith import words
from tunesmith.planning.machine import Machine
from tunesmith.planning.result import StagePlan
from tunesmith.recipe import LoRA, Parameters, Training

if TYPE_CHECKING:
    from tunesmith.planning.forecast import StagePlanner

MOST_WAYS = 3
SMALLEST_PASS = 256


def ways(planners: Sequence[StagePlanner], machine: Machine) -> list[str]:
    """Up to three changes with which the stage that needs most would fit, as sentences; or what would have to be had.

    Args:
        planners: Of all stages.
        machine: Whose memory counts.
    """
    planner, made = max(((p, p.plan()) for p in planners), key=lambda pair: pair[1].memory.expected)
    room = machine.memory_bytes + (machine.process_bytes if machine.here else 0)
    sure = "does not fit" if made.memory.low > room else "may not fit"
    first = f"it {sure} into the {words.size(room)} that are there: it takes {_memory(made)}"
    fitting, shrinking = [], []
    for what, parameters, training in _changes(planner, made):
        changed = planner.plan(parameters, training)
        if changed.memory.high <= room:
            fitting.append(f"{what} takes {_memory(changed)}")
        elif changed.memory.high < made.memory.high:
            shrinking.append(f"{what} takes {_memory(changed)}")
        if len(fitting) == MOST_WAYS:
            break
    if fitting:
        return [first, *(f"it would fit: {line}" for line in fitting)]
    return [
        first,
        *(f"it would still not fit, but {line}" for line in shrinking[:MOST_WAYS]),
        "or a smaller model; weights spread over several devices (`--devices`) are not in this version",
    ]


def _changes(planner: StagePlanner, made: StagePlan) -> Iterator[tuple[str, Parameters | None, Training | None]]:
    """What to try: first what does not change the result, then fewer parameters, then a narrower base."""
    training, parameters = planner.stage.training, planner.stage.parameters
    assert training is not None and parameters is not None, "the recipe is resolved"
    longest = int(planner.sample.lengths.max())
    smallest = max(SMALLEST_PASS, longest)
    small = training.model_copy(update={"micro_tokens": smallest})
    note = f"`training.micro_tokens: {smallest}` (smaller passes, the same result)"
    if (training.micro_tokens or 16384) > smallest:
        yield note, None, small
    again = small.model_copy(update={"recompute": "on"})
    twice = f"`training.recompute: on` (the layers' forward passes computed twice, the same result) and {note}"
    if training.recompute != "on":
        yield twice, None, again
    if parameters.kind in ("full", "layers") and training.optimizer == "adamw":
        narrow_moments = again.model_copy(update={"optimizer": "adamw-8bit"})
        yield f"`training.optimizer: adamw-8bit` (moments in 8 bits) with {twice}", None, narrow_moments
    lora = parameters if isinstance(parameters, LoRA) else LoRA()
    if parameters.kind in ("full", "layers"):
        yield "`method: peft` (LoRA: no gradients and moments for the base)", lora, None
        yield f"`method: peft` with {note}", lora, small
    if parameters.kind in ("full", "layers", "lora"):
        for bits in ("int8", "int4"):
            if getattr(lora, "quantization", "none") in ("none", "int8") and lora.quantization != bits:
                narrow = lora.model_copy(update={"quantization": bits})
                yield f"LoRA on a base in {bits} (`parameters.quantization: {bits}`) with {note}", narrow, small


def _memory(made: StagePlan) -> str:
    return words.size_span(made.memory.low, made.memory.high)
