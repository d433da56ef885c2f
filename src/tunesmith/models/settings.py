"""What a recipe says of the model that is tuned."""

from __future__ import annotations

from pydantic import Field, model_validator

from tunesmith.strict import Part, Refusal


class Student(Part):
    """How the model is made smaller before it is tuned. It begins with the weights of what is kept."""

    layers: int | None = Field(
        default=None, ge=1, description="Layers kept, evenly spaced, the first and the last among them; default: all."
    )
    neurons: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Share of the neurons of each feed-forward layer that is kept: those with the largest weights.",
    )

    @model_validator(mode="after")
    def _cuts_something(self) -> Student:
        if self.layers is None and self.neurons == 1:
            raise Refusal("nothing would be cut", fix="give `layers`, or `neurons` below 1")
        return self
