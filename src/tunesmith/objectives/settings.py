"""What a recipe says of objectives that have settings of their own."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from tunesmith.strict import Part


class RewardLoss(Part):
    """How a reward model learns from preferences."""

    center: float = Field(
        default=0.01, ge=0, description="Weight that keeps the scores of a pair around zero (arXiv 2312.09244)."
    )
    margin: float = Field(
        default=0.0, ge=0, description="The scores of a pair shall differ by this times the pair's own `margin`."
    )


class ContrastiveLoss(Part):
    """How a sentence encoder learns which texts belong together."""

    group_size: int = Field(default=16, ge=4, description="Texts in a group; all its pairs are compared.")
    rounds: int | None = Field(
        default=None,
        ge=1,
        description="Groups that each text is in, in one epoch; default: 8 to 40, the more the fewer texts there are.",
    )


class PreferenceLoss(Part):
    """How a model learns from preferences directly."""

    loss: Literal["sigmoid", "robust", "hinge", "ipo", "simpo", "orpo"] = Field(
        default="sigmoid", description="`sigmoid` is DPO (arXiv 2305.18290)."
    )
    beta: float = Field(
        default=0.1, gt=0, description="How strongly the model is held to the reference: the greater, the more."
    )
    gamma: float = Field(default=0.5, ge=0, description="Margin of `simpo`, in units of the scaled likelihoods.")
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=0.5, description="Share of preferences taken to be wrong (`sigmoid` and `robust`)."
    )
    length_normalised: bool = Field(default=False, description="Likelihoods per token instead of per answer.")
    sft_weight: float | None = Field(
        default=None, ge=0, description="Weight of the better answer's own loss; default: 1 for `orpo`, else 0."
    )


class RewardSource(Part):
    """One thing that scores what the model writes; several are added up."""

    kind: Literal["exact", "number", "regex", "json", "run", "python", "http", "grader"] = Field(
        description="`exact`, `number`, `regex`, `json`: rules. `run`: a tuned judge. `python`: your own function. "
        "`http`: an address. `grader`: an object of OpenAI's graders."
    )
    weight: float = Field(default=1.0, description="Its share in the sum.")
    pattern: str | None = Field(default=None, description="Of `regex`.")
    json_schema: dict[str, Any] | None = Field(default=None, description="Of `json`: what the answer must fit.")
    run: str | None = Field(default=None, description="Of `run`: a reward model's run, or a classifier's.")
    label: str | None = Field(default=None, description="Of `run`: the classifier's label whose probability counts.")
    function: str | None = Field(default=None, description="Of `python`: `file.py:name`. It runs with your rights.")
    url: str | None = Field(default=None, description="Of `http`.")
    grader: dict[str, Any] | None = Field(default=None, description="Of `grader`.")
    timeout: float = Field(
        default=60.0, gt=0, description="Seconds that one call may take (`python`, `http`, `grader`)."
    )

    @model_validator(mode="after")
    def _complete(self) -> RewardSource:
        needs = {"regex": "pattern", "run": "run", "python": "function", "http": "url", "grader": "grader"}
        if self.kind in needs and getattr(self, needs[self.kind]) is None:
            raise ValueError(f"the reward `{self.kind}` needs `{needs[self.kind]}`")
        return self


class Rollouts(Part):
    """How the model writes the answers that it learns from."""

    max_new_tokens: int = Field(default=64, ge=1, description="Longest answer, in tokens.")
    temperature: float = Field(default=1.0, gt=0, description="Of sampling; ratios are those of this policy too.")
    validation_prompts: int = Field(default=64, ge=1, description="Validation prompts answered at each validation.")


class PPOLoss(Part):
    """Proximal policy optimisation of language models (arXiv 1707.06347; details: arXiv 2403.17031)."""

    epochs: int = Field(default=4, ge=1, description="Passes over each batch of answers.")
    minibatches: int = Field(default=1, ge=1, description="Changes of the weights in each pass.")
    kl: float = Field(default=0.05, ge=0, description="Price of a nat of divergence from the reference, in reward.")
    kl_target: float | None = Field(
        default=None, gt=0, description="Adapt the price so that an answer is about this many nats away (1909.08593)."
    )
    kl_horizon: int = Field(default=10_000, ge=1, description="Answers over which the price adapts.")
    kl_estimator: Literal["k1", "k2", "k3"] = Field(default="k1", description="Of the divergence, token by token.")
    gamma: float = Field(default=1.0, gt=0, le=1, description="Discount.")
    lam: float = Field(default=0.95, ge=0, le=1, description="Of the generalised advantages (arXiv 1506.02438).")
    clip: float = Field(default=0.2, gt=0, description="Of the policy's ratio.")
    value_clip: float = Field(default=0.2, gt=0, description="Of the change of a value.")
    value_weight: float = Field(default=0.1, ge=0, description="Of the value loss.")
    entropy_weight: float = Field(default=0.0, ge=0, description="Reward of spread in the policy.")
    whiten_rewards: bool = Field(default=False, description="Scale the rewards of a batch to variance 1.")
    whiten_advantages: bool = Field(default=True, description="Scale the advantages of a batch to mean 0, variance 1.")
    reward_clip: float | None = Field(default=None, gt=0, description="Scores are cut to plus or minus this.")
    missing_eos_penalty: float = Field(default=1.0, ge=0, description="Taken from answers that the limit cut off.")
    stop_at_kl: float | None = Field(
        default=0.1,
        gt=0,
        description="Leave a batch when the policy is this far (nats a token) from the one that wrote.",
    )


class GRPOLoss(Part):
    """Group-relative policy optimisation (arXiv 2402.03300) and its kin."""

    group: int = Field(default=8, ge=2, description="Answers to each prompt.")
    advantage: Literal["group", "leave-one-out"] = Field(
        default="group", description="`leave-one-out` is RLOO (arXiv 2402.14740)."
    )
    scale: bool = Field(default=True, description="Divide by the group's deviation; `false`: Dr. GRPO (2503.20783).")
    length: Literal["sequence", "token", "constant"] = Field(
        default="token",
        description="Mean over each answer (GRPO), over all tokens (DAPO, 2503.14476), or over the limit (Dr. GRPO).",
    )
    epochs: int = Field(default=1, ge=1, description="Passes over each batch of answers.")
    minibatches: int = Field(default=1, ge=1, description="Changes of the weights in each pass.")
    clip: float = Field(default=0.2, gt=0, description="Lower bound of the ratio is 1 minus this.")
    clip_high: float = Field(default=0.28, gt=0, description="Upper bound is 1 plus this (DAPO).")
    kl: float = Field(default=0.0, ge=0, description="Weight of the divergence from the reference.")
    kl_estimator: Literal["k1", "k2", "k3"] = Field(default="k3", description="Of the divergence, token by token.")
    dynamic_sampling: bool = Field(
        default=True, description="Leave out groups whose answers are all worth the same: they teach nothing (DAPO)."
    )
