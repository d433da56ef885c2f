"""The recipe: a strict tree that says what to do, in one declaration.

The same fields are the YAML keys, the Python arguments, the ``--set`` overrides and the help texts. A recipe is
checked completely before anything is loaded: an unknown key, a value out of range and an impossible pair of axes are
all :class:`~tunesmith.errors.RecipeError` with the place and the remedy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BeforeValidator, Field, field_validator, model_validator

from tunesmith.objectives.settings import ContrastiveLoss as ContrastiveLoss
from tunesmith.objectives.settings import GRPOLoss as GRPOLoss
from tunesmith.objectives.settings import PPOLoss as PPOLoss
from tunesmith.objectives.settings import PreferenceLoss as PreferenceLoss
from tunesmith.objectives.settings import RewardLoss as RewardLoss
from tunesmith.objectives.settings import RewardSource as RewardSource
from tunesmith.objectives.settings import Rollouts as Rollouts
from tunesmith.parameters.settings import Adapter as Adapter
from tunesmith.parameters.settings import Full as Full
from tunesmith.parameters.settings import Head as Head
from tunesmith.parameters.settings import InContext as InContext
from tunesmith.parameters.settings import Layers as Layers
from tunesmith.parameters.settings import LoRA as LoRA
from tunesmith.parameters.settings import NoParameters as NoParameters
from tunesmith.parameters.settings import Parameters as Parameters
from tunesmith.parameters.settings import Prompt as Prompt
from tunesmith.strict import Part as Part

TaskName = Literal[
    "text-classification",
    "multi-label-classification",
    "text-regression",
    "token-classification",
    "text-generation",
    "chat",
    "summarization",
    "preference",
    "language-modeling",
    "image-classification",
]
ObjectiveName = Literal[
    "supervised",
    "classify",
    "focal",
    "multi-label",
    "mse",
    "huber",
    "ordinal",
    "tag",
    "contrastive",
    "reward",
    "dpo",
    "ppo",
    "grpo",
    "causal-lm",
    "masked-lm",
]
HEADS: dict[str, tuple[ObjectiveName, ...]] = {
    "text-classification": ("classify", "focal"),
    "multi-label-classification": ("multi-label",),
    "text-regression": ("mse", "huber", "ordinal"),
    "token-classification": ("tag",),
}
"""Tasks that a head on the model can do, and the objectives that teach it, the usual one first."""
CLASSICAL = ("text-classification", "multi-label-classification", "text-regression", "image-classification")
"""Tasks that a classical fit on frozen features can do."""
WEIGHTED: tuple[ObjectiveName, ...] = ("classify", "focal", "multi-label")
"""Objectives that know class weights."""
MethodName = Literal[
    "supervised",
    "instruction",
    "full",
    "transfer",
    "peft",
    "features",
    "few-shot",
    "preference",
    "reward",
    "verifiable-reward",
    "self-supervised",
    "domain",
    "sequential",
]
LANGUAGE_OBJECTIVES = ("causal-lm", "masked-lm")
LossOn = Literal["every-answer", "last-answer"]
Precision = Literal["auto", "bf16", "fp32", "fp64"]
Switch = Annotated[
    Literal["auto", "on", "off"],
    # YAML 1.1 reads a bare `off` as false.
    BeforeValidator(lambda value: {True: "on", False: "off"}[value] if isinstance(value, bool) else value),
]


class Data(Part):
    """Step 2: what to learn from, and what to hold back."""

    train: list[str] = Field(
        default=[], description="Files, folders, `hub:name` or catalog names to train on. One string is a list of one."
    )
    corpus: list[str] = Field(
        default=[], description="Bare text of the domain, which `method: domain` learns from before the task."
    )
    validation: float | list[str] = Field(
        default=0.1, description="A share of the training data (0 to 0.5), or data of its own. Choices are made on it."
    )
    test: float | list[str] = Field(
        default=0.1, description="A share of the training data (0 to 0.5), or data of its own. Only measured on."
    )
    columns: dict[str, str | list[str]] = Field(
        default={},
        description="Field of the task -> column of the data, where the names differ, e.g. `text: review`. `labels` "
        "may be several columns of 0 and 1: `labels: [sport, politics]`.",
    )
    format: Literal["auto", "jsonl", "json", "csv", "tsv", "parquet", "text", "conll", "document", "passages"] = Field(
        default="auto",
        description="Format of the files; `auto` goes by the file name. `text`: a row a line; `document`: a row a "
        "file; `passages`: paragraphs, joined to about 1,000 characters.",
    )
    label_names: list[str] = Field(
        default=[], description="Names of labels or tags that the data write as numbers; the first is number 0."
    )
    label_separator: str | None = Field(
        default=None, min_length=1, description="Parts several labels in one text; default: `;`, `|` or `,`, as found."
    )
    tag_pieces: Literal["first", "all"] = Field(
        default="first", description="Which pieces of a word carry its tag in training, where tokens are classified."
    )
    encoding: str = Field(default="utf-8", description="Text encoding of the files. A BOM is accepted and reported.")
    group_by: str | None = Field(
        default=None,
        description="A column whose rows of one value stay on one side of every split: an author, a patient, a tool.",
    )
    max_rows: int | None = Field(default=None, ge=1, description="Use at most this many rows of the training data.")
    shots: int | None = Field(
        default=None,
        ge=1,
        description="Learn from so many training rows of each label (few-shot); a share for validation is dropped.",
    )
    shots_seed: int = Field(default=0, description="Seed that draws the `shots`. The test rows do not depend on it.")
    max_length: int | None = Field(
        default=None,
        ge=8,
        description="Longest example in tokens; default: what the model takes, at most 2048. Documents of "
        "`language-modeling` are cut into blocks of this length, and nothing of them is lost.",
    )
    packing: bool = Field(
        default=False,
        description="Put several short documents into one row of `causal-lm`; they do not see each other. Never "
        "changes what a document teaches; on a CPU, where rows need no padding, it gains nothing.",
    )
    truncate: bool = Field(
        default=True, description="Cut examples that are too long (reported). `false`: they are an error."
    )
    loss_on: LossOn = Field(
        default="every-answer",
        description="Which answers of a conversation are learned. A message's own `weight` goes before it.",
    )
    drop_bad: bool = Field(
        default=False, description="Leave out rows with errors, writing them to `dropped.jsonl`, instead of stopping."
    )
    seed: int = Field(default=0, description="Salt of the content hash that decides the splits.")

    @field_validator("train", "corpus", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: object) -> object:
        return [str(value)] if isinstance(value, str | Path) else value

    @field_validator("validation", "test", mode="before")
    @classmethod
    def _share_or_list(cls, value: object) -> object:
        if isinstance(value, str | Path):
            try:
                return float(value)  # type: ignore[arg-type]  # a Path that is no number raises, as a str does
            except (ValueError, TypeError):
                return [str(value)]
        return value

    @field_validator("validation", "test")
    @classmethod
    def _share_in_range(cls, value: float | list[str]) -> float | list[str]:
        if isinstance(value, float) and not 0.0 <= value <= 0.5:
            raise ValueError(f"a share must lie between 0 and 0.5, not {value}")
        return value


class Training(Part):
    """Step 4: how the loop runs. Fields left at `null` take the default of the method, shown by `recipe show`."""

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
    weight_decay: float = Field(default=0.01, ge=0, description="Decoupled decay of matrices (not biases and norms).")
    betas: tuple[float, float] = Field(default=(0.9, 0.999), description="AdamW's moving averages.")
    epsilon: float = Field(default=1e-8, gt=0, description="AdamW's epsilon.")
    max_grad_norm: float = Field(default=1.0, gt=0, description="Gradients are clipped to this global norm.")
    dropout: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="Dropout inside the model. `null` keeps the model's own; 0 is faster (on a CPU much faster).",
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
    rollouts: Rollouts = Field(default=Rollouts(), description="For `objective: ppo` and `grpo`.")
    ppo: PPOLoss = Field(default=PPOLoss(), description="For `objective: ppo`.")
    grpo: GRPOLoss = Field(default=GRPOLoss(), description="For `objective: grpo`.")
    contrastive: ContrastiveLoss = Field(default=ContrastiveLoss(), description="For `objective: contrastive`.")
    preference: PreferenceLoss = Field(default=PreferenceLoss(), description="For `objective: dpo`.")
    mask_share: float = Field(default=0.15, gt=0, lt=1, description="Share of the tokens that `masked-lm` asks for.")
    whole_words: bool = Field(default=False, description="`masked-lm` masks whole words instead of single tokens.")
    seed: int = Field(default=0, description="Seed of the head, the data order and dropout.")
    eval_steps: int | None = Field(default=None, ge=1, description="Validate every N updates; default: each epoch.")
    patience: int | None = Field(
        default=None, ge=1, description="Stop after this many validations without a better result."
    )
    checkpoint_steps: int | None = Field(
        default=None, ge=1, description="Save every N updates; default: at each validation."
    )
    keep_checkpoints: int = Field(default=2, ge=1, description="Newest checkpoints kept, besides the best one.")
    compile: Switch = Field(
        default="auto", description="Compile the layers. `auto`: where the run is long enough to pay for it."
    )

    @model_validator(mode="after")
    def _one_batch_size(self) -> Training:
        if self.batch_size is not None and self.batch_tokens is not None:
            raise ValueError("give `batch_size` or `batch_tokens`, not both")
        return self


class Stage(Part):
    """One round of tuning. What a stage leaves out it takes from the top of the recipe."""

    name: str = Field(default="tune", pattern=r"^[a-z0-9][a-z0-9_-]{0,40}$", description="Name of the stage's folder.")
    task: TaskName | None = Field(default=None, description="What this stage teaches; default: the recipe's task.")
    data: Data | None = Field(default=None, description="What this stage learns from; default: the recipe's data.")
    objective: ObjectiveName | None = Field(
        default=None, description="What is minimised; default: what the task and the model call for."
    )
    parameters: Parameters | None = Field(default=None, description="What may change.")
    training: Training | None = Field(default=None, description="How the loop runs.")


class Baseline(Part):
    """One thing to compare the tuned model with, on the same test rows."""

    kind: Literal["majority", "base", "few-shot", "features", "larger", "without-domain", "lead", "oracle"]
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
                raise ValueError("a baseline is one name, or one `name: value`")
            kind, argument = next(iter(value.items()))
            key = {"few-shot": "shots", "larger": "model", "lead": "sentences"}.get(kind)
            if argument is not None and key is None:
                raise ValueError(f"the baseline {kind!r} takes no value")
            value = {"kind": kind} | ({key: argument} if key and argument is not None else {})
        return value

    @model_validator(mode="after")
    def _needs(self) -> Baseline:
        if self.kind == "larger" and not self.model:
            raise ValueError("the baseline `larger` needs a model: `larger: smollm2-135m-instruct`")
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
            raise ValueError("`num_beams` searches and `temperature` draws: give one of them")
        if self.temperature == 0 and (self.top_p < 1 or self.top_k):
            raise ValueError("`top_p` and `top_k` say what is drawn from, which needs a `temperature` above 0")
        if self.num_beams == 1 and self.length_penalty != 1:
            raise ValueError("`length_penalty` chooses between beams, which needs `num_beams` above 1")
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
        default=None, ge=10, description="Measure on at most this many test rows, the same for all."
    )
    resamples: int = Field(default=2000, ge=100, description="Bootstrap resamples behind each interval.")
    confidence: float = Field(default=0.95, gt=0.5, lt=1, description="Coverage of the intervals.")
    seed: int = Field(default=0, description="Seed of the bootstrap and of the random shots.")
    general: str | None = Field(
        default="python-reference",
        description="Text of another kind, on which `language-modeling` is measured before and after, to show what was "
        "lost. `null` leaves that out.",
    )
    generation: Generation = Generation()


class Sequence(Part):
    """What is done against forgetting where stages teach different tasks."""

    replay: float = Field(
        default=0.0, ge=0, le=1, description="Examples of earlier stages for each of the present one, learned again."
    )
    hold: Literal["none", "l2", "ewc"] = Field(
        default="none",
        description="Hold the weights near those of the stage before: all alike (`l2`), or by how much the earlier "
        "tasks need them (`ewc`).",
    )
    adapters: Literal["chain", "separate", "linear", "ties", "dare"] = Field(
        default="chain",
        description="`chain`: each stage begins where the one before it ended. With LoRA also `separate`: each begins "
        "from the plain base, and each task keeps an adapter of its own; or these are merged into one: their mean "
        "(`linear`), TIES or DARE.",
    )
    strength: float | None = Field(
        default=None, gt=0, description="Of `hold`; default 0.1 for `l2` and 1000 for `ewc`. Choose it by validation."
    )

    @property
    def hold_strength(self) -> float:
        """The strength, or its default."""
        return self.strength if self.strength is not None else {"l2": 0.1, "ewc": 1000.0}.get(self.hold, 0.0)


class Recipe(Part):
    """A whole run: task, data, model, stages, evaluation."""

    task: TaskName = Field(description="Step 1: what the model shall do.")
    model: str = Field(description="Step 3: hub id, folder, `.gguf` file, or a name of `tunesmith catalog`.")
    method: MethodName = Field(default="supervised", description="A named way to fine-tune: see `tunesmith methods`.")
    data: Data = Data()
    objective: ObjectiveName | None = Field(default=None, description="For all stages that name none.")
    parameters: Parameters | None = Field(default=None, description="For all stages that name none.")
    training: Training = Field(default=Training(), description="For all stages that name none.")
    stages: list[Stage] = Field(default=[], description="Several rounds; default: one, as the method has it.")
    sequence: Sequence = Field(default=Sequence(), description="With several stages: what is done against forgetting.")
    evaluate: Evaluate = Evaluate()
    precision: Precision = Field(
        default="auto", description="`auto`: bf16 where the hardware multiplies it fast, else fp32."
    )
    system_prompt: str | None = Field(default=None, description="System message put before every prompt.")

    @model_validator(mode="after")
    def _possible(self) -> Recipe:
        for problem in impossible_pairs(self):
            raise ValueError(problem)
        return self

    def resolved(self) -> Recipe:
        """The recipe with its method's choices filled in and every stage spelled out."""
        from tunesmith.methods import fill_in

        return fill_in(self)

    def of_stage(self, stage: Stage) -> Recipe:
        """The recipe as one of its stages sees it: with the task and data of that stage, and with no other stage."""
        return self.model_copy(
            update={"task": stage.task or self.task, "data": stage.data or self.data, "stages": [stage]}
        )

    def to_yaml(self) -> str:
        """The recipe as YAML that :func:`tunesmith.recipe_file.load` reads back to an equal recipe."""
        fields = self.model_dump(mode="json", exclude_none=True)
        text: str = yaml.dump(fields, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
        return text


class _Dumper(yaml.SafeDumper):
    """Escapes line breaks beyond ASCII, which PyYAML writes as they are and reads back as spaces."""


def _text_node(dumper: _Dumper, text: str) -> yaml.Node:
    breaks = any(character in text for character in "\x85\u2028\u2029")
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if breaks else None)


