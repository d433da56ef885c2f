"""What a recipe says of what is measured, and against what."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from pydantic import Field, field_validator, model_validator

from tunesmith.objectives.settings import RewardSource
from tunesmith.strict import Part, Refusal

BaselineKind = Literal[
    "majority",
    "base",
    "few-shot",
    "features",
    "larger",
    "without-domain",
    "teacher",
    "without-teacher",
    "lead",
    "oracle",
]


class Baseline(Part):
    """One thing to compare the tuned model with, on the same test rows."""

    kind: BaselineKind
    shots: int | None = Field(default=None, ge=1, le=100, description="Examples in the prompt (`few-shot`).")
    model: str | None = Field(default=None, description="The other model (`larger`).")
    sentences: int | None = Field(default=None, ge=1, le=100, description="How many stand for the document (`lead`).")

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: object) -> object:
        """Accept ``base``, ``{few-shot: 5}`` and ``{larger: name}``."""
        if isinstance(value, str):
            kind, _, argument = value.partition(":")
            value = {kind.strip(): argument.strip() or None}
        if isinstance(value, dict) and "kind" not in value:
            if len(value) != 1:
                raise Refusal("a baseline is one name, or one `name: value`", fix="write each as an item of its own")
            kind, argument = next(iter(value.items()))
            key = {"few-shot": "shots", "larger": "model", "lead": "sentences"}.get(kind)
            if argument is not None and key is None and kind in get_args(BaselineKind):  # others are refused below
                raise Refusal(f"the baseline {kind!r} takes no value", fix=f"write `{kind}` alone")
            value = {"kind": kind} | ({key: argument} if key and argument is not None else {})
        return value

    @model_validator(mode="after")
    def _needs(self) -> Baseline:
        if self.kind == "larger" and not self.model:
            raise Refusal("the baseline `larger` needs a model", fix="name one: `larger: smollm2-135m-instruct`")
        return self


class Generation(Part):
    """How answers are written when a generating task is evaluated."""

    max_new_tokens: int = Field(default=128, ge=1, description="Longest answer, in tokens.")
    temperature: float = Field(
        default=0.0, ge=0, description="0 takes the likeliest token (greedy); above it answers are drawn by the seed."
    )
    top_p: float = Field(
        default=1.0, gt=0, le=1, description="Draw from the likeliest tokens that together have this probability."
    )
    top_k: int = Field(default=0, ge=0, description="Draw from this many of the likeliest tokens; 0 is all.")
    num_beams: int = Field(default=1, ge=1, description="Beams searched for the likeliest answer; 1 is none.")
    length_penalty: float = Field(
        default=1.0, description="Of beams: 0 takes the likeliest answer whatever its length; higher favours long ones."
    )
    no_repeat_ngram_size: int = Field(
        default=0, ge=0, description="No run of this many tokens may occur twice in an answer; 0 allows all."
    )

    @model_validator(mode="after")
    def _one_way(self) -> Generation:
        if self.num_beams > 1 and self.temperature > 0:
            raise Refusal("`num_beams` searches and `temperature` draws", fix="give one of them")
        if self.temperature == 0 and (self.top_p < 1 or self.top_k):
            raise Refusal("`top_p` and `top_k` say what is drawn from", fix="give a `temperature` above 0")
        if self.num_beams == 1 and self.length_penalty != 1:
            raise Refusal("`length_penalty` chooses between beams", fix="give `num_beams` above 1")
        return self


class Evaluate(Part):
    """Step 5: what is measured, and against what."""

    baselines: list[Baseline] = Field(
        default=[
            Baseline(kind="majority"),
            Baseline(kind="base"),
            Baseline(kind="few-shot"),
            Baseline(kind="features"),
            Baseline(kind="lead"),
            Baseline(kind="oracle"),
        ],
        description="What to compare with, as far as it suits the task. `larger: MODEL` adds a bigger base model, "
        "0-shot and few-shot; `lead: N` takes a document's first N sentences for its summary, `oracle` the best ones.",
    )
    metric: str | None = Field(
        default=None, description="The metric that decides which system is better; default: the task's own."
    )
    limit: int | None = Field(
        default=None,
        ge=10,
        description="Measure on at most this many test rows, the same for all. `null`: on all of them; where answers "
        "are texts, which take time to write, on 200; of each task of `method: sequential` on 500.",
    )
    resamples: int = Field(default=2000, ge=100, description="Bootstrap resamples behind each interval.")
    confidence: float = Field(default=0.95, gt=0.5, lt=1, description="Coverage of the intervals.")
    seed: int = Field(default=0, description="Seed of the bootstrap and of the random shots.")
    general: str | None = Field(
        default="python-reference",
        description="Text of another kind, on which `language-modeling` is measured before and after, to show what was "
        "lost. `null` leaves that out.",
    )
    judge: RewardSource | None = Field(
        default=None,
        description="For `ppo` and `grpo`: a second judge of the answers, from which nothing is learned, so that it "
        "shows whether the reward was earned. One text is the run of a reward model; else as in `training.rewards`.",
    )
    generation: Generation = Generation()

    @field_validator("judge", mode="before")
    @classmethod
    def _one_is_a_run(cls, value: object) -> object:
        return {"kind": "run", "run": str(value)} if isinstance(value, str | Path) else value
