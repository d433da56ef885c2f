"""Stages one after the other: a domain before its task, and task after task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tunesmith.recipe import LoRA, Recipe
from tunesmith.refusals.base import COMPARED, Chosen
from tunesmith.strict import Refusal

MERGED = ("linear", "ties", "dare")
"""Values of ``sequence.adapters`` that put the adapters together."""


def of_domain(recipe: Recipe, stages: Sequence[Chosen]) -> Iterator[Refusal]:
    """Text of a domain, for the method that reads it."""
    if recipe.method == "domain":
        if not recipe.stages and not recipe.data.corpus:
            yield Refusal(
                "`method: domain` needs text of the domain",
                fix="name it by `data: {corpus: FOLDER}`, or give `stages` of which the first has `objective: "
                "causal-lm` or `masked-lm` and data of its own",
                key="data.corpus",
            )
        return
    if any(baseline.kind == "without-domain" for baseline in recipe.evaluate.baselines):
        yield Refusal(
            "the baseline `without-domain` leaves out the first stage of `method: domain`",
            fix="use that method",
            key="evaluate.baselines",
        )
    if recipe.data.corpus:
        yield Refusal(
            "`data.corpus` is read by `method: domain` alone",
            fix="use it, or `task: language-modeling`",
            key="data.corpus",
        )


def of_sequences(recipe: Recipe, stages: Sequence[Chosen]) -> Iterator[Refusal]:
    """What is done against forgetting."""
    sequence = recipe.sequence
    yield from _of_adapters(recipe, stages)
    for chosen in stages[:-1] if sequence.replay else []:
        if chosen.task in COMPARED and chosen.objective != "reward":
            yield Refusal(
                f"`sequence.replay` learns right answers again, and the stage `{chosen.stage.name}` "
                f"(`task: {chosen.task}`) has none",
                fix="make it the last stage, or use `sequence: {hold: l2}`",
                key="sequence.replay",
            )
    if sequence.hold != "none" and any(chosen.kind not in (None, "full", "layers") for chosen in stages):
        yield Refusal(
            "`sequence.hold` holds the weights of the model, which adapters and heads leave as they are",
            fix="use `parameters: {kind: full}`, or `sequence: {replay: 0.1}`",
            key="sequence.hold",
        )
    if recipe.method == "sequential" and len(recipe.stages) < 2:
        yield Refusal(
            "`method: sequential` learns task after task",
            fix="give two `stages` or more, each with its `data`",
            key="stages",
        )


def _of_adapters(recipe: Recipe, stages: Sequence[Chosen]) -> Iterator[Refusal]:
    """An adapter for each stage, kept apart or put together."""
    sequence = recipe.sequence
    if sequence.adapters == "chain":
        return
    if any(chosen.kind != "lora" for chosen in stages):
        yield Refusal(
            "`sequence.adapters` keeps one adapter a stage",
            fix="use `parameters: {kind: lora}` for all",
            key="sequence.adapters",
        )
    if sequence.replay or sequence.hold != "none":
        yield Refusal(
            "`sequence.adapters` begins each stage from the plain base, where nothing is forgotten that could be "
            "replayed or held",
            fix="leave out `replay` and `hold`",
            key="sequence.replay" if sequence.replay else "sequence.hold",
        )
    if sequence.adapters in MERGED:
        for chosen in stages:
            yield from _of_merged(chosen)


def _of_merged(chosen: Chosen) -> Iterator[Refusal]:
    """Adapters that are put together are the products of their matrices, and nothing besides."""
    lora = chosen.parameters
    if not isinstance(lora, LoRA):
        return
    beside = {
        "dora": lora.dora,
        "bias": lora.bias != "none",
        "modules_to_save": bool(lora.modules_to_save),
        "new_tokens": bool(lora.new_tokens),
    }
    for name, asked in beside.items():
        if asked:
            yield Refusal(
                f"`{name}` is more than the low-rank products that `sequence.adapters` merges",
                fix="leave it out, or use `adapters: separate`",
                key=chosen.at(f"parameters.{name}"),
            )