_Dumper.add_representer(str, _text_node)


_NEEDS = {"token-classification": "spans", "text-regression": "scores"}


def task_of(recipe: Recipe, stage: Stage) -> TaskName:
    """What a stage teaches: its own task; with a language objective bare text; else the recipe's task."""
    bare = stage.objective in LANGUAGE_OBJECTIVES
    return stage.task or ("language-modeling" if bare else recipe.task)


def objective_of(recipe: Recipe, stage: Stage) -> ObjectiveName | None:
    """What a stage minimises, if the recipe says: the objective at the top is for stages of the recipe's own task."""
    return stage.objective or (recipe.objective if task_of(recipe, stage) == recipe.task else None)


def impossible_pairs(recipe: Recipe) -> list[str]:
    """Say which choices of a recipe exclude each other, and what to do instead."""
    problems = []
    stages = recipe.stages or [Stage()]
    for number, stage in enumerate(stages, 1):
        objective = objective_of(recipe, stage)
        parameters = stage.parameters or recipe.parameters
        kind = parameters.kind if parameters else None
        task = task_of(recipe, stage)
        if (objective in LANGUAGE_OBJECTIVES) != (task == "language-modeling") and objective is not None:
            problems.append(
                f"the objective `{objective}` does not belong to the task `{task}`: `causal-lm` and `masked-lm` learn "
                "from bare text, so they want `task: language-modeling`, and it wants one of them"
            )
            continue
        teaches = next((name for name, own in HEADS.items() if objective in own), None)
        usual = HEADS.get(task, ("supervised",))[0]
        if teaches is not None and task != teaches:
            needs = _NEEDS.get(teaches, "labels")
            problems.append(
                f"the objective `{objective}` needs {needs}, which the task `{task}` has not: "
                f"use `objective: {usual}`, or `task: {teaches}`"
            )
        training = stage.training or recipe.training
        if training.class_weights is not None and objective not in (None, *WEIGHTED):
            problems.append(f"the objective `{objective}` knows no `class_weights`: use `objective: {usual}`")
        if kind == "head" and objective == "supervised":
            problems.append(
                "`parameters: {kind: head}` trains a classification head, which the objective `supervised` has not: "
                f"use `objective: {usual}`, or `parameters: {{kind: layers, layers: last 2}}`"
            )
        if kind == "head" and task not in HEADS:
            problems.append(
                f"`parameters: {{kind: head}}` needs a task with a head; `{task}` has none: "
                "use `kind: lora`, or `kind: layers`"
            )
        if isinstance(parameters, Prompt) and number < len(stages):
            problems.append(
                f"`kind: {kind}` puts virtual tokens before the text, which cannot become part of the next stage's "
                "base: use `kind: lora` in this stage"
            )
        fit_before = kind == "none" and number < len(stages)  # the fit's head is where the next stage starts
        fit_after = kind == "none" and number > 1 and recipe.method == "few-shot"
        apart = kind is not None and not (fit_before or fit_after) and (kind == "none") != (recipe.method == "features")
        if apart:
            problems.append("`parameters: {kind: none}` and `method: features` belong together: give both or neither")
        if kind == "none" and task not in CLASSICAL:
            problems.append(f"`parameters: {{kind: none}}` fits a classifier; `{task}` has no labels: use `kind: lora`")
        problems += _of_few_shot(recipe, task, objective, kind, len(stages))
    if recipe.task == "image-classification" and recipe.method != "features":
        problems.append("pictures are learned from by the features of a frozen model: use `method: features`")
    if recipe.method == "domain" and not recipe.stages and not recipe.data.corpus:
        problems.append(
            "`method: domain` needs text of the domain: `data: {corpus: FOLDER}`, or `stages` of which the first has "
            "`objective: causal-lm` or `masked-lm` and data of its own"
        )
    if recipe.method != "domain" and any(baseline.kind == "without-domain" for baseline in recipe.evaluate.baselines):
        problems.append("the baseline `without-domain` leaves out the first stage of `method: domain`: use that method")
    several = [stage.parameters or recipe.parameters for stage in stages]
    if recipe.sequence.adapters != "chain":
        if any(p is None or p.kind != "lora" for p in several):
            problems.append("`sequence.adapters` keeps one adapter a stage: use `parameters: {kind: lora}` for all")
        if recipe.sequence.replay or recipe.sequence.hold != "none":
            problems.append(
                "`sequence.adapters` begins each stage from the plain base, where nothing is forgotten that could be "
                "replayed or held: leave out `replay` and `hold`"
            )
    if recipe.sequence.hold != "none" and any(p is not None and p.kind not in ("full", "layers") for p in several):
        problems.append(
            "`sequence.hold` holds the weights of the model, which adapters and heads leave as they are: "
            "use `parameters: {kind: full}`, or `sequence: {replay: 0.1}`"
        )
    if recipe.method == "sequential" and len(recipe.stages) < 2:
        problems.append("`method: sequential` learns task after task: give two `stages` or more, each with its `data`")
    if recipe.data.corpus and recipe.method != "domain":
        problems.append("`data.corpus` is read by `method: domain` alone: use it, or `task: language-modeling`")
    if recipe.method == "features" and recipe.task not in CLASSICAL:
        problems.append(f"`method: features` fits a classifier; `{recipe.task}` has no labels: use `method: peft`")
    if recipe.method == "features" and len(recipe.stages) > 1:  # one is what the resolved recipe of a run has
        problems.append("`method: features` is a single fit and has no stages: use it without `stages`")
    return problems


def _of_few_shot(
    recipe: Recipe, task: TaskName, objective: ObjectiveName | None, kind: str | None, of: int
) -> list[str]:
    """The same for the ways to learn from few examples."""
    problems = []
    contrastive = objective == "contrastive" or (recipe.method == "few-shot" and kind != "in-context")
    if contrastive and task != "text-classification":
        problems.append(
            f"contrastive learning needs labels, which the task `{task}` has not: use `parameters: in-context`"
        )
    if objective == "contrastive" and kind == "head":
        problems.append("the objective `contrastive` trains the encoder and no head: use `parameters: full` or `lora`")
    if kind == "in-context" and of > 1:
        problems.append(
            "`parameters: in-context` trains nothing that a stage could go on from: use it without `stages`"
        )
    if kind == "in-context" and (objective not in (None, "supervised") or task == "preference"):
        problems.append(
            "`parameters: in-context` asks a model that writes: leave out `objective`, or choose other `parameters`"
        )
    return problems
