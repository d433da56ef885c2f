"""Which choices of a recipe exclude each other, and what to do instead.

A rule is a function that yields a :class:`~tunesmith.strict.Refusal` for each thing that it finds wrong: the reason,
the remedy and the key. Each says one thing; none loads anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from tunesmith.recipe import Recipe
from tunesmith.refusals import axes, pictures, providers, rewards, sequences, teaching
from tunesmith.refusals.base import WRITTEN as WRITTEN
from tunesmith.refusals.base import Chosen, stages_of
from tunesmith.strict import Refusal

STAGE_RULES: tuple[Callable[[Recipe, Chosen], Iterator[Refusal]], ...] = (
    axes.of_objectives,
    axes.of_parameters,
    axes.of_virtual_tokens,
    axes.of_fits,
    axes.of_few_shot,
    teaching.of_distillation,
    teaching.of_quantization_aware,
    providers.of_hosted,
)
"""Rules for each stage."""
RULES: tuple[Callable[[Recipe, Sequence[Chosen]], Iterator[Refusal]], ...] = (
    pictures.of_pictures,
    sequences.of_domain,
    teaching.of_students,
    sequences.of_sequences,
    rewards.of_prompts,
    rewards.of_rewards,
    rewards.of_judges,
    rewards.of_rlhf,
    axes.of_features,
    axes.of_methods,
)
"""Rules for the whole recipe."""


def refusals(recipe: Recipe) -> Iterator[Refusal]:
    """Everything that speaks against a recipe, the first thing to mend first."""
    stages = stages_of(recipe)
    for chosen in stages:
        foreign = list(axes.of_bare_text(recipe, chosen))
        yield from foreign
        for stage_rule in () if foreign else STAGE_RULES:  # with the wrong task the rest would only follow from it
            yield from stage_rule(recipe, chosen)
    for rule in RULES:
        yield from rule(recipe, stages)
