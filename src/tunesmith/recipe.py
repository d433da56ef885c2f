"""The recipe: a strict tree that says what to do, in one declaration.

The same fields are the YAML keys, the Python arguments, the ``--set`` overrides and the help texts. A recipe is
checked completely before anything is loaded: an unknown key, a value out of range and an impossible pair of axes are
all :class:`~tunesmith.errors.RecipeError` with the place and the remedy.
"""

from __future__ import annotations

from typing import Literal

import yaml
from pydantic import Field, model_validator

from tunesmith.compression.settings import Quantize as Quantize
from tunesmith.compression.settings import QuantizeChoice as QuantizeChoice
from tunesmith.data.settings import Data as Data
from tunesmith.data.settings import LossOn as LossOn
from tunesmith.evaluation.settings import Baseline as Baseline
from tunesmith.evaluation.settings import Evaluate as Evaluate
from tunesmith.evaluation.settings import Generation as Generation
from tunesmith.hosted.settings import Hosted as Hosted
from tunesmith.models.settings import Student as Student
from tunesmith.objectives.settings import ContrastiveLoss as ContrastiveLoss
from tunesmith.objectives.settings import Distillation as Distillation
from tunesmith.objectives.settings import GRPOLoss as GRPOLoss
from tunesmith.objectives.settings import KTOLoss as KTOLoss
from tunesmith.objectives.settings import PPOLoss as PPOLoss
from tunesmith.objectives.settings import PreferenceLoss as PreferenceLoss
from tunesmith.objectives.settings import RewardLoss as RewardLoss
from tunesmith.objectives.settings import RewardSource as RewardSource
from tunesmith.objectives.settings import Rollouts as Rollouts
from tunesmith.objectives.settings import TeacherAnswers as TeacherAnswers
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
from tunesmith.training.settings import Switch as Switch
from tunesmith.training.settings import Training as Training

TaskName = Literal[
    "text-classification",
    "multi-label-classification",
    "text-regression",
    "token-classification",
    "text-generation",
    "chat",
    "summarization",
    "preference",
    "feedback",
    "prompts",
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
    "kto",
    "ppo",
    "grpo",
    "distill",
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
    "rlhf",
    "self-supervised",
    "domain",
    "sequential",
    "distillation",
    "hosted",
]
HOSTED_TASKS = (
    "text-classification",
    "text-generation",
    "chat",
    "summarization",
    "token-classification",
    "preference",
    "prompts",
)
"""Tasks that can be put to a provider as conversations and measured by its answers."""
LANGUAGE_OBJECTIVES = ("causal-lm", "masked-lm")
Precision = Literal["auto", "bf16", "fp32", "fp64"]


