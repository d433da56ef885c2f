"""What a recipe says of objectives that have settings of their own."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from tunesmith.strict import Part, Refusal


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


class KTOLoss(Part):
    """How a model learns from answers that were liked or disliked (arXiv 2402.01306)."""

    beta: float = Field(default=0.1, gt=0, description="How strongly the model is held to the reference.")
    desirable_weight: float | None = Field(
        default=None, ge=0, description="Of liked answers; default: so that both sides weigh alike."
    )
    undesirable_weight: float | None = Field(
        default=None, ge=0, description="Of disliked answers; default: so that both sides weigh alike."
    )


class RewardSource(Part):
    """One thing that scores what the model writes; several are added up."""

    kind: Literal["exact", "number", "regex", "json", "tests", "run", "stage", "python", "http", "grader"] = Field(
        description="`exact`, `number`, `regex`, `json`: rules. `tests`: the share of the row's `tests` that the "
        "program in the answer passes. `run`: a tuned judge. `stage`: what an earlier stage of this run made. "
        "`python`: your own function. `http`: an address. `grader`: an object of OpenAI's graders."
    )
    weight: float = Field(default=1.0, description="Its share in the sum.")
    pattern: str | None = Field(default=None, description="Of `regex`.")
    json_schema: dict[str, Any] | None = Field(default=None, description="Of `json`: what the answer must fit.")
    run: str | None = Field(default=None, description="Of `run`: a reward model's run, or a classifier's.")
    stage: str | None = Field(default=None, description="Of `stage`: its name.")
    label: str | None = Field(
        default=None, description="Of `run` and `stage`: the classifier's label whose probability counts."
    )
    function: str | None = Field(default=None, description="Of `python`: `file.py:name`. It runs with your rights.")
    url: str | None = Field(default=None, description="Of `http`.")
    grader: dict[str, Any] | None = Field(default=None, description="Of `grader`.")
    timeout: float = Field(
        default=60.0, gt=0, description="Seconds that one call may take (`tests`, `python`, `http`, `grader`)."
    )

    @model_validator(mode="after")
    def _complete(self) -> RewardSource:
        needs = {"regex": "pattern", "python": "function", "http": "url"}
        needed = needs.get(self.kind, self.kind)
        if needed in ("pattern", "run", "stage", "function", "url", "grader") and getattr(self, needed) is None:
            raise Refusal(f"the reward `{self.kind}` needs `{needed}`", fix=f"add `{needed}: ...`")
        return self


class Rollouts(Part):
    """How the model writes the answers that it learns from."""

    max_new_tokens: int = Field(default=64, ge=1, description="Longest answer, in tokens.")
    temperature: float = Field(default=1.0, gt=0, description="Of sampling; ratios are those of this policy too.")
    validation_prompts: int = Field(default=64, ge=1, description="Validation prompts answered at each validation.")
    engine: Literal["own", "vllm"] = Field(
        default="own",
        description="What writes. `vllm` (an extra, for GPUs) holds the base a second time, gets the LoRA adapter anew "
        "each step, and does not promise that a resumed run ends with the same bits.",
    )


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
    value_trunk: Literal["shared", "separate"] = Field(
        default="shared",
        description="`shared`: the value head reads the policy's own states. `separate`: those of a copy that learns "
        "values alone, so that neither disturbs the other; it costs a second pass, and memory for what trains.",
    )
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


class TeacherAnswers(Part):
    """How the teacher writes the answers that are learned (`answers: teacher`)."""

    per_prompt: int = Field(default=1, ge=1, description="Answers to each prompt, of which `keep` chooses one.")
    temperature: float | None = Field(
        default=None, ge=0, description="Of sampling; default: 0 (the likeliest) for one answer to a prompt, else 0.8."
    )
    max_new_tokens: int = Field(default=128, ge=1, description="Longest answer, in tokens.")
    keep: Literal["all", "reward", "agreement"] = Field(
        default="all",
        description="`reward`: the answer that `training.rewards` score highest. `agreement`: one that most of the "
        "answers to the prompt agree with. Prompts whose answer does not reach `least` are left out.",
    )
    least: float = Field(default=0.5, description="The lowest reward, or share of agreeing answers, that is kept.")
    agree_on: Literal["text", "number"] = Field(
        default="text", description="Answers agree whose words are the same, or whose last numbers are."
    )

    @model_validator(mode="after")
    def _enough_to_agree(self) -> TeacherAnswers:
        if self.keep == "agreement" and self.per_prompt < 2:
            raise Refusal("`keep: agreement` compares answers to one prompt", fix="set `per_prompt: 3` or more")
        if self.per_prompt > 1 and self.temperature == 0:
            raise Refusal("several answers to a prompt at `temperature: 0` are all the same", fix="raise `temperature`")
        if self.per_prompt > 1 and self.keep == "all":
            raise Refusal(
                "of several answers to a prompt one is learned", fix="set `keep: reward` or `keep: agreement`"
            )
        return self


class Distillation(Part):
    """How a student learns from a teacher: whose answers, and what the teacher says of them."""

    teacher: str | None = Field(
        default=None,
        description="A run (`runs/NAME`), whatever `model` takes, or the address of an OpenAI-compatible server "
        "(`https://host/v1`). Default: the model that `student` cuts.",
    )
    teacher_model: str | None = Field(default=None, description="Of a server: the model's name there.")
    key_variable: str = Field(
        default="OPENAI_API_KEY", description="Of a server: the environment variable that holds its key."
    )
    answers: Literal["data", "teacher", "student"] = Field(
        default="data",
        description="Whose answers are learned from: those of the data, answers that the teacher writes first "
        "(sequence-level, arXiv 1606.07947), or answers that the student writes as it learns (on-policy, GKD, arXiv "
        "2306.13649; `rollouts` says how).",
    )
    label_weight: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Share of the answers' own loss; the rest is the divergence from the teacher. Default: 0.5; 1 with "
        "`answers: teacher` (then any tokenizer will do), 0 with `answers: student`.",
    )
    divergence: Literal["forward-kl", "reverse-kl", "jensen-shannon"] = Field(
        default="forward-kl",
        description="From the teacher's distribution: `forward-kl` covers all that the teacher finds likely, "
        "`reverse-kl` keeps to what it finds likeliest.",
    )
    beta: float = Field(
        default=0.5, gt=0, lt=1, description="Of `jensen-shannon`: the teacher's share in the mixture (2306.13649)."
    )
    temperature: float | None = Field(
        default=None,
        gt=0,
        description="Both models' scores are divided by it, and the divergence is multiplied by its square (arXiv "
        "1503.02531). Default: 2 for labels, 1 for text.",
    )
    cache: Literal["off", "top-k", "sampled"] = Field(
        default="off",
        description="Ask the teacher once for the distribution of each token and keep it on disk: the likeliest words "
        "and the mass of the rest (`top-k`), or words drawn from it, which is unbiased (`sampled`, arXiv 2503.16870). "
        "`off`: the teacher stays in memory. Scores of labels are always kept.",
    )
    kept_tokens: int = Field(default=64, ge=1, description="Of `cache`: words kept or drawn for each token.")
    hidden_weight: float = Field(
        default=0.0,
        ge=0,
        description="Weight of the distance between hidden states, layer by layer, of an encoder (arXiv 1909.10351).",
    )
    attention_weight: float = Field(
        default=0.0, ge=0, description="The same of attention scores; both models need as many heads."
    )
    unlabelled: list[str] = Field(
        default=[],
        description="Files of bare text to learn from too (text classification): the teacher says what they are.",
    )
    written: TeacherAnswers = Field(default=TeacherAnswers(), description="For `answers: teacher`.")

    @property
    def share_of_labels(self) -> float:
        """``label_weight``, or its default."""
        if self.label_weight is not None:
            return self.label_weight
        return {"data": 0.5, "teacher": 1.0, "student": 0.0}[self.answers]

    @property
    def is_server(self) -> bool:
        """Whether the teacher is asked over the network."""
        return self.teacher is not None and self.teacher.startswith(("http://", "https://"))

    @property
    def needs_scores(self) -> bool:
        """Whether what the teacher thinks of tokens or labels is learned, or only what it wrote."""
        return self.share_of_labels < 1 or self.hidden_weight > 0 or self.attention_weight > 0

    @model_validator(mode="after")
    def _fits_together(self) -> Distillation:
        if self.answers == "student" and self.share_of_labels:
            raise Refusal("with `answers: student` there is no right answer to weigh", fix="leave out `label_weight`")
        if self.is_server and self.teacher_model is None:
            raise Refusal("a server has many models", fix="name one by `teacher_model`")
        if self.is_server and (self.answers != "teacher" or self.needs_scores):
            raise Refusal(
                "a server gives its answers and not the distributions behind them",
                fix="use `answers: teacher`, and leave out `label_weight`, `hidden_weight` and `attention_weight`",
            )
        if self.cache == "sampled" and self.divergence != "forward-kl":
            raise Refusal(
                "words drawn from the teacher estimate the forward divergence alone",
                fix="use `divergence: forward-kl`, or `cache: top-k`",
            )
        if self.cache != "off" and self.answers == "student":
            raise Refusal("what the student will write cannot be asked about beforehand", fix="use `cache: off`")
        if self.answers == "data" and self.share_of_labels == 1 and not self.needs_scores:
            raise Refusal("with `label_weight: 1` nothing is learned from the teacher", fix="lower `label_weight`")
        return self
