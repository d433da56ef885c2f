"""What a recipe says of how the loop runs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from tunesmith.compression.settings import AwareKind
from tunesmith.data.settings import Augmentation
from tunesmith.objectives.settings import (
    ContrastiveLoss,
    Distillation,
    GRPOLoss,
    KTOLoss,
    PPOLoss,
    PreferenceLoss,
    RewardLoss,
    RewardSource,
    Rollouts,
)
from tunesmith.strict import Part, Refusal

Switch = Annotated[
    Literal["auto", "on", "off"],
    # YAML 1.1 reads a bare `off` as false.
    BeforeValidator(lambda value: {True: "on", False: "off"}[value] if isinstance(value, bool) else value),
]


class Training(Part):
    """Step 4: how the loop runs. What is `null` depends on parameters, model and data: `recipe show` says how."""

    epochs: float = Field(default=3.0, gt=0, description="Passes over the training data.")
    max_steps: int | None = Field(default=None, ge=1, description="Stop after this many updates, whatever `epochs`.")
    learning_rate: float | None = Field(default=None, gt=0, description="Peak learning rate.")
    batch_size: int | None = Field(default=None, ge=1, description="Examples in one update (the global batch).")
    batch_tokens: int | None = Field(
        default=None, ge=16, description="Tokens in one update, instead of `batch_size` (the global batch)."
    )
    micro_tokens: int | None = Field(
        default=None, ge=16, description="Tokens, padding included, in one forward pass. Never changes the result."
    )
    recompute: Switch = Field(
        default="auto",
        description="Compute the layers' activations again in the backward pass instead of keeping them (gradient "
        "checkpointing): much less memory, about a third more time, the same result. `auto`: once memory has run out "
        "with a single example at a time.",
    )
    schedule: Literal["linear", "cosine", "constant"] = Field(
        default="linear", description="Learning rate after the warm-up."
    )
    warmup: float = Field(default=0.1, ge=0, lt=1, description="Share of the updates over which the rate rises.")
    layer_decay: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Each layer's rate is this times that of the layer above: 0.38 in ULMFiT (arXiv 1801.06146), "
        "0.8 to 0.95 for transformers.",
    )
    unfreeze_epochs: float | None = Field(
        default=None,
        gt=0,
        description="Gradual unfreezing: one more layer begins to train every so many epochs, from the output down "
        "(ULMFiT: 1). `null`: all from the start.",
    )
    weight_decay: float = Field(
        default=0.01,
        ge=0,
        description="Decoupled decay of matrices (not biases, norms, and word vectors that no text reads).",
    )
    optimizer: Literal["adamw", "adamw-8bit"] = Field(
        default="adamw",
        description="`adamw-8bit` keeps AdamW's two moments in 8 bits (arXiv 2110.02861): 2 bytes for each weight that "
        "trains instead of 8.",
    )
    betas: tuple[float, float] = Field(default=(0.9, 0.999), description="AdamW's moving averages.")
    epsilon: float = Field(default=1e-8, gt=0, description="AdamW's epsilon.")
    max_grad_norm: float = Field(default=1.0, gt=0, description="Gradients are clipped to this global norm.")
    dropout: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="Dropout inside the model. `null` keeps the model's own; 0 is faster.",
    )
    augment: list[Augmentation] = Field(
        default=[],
        description="Pictures are learned from in another form each epoch: `flip` mirrors every other one, `crop` "
        "shows a part of half its area or more. Drawn by the seed.",
    )
    label_smoothing: float = Field(default=0.0, ge=0, lt=1, description="Mass moved from the label to all classes.")
    class_weights: Literal["balanced"] | dict[str, Annotated[float, Field(gt=0)]] | None = Field(
        default=None,
        description="What an example of each label weighs in the loss (1 if not named); `balanced`: all labels as much "
        "in sum.",
    )
    focal_gamma: float = Field(
        default=2.0, ge=0, description="How little the objective `focal` heeds what is certain; 0 is cross-entropy."
    )
    threshold: Literal["auto", "off", "accuracy", "macro_f1"] | Annotated[float, Field(gt=0, lt=1)] = Field(
        default="auto",
        description="Probability from which a label is given (of two classes: the second). A metric: the best one on "
        "the validation rows. `auto`: `macro_f1` with several labels a text, else `off`.",
    )
    reward: RewardLoss = Field(default=RewardLoss(), description="For `objective: reward`.")
    rewards: list[RewardSource] = Field(default=[], description="What scores the answers (`objective: ppo` or `grpo`).")
    rollouts: Rollouts = Field(
        default=Rollouts(), description="For `objective: ppo` and `grpo`, and for `distill` with `answers: student`."
    )
    ppo: PPOLoss = Field(default=PPOLoss(), description="For `objective: ppo`.")
    grpo: GRPOLoss = Field(default=GRPOLoss(), description="For `objective: grpo`.")
    distillation: Distillation = Field(default=Distillation(), description="For `objective: distill`.")
    contrastive: ContrastiveLoss = Field(default=ContrastiveLoss(), description="For `objective: contrastive`.")
    preference: PreferenceLoss = Field(default=PreferenceLoss(), description="For `objective: dpo`.")
    kto: KTOLoss = Field(default=KTOLoss(), description="For `objective: kto`.")
    mask_share: float = Field(default=0.15, gt=0, lt=1, description="Share of the tokens that `masked-lm` asks for.")
    whole_words: bool = Field(default=False, description="`masked-lm` masks whole words instead of single tokens.")
    quantization_aware: AwareKind | None = Field(
        default=None,
        description="Train with the rounding of a number format that the model shall be quantized to afterwards "
        "(QAT, arXiv 1712.05877). What is saved is not quantized yet: `quantize` does that.",
    )
    seed: int = Field(default=0, description="Seed of the head, the data order and dropout.")
    eval_steps: int | None = Field(default=None, ge=1, description="Validate every N updates; default: each epoch.")
    patience: int | None = Field(
        default=None, ge=1, description="Stop after this many validations without a better result."
    )
    checkpoint_steps: int | None = Field(
        default=None, ge=1, description="Save every N updates; default: at each validation."
    )
    keep_checkpoints: int = Field(default=2, ge=1, description="Newest checkpoints kept, besides the best.")
    keep_best_checkpoints: int = Field(default=1, ge=1, description="Best checkpoints kept, by their validation.")
    compile: Switch = Field(
        default="auto",
        description="Compile the layers. `auto`: on a GPU or a processor with AMX, where the run is long enough to "
        "pay for it.",
    )
    cache: Switch = Field(
        default="auto",
        description="Compute the frozen layers below all that trains once, and read their output from disk in each "
        "epoch. Never changes the result. `auto`: from the second epoch on it pays; `on`: or say why it cannot be.",
    )
    cache_gigabytes: float = Field(default=20.0, gt=0, description="The most that `cache` may take on disk.")
    cache_folder: str | None = Field(
        default=None,
        min_length=1,
        description="Keep what `cache` wrote here, for further runs on the same data. `null`: with the run, until its "
        "end.",
    )

    @model_validator(mode="after")
    def _one_batch_size(self) -> Training:
        if self.batch_size is not None and self.batch_tokens is not None:
            raise Refusal(
                "`batch_size` and `batch_tokens` both say how large a batch is", fix="give one of them, not both"
            )
        return self

    @model_validator(mode="after")
    def _no_compiled_recomputing(self) -> Training:
        if self.recompute == "on" and self.compile == "on":
            raise Refusal("compiled layers cannot recompute", fix="leave `recompute` or `compile` at `auto`")
        return self