class Stage(Part):
    """One round of tuning. What a stage leaves out it takes from the top of the recipe."""

    name: str = Field(default="tune", pattern=r"^[a-z0-9][a-z0-9_-]{0,40}$", description="Name of the stage's folder.")
    task: TaskName | None = Field(default=None, description="What this stage teaches; default: the recipe's task.")
    model: str | None = Field(
        default=None,
        description="A base model of its own, for a stage that makes a judge for a later one (`rewards: [{kind: "
        "stage}]`); default: the recipe's model, as the stages before left it.",
    )
    data: Data | None = Field(default=None, description="What this stage learns from; default: the recipe's data.")
    objective: ObjectiveName | None = Field(
        default=None, description="What is minimised; default: what the task and the model call for."
    )
    parameters: Parameters | None = Field(default=None, description="What may change.")
    training: Training | None = Field(default=None, description="How the loop runs.")


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
    student: Student | None = Field(default=None, description="Cut the model to a smaller one before it is tuned.")
    method: MethodName = Field(default="supervised", description="A named way to fine-tune: see `tunesmith methods`.")
    data: Data = Data()
    objective: ObjectiveName | None = Field(default=None, description="For all stages that name none.")
    parameters: Parameters | None = Field(default=None, description="For all stages that name none.")
    training: Training = Field(default=Training(), description="For all stages that name none.")
    stages: list[Stage] = Field(default=[], description="Several rounds; default: one, as the method has it.")
    sequence: Sequence = Field(default=Sequence(), description="With several stages: what is done against forgetting.")
    evaluate: Evaluate = Evaluate()
    quantize: QuantizeChoice | None = Field(
        default=None, description="Quantize the finished model and measure that too, e.g. `int8`; the original stays."
    )
    hosted: Hosted | None = Field(default=None, description="With `method: hosted`: who tunes the model, and how.")
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
        """The recipe as one of its stages sees it: its task, data and model, and no other stage."""
        own = {"task": stage.task or self.task, "data": stage.data or self.data, "model": stage.model or self.model}
        return self.model_copy(update={**own, "stages": [stage]})

    @property
    def learns_from_rewards(self) -> bool:
        """Whether the last stage of a resolved recipe does: its answers are then measured by their reward."""
        return bool(self.stages) and self.stages[-1].objective in ("ppo", "grpo")

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
        bare = objective in LANGUAGE_OBJECTIVES or (objective == "distill" and task == "language-modeling")
        if bare != (task == "language-modeling") and objective is not None:
            problems.append(
                f"the objective `{objective}` does not belong to the task `{task}`: `causal-lm` and `masked-lm` learn "
                "from bare text, so they want `task: language-modeling`, and it wants one of them"
            )
            continue
        if objective is not None and (objective == "kto") != (task == "feedback"):
            problems.append(
                f"the objective `{objective}` does not belong to the task `{task}`: `kto` learns from answers that "
                "were liked or not, so it wants `task: feedback`, and it wants `kto`"
            )
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
        nothing_trains = recipe.method in ("features", "hosted")  # here, that is
        apart = kind is not None and not (fit_before or fit_after) and (kind == "none") != nothing_trains
        if apart and recipe.method != "hosted":
            problems.append("`parameters: {kind: none}` and `method: features` belong together: give both or neither")
        if isinstance(parameters, NoParameters):
            problems += _of_fits(parameters, task, last=number == len(stages))
        if kind == "none" and task not in CLASSICAL and recipe.method != "hosted":
            problems.append(f"`parameters: {{kind: none}}` fits a classifier; `{task}` has no labels: use `kind: lora`")
        problems += _of_few_shot(recipe, task, objective, kind, len(stages))
        problems += _of_distillation(recipe, stage, task, objective, kind)
        problems += _of_hosted(recipe, stage, kind, len(stages))
    if recipe.task == "image-classification" and recipe.method != "features":
        problems.append("pictures are learned from by the features of a frozen model: use `method: features`")
    if recipe.method == "domain" and not recipe.stages and not recipe.data.corpus:
        problems.append(
            "`method: domain` needs text of the domain: `data: {corpus: FOLDER}`, or `stages` of which the first has "
            "`objective: causal-lm` or `masked-lm` and data of its own"
        )
    if recipe.method != "domain" and any(baseline.kind == "without-domain" for baseline in recipe.evaluate.baselines):
        problems.append("the baseline `without-domain` leaves out the first stage of `method: domain`: use that method")
    problems += _of_student(recipe)
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
    if recipe.task == "prompts" and recipe.method not in ("verifiable-reward", "rlhf", "hosted"):
        unlearnt = [stage.name for stage in stages if objective_of(recipe, stage) not in ("ppo", "grpo")]
        if unlearnt:
            problems.append("`task: prompts` has no answers to learn from: use `method: verifiable-reward`")
    problems += _of_rewards(recipe, stages)
    if recipe.method == "features" and recipe.task not in CLASSICAL:
        problems.append(f"`method: features` fits a classifier; `{recipe.task}` has no labels: use `method: peft`")
    if recipe.method == "features" and len(recipe.stages) > 1:  # one is what the resolved recipe of a run has
        problems.append("`method: features` is a single fit and has no stages: use it without `stages`")
    return problems


