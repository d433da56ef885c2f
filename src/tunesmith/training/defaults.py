"""Defaults that depend on what is trained: filled in once, before the loop, and written beside its checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunesmith import parameters
from tunesmith.recipe import ObjectiveName, Training

if TYPE_CHECKING:
    import torch

    from tunesmith.models.model import Form

_HEAD_FORMS: tuple[Form, ...] = ("classify", "multi-label", "score", "ordinal", "tag", "mask")
BATCH_SIZE: dict[Form, int] = {"generate": 16, "seq2seq": 16, **dict.fromkeys(_HEAD_FORMS, 32)}
"""32: the upper of BERT's two (arXiv 1810.04805, A.3). 16: QLoRA's for 7-13 B models (arXiv 2305.14314, table 9)."""
LEAST_BATCH = 4
LEAST_UPDATES = 20
"""Small sets get smaller batches, so that an epoch has so many updates or more."""
MICRO_TOKENS = {"processor": 4096, "GPU": 16384}


RATE_SHARE = {"dpo": 0.1, "kto": 0.1, "ppo": 0.1, "grpo": 0.1}
"""Of the usual learning rate: objectives that push a tuned model away from where it is take smaller steps (Zephyr's
DPO, arXiv 2310.16944, took 5e-7 after 2e-5 in its supervised stage). The tenth itself is a choice, not measured."""


def with_defaults(
    settings: Training,
    *,
    kind: str,
    form: Form,
    device: torch.device,
    epoch_examples: int,
    objective: ObjectiveName | None = None,
) -> Training:
    """Fill in learning rate, batch size and the size of a forward pass where the recipe left them open.

    Args:
        settings: The stage's settings.
        kind: Which parameters train.
        form: How the model answers.
        device: Where it runs.
        epoch_examples: Examples in an epoch.
        objective: What is minimised.
    """
    updates: dict[str, object] = {}
    if settings.learning_rate is None:
        updates["learning_rate"] = learning_rate(kind, form, objective)
    if settings.batch_size is None and settings.batch_tokens is None:
        updates["batch_size"] = max(LEAST_BATCH, min(BATCH_SIZE[form], epoch_examples // LEAST_UPDATES))
    if settings.micro_tokens is None:
        updates["micro_tokens"] = MICRO_TOKENS["GPU" if device.type == "cuda" else "processor"]
    return settings.model_copy(update=updates)


def learning_rate(kind: str, form: Form, objective: ObjectiveName | None = None) -> float:
    """The peak learning rate of a kind of parameters, for a model that answers in this form and learns by this."""
    return parameters.learning_rate(kind, form) * RATE_SHARE.get(objective or "", 1.0)
