"""Models that learn from pictures, and what only they know."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tunesmith.recipe import HEADS, PICTURES, Recipe
from tunesmith.refusals.base import Chosen
from tunesmith.strict import Refusal

PICTURE_METHODS = ("supervised", "full", "transfer", "features")
"""Methods that learn from pictures."""


def of_pictures(recipe: Recipe, stages: Sequence[Chosen]) -> Iterator[Refusal]:
    """Pictures have a head, or the classical fit of one, and no words."""
    if recipe.task not in PICTURES:
        for chosen in stages:
            if chosen.training.augment:
                yield Refusal(
                    "`training.augment` changes pictures",
                    fix="leave it out, or use `task: image-classification`",
                    key=chosen.at("training.augment"),
                )
        return
    if recipe.method not in PICTURE_METHODS:
        yield Refusal(
            f"`method: {recipe.method}` is for texts",
            fix="learn from pictures by the features of a frozen model (`method: features`), by its head or last "
            "layers (`transfer`), or by all of it (`full`)",
            key="method",
        )
    for chosen in stages:
        if chosen.kind not in (None, "none", "head", "layers", "full"):
            yield Refusal(
                f"`parameters: {{kind: {chosen.kind}}}` is for texts",
                fix="use `head`, `layers` or `full` for pictures",
                key=chosen.at("parameters.kind"),
            )
        if chosen.objective not in (None, *HEADS[recipe.task]):
            yield Refusal(
                f"the objective `{chosen.objective}` is for texts",
                fix="use `classify` or `focal` for pictures",
                key=chosen.at("objective"),
            )
    if recipe.quantize is not None:
        yield Refusal("models of pictures are not quantized here", fix="leave `quantize` out", key="quantize")