def _of_hosted(recipe: Recipe, stage: Stage, kind: str | None, of: int) -> list[str]:
    """The same for jobs at a provider, which decides what trains, and how."""
    if recipe.method != "hosted":
        unread = "`hosted` is read by `method: hosted` alone: use that method, or leave it out"
        return [] if recipe.hosted is None else [unread]
    problems = []
    if recipe.task not in HOSTED_TASKS:
        problems.append(
            f"a provider tunes models that write, and `{recipe.task}` is no task for that: use `task: chat`"
        )
    if kind not in (None, "none") or stage.objective or recipe.objective or of > 1:
        problems.append(
            "with `method: hosted` the provider chooses what trains: leave out `parameters`, `objective` and `stages`"
        )
    training, usual = stage.training or recipe.training, Training()
    ignored = [name for name in Training.model_fields if getattr(training, name) != getattr(usual, name)]
    ignored = [name for name in ignored if name != "seed"]
    if ignored:
        problems.append(
            f"`training.{ignored[0]}` is for training on this machine: use `hosted.epochs`, `hosted.batch_size`, "
            "`hosted.learning_rate_multiplier` or `hosted.beta`"
        )
    if recipe.quantize is not None:
        problems.append("`quantize` needs the weights, and a provider keeps them: leave it out")
    graded = recipe.hosted is not None and recipe.hosted.grader is not None
    if graded != (recipe.task == "prompts"):
        problems.append("`hosted.grader` and `task: prompts` (rows without answers) belong together: give both")
    return problems


def _of_fits(parameters: NoParameters, task: TaskName, *, last: bool) -> list[str]:
    """The same for fits on frozen features."""
    problems = []
    if parameters.head != "logistic" and task not in ("text-classification", "image-classification"):
        problems.append(f"`head: {parameters.head}` gives one label a text; for `{task}` leave out `head`")
    if parameters.head in ("knn", "boosting", "best") and not last:
        problems.append(f"`head: {parameters.head}` may be no linear layer, which the next stage needs: use `svm`")
    if parameters.layer is not None and task == "image-classification":
        problems.append("`layer` is for models of text: leave it out")
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


TAUGHT: tuple[TaskName, ...] = (
    "text-classification",
    "token-classification",
    "text-generation",
    "chat",
    "summarization",
    "language-modeling",
)
"""Tasks that a student can learn from a teacher."""
WRITTEN: tuple[TaskName, ...] = ("text-generation", "chat", "summarization")
"""Those whose answers are texts."""


def _of_distillation(
    recipe: Recipe, stage: Stage, task: TaskName, objective: ObjectiveName | None, kind: str | None
) -> list[str]:
    """The same for a stage that learns from a teacher."""
    training = recipe.training if stage.training is None else stage.training
    said_here = "distillation" in training.model_fields_set
    own = training.distillation if said_here else recipe.training.distillation
    distils = objective == "distill" or (objective is None and recipe.method == "distillation")
    if not distils or kind in ("none", "in-context"):  # a fit of the head, say, before the stage that distils
        return []
    problems = []
    if task not in TAUGHT:
        problems.append(f"`objective: distill` cannot teach the task `{task}`: it can {', '.join(TAUGHT)}")
    if own.teacher is None and recipe.student is None:
        problems.append(
            "there is no teacher: name a run or a model (`training: {distillation: {teacher: runs/NAME}}`), or cut the "
            "student from `model` (`student: {layers: 6}`), which is then the teacher"
        )
    if own.answers != "data" and task not in WRITTEN:
        problems.append(
            f"`distillation.answers: {own.answers}` needs a task whose answers are texts, and `{task}` has none: leave "
            "it out, and the student learns what the teacher thinks of the data's own"
        )
    if own.unlabelled and (task != "text-classification" or own.share_of_labels == 1):
        problems.append(
            "`distillation.unlabelled` is text for which the teacher says how likely each label is: use it with "
            "`task: text-classification` and a `label_weight` below 1"
        )
    if (own.hidden_weight or own.attention_weight) and task != "text-classification":
        problems.append(
            "`distillation.hidden_weight` and `attention_weight` are for encoders that classify texts: leave them out; "
            f"for `{task}` the teacher's distributions are learned"
        )
    if (training.class_weights or recipe.training.class_weights) is not None:
        problems.append("`objective: distill` knows no `class_weights`: leave them out")
    if own.written.keep == "reward" and not (training.rewards or recipe.training.rewards):
        problems.append(
            "`distillation.written.keep: reward` needs something that scores the answers: `training: {rewards: [...]}`"
        )
    if recipe.sequence.replay:
        problems.append("`sequence.replay` does not replay what a teacher taught: leave it out, or use `hold: l2`")
    return problems


