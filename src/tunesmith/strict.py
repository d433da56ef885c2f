"""The base of everything a recipe is made of, and how its choices are refused."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Part(BaseModel):
    """A strict branch of the recipe: unknown keys are errors, instances do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class Refusal(ValueError):
    """Why a choice cannot be made, or cannot be made beside another, and what to choose instead.

    Args:
        what: The reason.
        fix: The remedy.
        key: Path of the key that it is about, e.g. ``stages.0:tune.training.recompute``; a part that checks itself
            says none, for its own place is known.
    """

    def __init__(self, what: str, *, fix: str, key: str = "") -> None:
        super().__init__(f"{what}: {fix}")
        self.what = what
        self.fix = fix
        self.key = key
