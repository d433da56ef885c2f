"""The base of everything a recipe is made of."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Part(BaseModel):
    """A strict branch of the recipe: unknown keys are errors, instances do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)