def _of_student(recipe: Recipe) -> list[str]:
    """What does not go with a cut model, and baselines of distillation without any."""
    problems = []
    if recipe.student is not None and recipe.task == "image-classification":
        problems.append("`student` cuts models of text: leave it out for pictures")
    objectives = [stage.objective for stage in recipe.stages] + [recipe.objective]
    distils = recipe.method == "distillation" or "distill" in objectives
    if recipe.training.distillation.teacher is not None and not distils:
        problems.append("`distillation.teacher` is read by `objective: distill`: use it, or `method: distillation`")
    for baseline in recipe.evaluate.baselines:
        if baseline.kind in ("teacher", "without-teacher") and not distils:
            problems.append(f"the baseline `{baseline.kind}` belongs to a teacher: use `method: distillation`")
    return problems


ANSWERED = ("text-generation", "chat", "prompts")
"""Tasks whose prompts a model can answer to learn from what its answers are worth."""
RLHF_STAGES = ("sft", "reward", "ppo")
"""Of `method: rlhf`, in their order."""


def _of_rewards(recipe: Recipe, stages: list[Stage]) -> list[str]:
    """The same for stages that learn from rewards, and for those that make a judge for them."""
    problems = []
    names = [stage.name for stage in stages]
    judges = {"reward"} if recipe.method == "rlhf" else set()
    for number, stage in enumerate(stages):
        objective = objective_of(recipe, stage) or ("grpo" if recipe.method == "verifiable-reward" else None)
        sources = (stage.training.rewards if stage.training is not None else []) or recipe.training.rewards
        if objective in ("ppo", "grpo") and (task := task_of(recipe, stage)) not in ANSWERED:
            problems.append(
                f"the objective `{objective}` learns from answers to prompts, which the task `{task}` has not: write "
                "the rows as prompts, and use `task: text-generation`"
            )
        before = RLHF_STAGES[:2] if recipe.method == "rlhf" else names[:number]
        for name in [source.stage for source in sources if source.stage is not None]:
            judges.add(name)
            if name not in before and objective in ("ppo", "grpo", None):
                known = f"one of {', '.join(before)}" if before else "a run (`kind: run`)"
                problems.append(
                    f"there is no stage {name!r} before `{stage.name}` that could be its reward: use {known}"
                )
    for stage in stages:
        if stage.model is not None and stage.name not in judges:
            problems.append(
                f"the stage `{stage.name}` has a `model` of its own, and no later stage is rewarded by what it makes: "
                f"name it there (`rewards: [{{kind: stage, stage: {stage.name}}}]`), or leave out `model`"
            )
    if judges and (recipe.sequence.adapters != "chain" or recipe.sequence.replay or recipe.sequence.hold != "none"):
        problems.append("`sequence` is about tasks that one model learns in turn: leave it out beside a reward's stage")
    if recipe.evaluate.judge is not None and recipe.evaluate.judge.kind == "stage":
        problems.append("`evaluate.judge` must be a judge that nothing was learned from: name another run")
    if recipe.method == "rlhf":
        problems += _of_rlhf(recipe, names, {task_of(recipe, stage) for stage in stages if stage.name == "sft"})
    elif recipe.data.preferences:
        problems.append("`data.preferences` is read by `method: rlhf` alone: use it, or `task: preference`")
    return problems


def _of_rlhf(recipe: Recipe, names: list[str], shown: set[TaskName]) -> list[str]:
    """The same for `method: rlhf`; ``shown`` is the task of its first stage, where the recipe has that stage."""
    problems = []
    if "prompts" in (shown or {recipe.task}):
        problems.append("the stage `sft` learns from answers, which `prompts` has not: give it `task` and `data`")
    elif recipe.task not in ANSWERED:
        problems.append(f"`method: rlhf` teaches to write, and `{recipe.task}` does not: use `task: text-generation`")
    if recipe.stages and (len(set(names)) < len(names) or not set(names) <= set(RLHF_STAGES)):
        problems.append(f"`method: rlhf` has the stages {', '.join(RLHF_STAGES)}, each once, not {', '.join(names)}")
    if not recipe.data.preferences and not any(stage.name == "reward" and stage.data for stage in recipe.stages):
        problems.append("`method: rlhf` needs pairs of answers to learn what to reward: `data: {preferences: FILE}`")
    return problems
