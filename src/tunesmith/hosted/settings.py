"""What a recipe says of a job at a provider."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from tunesmith.strict import Part

Epochs = Literal["auto"] | Annotated[int, Field(ge=1)]
Size = Literal["auto"] | Annotated[int, Field(ge=1)]
Factor = Literal["auto"] | Annotated[float, Field(gt=0)]


class Hosted(Part):
    """With `method: hosted`: who tunes the model, and how."""

    provider: str = Field(
        default="openai",
        description="openai, azure, nebius, mistral, together, fireworks, or `tunesmith`: your own `tunesmith serve`.",
    )
    base_url: str | None = Field(
        default=None, description="Where the provider answers; needed for Azure, else as the table of prices has it."
    )
    suffix: str | None = Field(default=None, description="Becomes part of the tuned model's name.")
    epochs: Epochs = Field(default="auto", description="`auto` leaves the number to the provider.")
    batch_size: Size = Field(default="auto", description="`auto` leaves it to the provider.")
    learning_rate_multiplier: Factor = Field(
        default="auto", description="Of the provider's own learning rate; Mistral, Together and Fireworks take a rate."
    )
    beta: Factor = Field(default="auto", description="Of DPO, which `task: preference` asks for.")
    grader: dict[str, Any] | None = Field(
        default=None,
        description="OpenAI's grader object, with `task: prompts`: the job is one of reinforcement fine-tuning.",
    )
    extra: dict[str, Any] = Field(
        default={}, description="Sent with the job as it is, e.g. `trainingType: globalStandard` for Azure."
    )
    again: bool = Field(
        default=False, description="Make another job even where the provider has one of the same data and settings."
    )
    prices: str | None = Field(default=None, description="A file that is laid over the table of prices.")
    poll_seconds: float = Field(default=10.0, gt=0, description="How often the job is looked at.")
    patience_minutes: float = Field(
        default=60.0, gt=0, description="How long the provider may be out of reach before the run stops waiting."
    )
