"""The recipe: a strict tree that says what to do, in one declaration.

The same fields are the YAML keys, the Python arguments, the ``--set`` overrides and the help texts. A recipe is
checked completely before anything is loaded: an unknown key, a value out of range and an impossible pair of axes are
all :class:`~tunesmith.errors.RecipeError` with the place and the remedy.
"""

from __future__ import annotations

from typing import Any, Literal

import yaml
from pydantic import BaseModel, Field, model_validator

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
    "image-classification": ("classify", "focal"),
}
"""Tasks that a head on the model can do, and the objectives that teach it, the usual one first."""
PICTURES: tuple[TaskName, ...] = ("image-classification",)
"""Tasks into which pictures go instead of texts."""
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

    @model_validator(mode="before")
    @classmethod
    def _with_kinds(cls, tree: object) -> object:
        from tunesmith.methods import with_kinds

        return with_kinds(tree) if isinstance(tree, dict) else tree

    @model_validator(mode="after")
    def _possible(self) -> Recipe:
        from tunesmith.methods import fill_in
        from tunesmith.refusals import refusals

        for refusal in refusals(self):
            raise refusal
        for refusal in refusals(fill_in(self)):  # what the method chooses excludes things too
            raise refusal
        return self

    def resolved(self) -> Recipe:
        """The recipe with its method's choices filled in and every stage spelled out."""
        from tunesmith.methods import fill_in

        return fill_in(self)

    def of_stage(self, stage: Stage) -> Recipe:
        """The recipe as one of its stages sees it: its task, data and model, and no other stage."""
        own = {"task": stage.task or self.task, "data": stage.data or self.data, "model": stage.model or self.model}
        return self.model_copy(update={**own, "stages": [stage]})

    def named_models(self) -> dict[str, str]:
        """Key -> the model that it names: the base model, and those of stages, of baselines and of teachers."""
        found = {"model": self.model}
        found |= {f"stages.{number}.model": stage.model for number, stage in enumerate(self.stages) if stage.model}
        baselines = enumerate(self.evaluate.baselines)
        found |= {f"evaluate.baselines.{number}.model": one.model for number, one in baselines if one.model}
        return found | self._named_teachers()

    def _named_teachers(self) -> dict[str, str]:
        """Key -> the teacher of a stage that distils, unless that is a server; of the name of a run its folder."""
        from tunesmith.runs import DEFAULT_ROOT

        found = {}
        for number, stage in enumerate(self.stages):
            own = stage.training.distillation if stage.training is not None else None
            if stage.objective != "distill" or own is None or own.teacher is None or own.is_server:
                continue
            shared = own.teacher == self.training.distillation.teacher
            key = f"{'' if shared else f'stages.{number}.'}training.distillation.teacher"
            below = DEFAULT_ROOT / own.teacher
            found[key] = str(below) if (below / "recipe.yaml").is_file() else own.teacher
        return found

    @property
    def learns_from_rewards(self) -> bool:
        """Whether the last stage of a resolved recipe does: its answers are then measured by their reward."""
        return bool(self.stages) and self.stages[-1].objective in ("ppo", "grpo")

    def to_yaml(self, *, nulls: bool = False) -> str:
        """The recipe as YAML that :func:`tunesmith.recipe_file.load` reads back to an equal recipe.

        Args:
            nulls: With the keys that are ``null`` by default, too.
        """
        fields = self.model_dump(mode="json")
        fields = fields if nulls else _without_default_nulls(self, fields)
        text: str = yaml.dump(fields, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
        return text


def _without_default_nulls(value: Any, plain: Any) -> Any:
    """A dumped value without what is ``null`` by default; a ``null`` that takes the place of another default stays."""
    if isinstance(value, BaseModel) and isinstance(plain, dict):
        fields = type(value).model_fields
        return {
            name: _without_default_nulls(getattr(value, name), inner)
            for name, inner in plain.items()
            if inner is not None or fields[name].get_default(call_default_factory=True) is not None
        }
    if isinstance(value, dict) and isinstance(plain, dict):
        return {name: _without_default_nulls(value[name], inner) for name, inner in plain.items()}
    if isinstance(value, list | tuple) and isinstance(plain, list):
        return [_without_default_nulls(*pair) for pair in zip(value, plain, strict=True)]
    return plain


class _Dumper(yaml.SafeDumper):
    """Escapes line breaks beyond ASCII, which PyYAML writes as they are and reads back as spaces."""


def _text_node(dumper: _Dumper, text: str) -> yaml.Node:
    breaks = any(character in text for character in "\x85\u2028\u2029")
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if breaks else None)


_Dumper.add_representer(str, _text_node)


def task_of(recipe: Recipe, stage: Stage) -> TaskName:
    """What a stage teaches: its own task; with a language objective bare text; else the recipe's task."""
    bare = stage.objective in LANGUAGE_OBJECTIVES
    return stage.task or ("language-modeling" if bare else recipe.task)


def objective_of(recipe: Recipe, stage: Stage) -> ObjectiveName | None:
    """What a stage minimises, if the recipe says: the objective at the top is for stages of the recipe's own task."""
    return stage.objective or (recipe.objective if task_of(recipe, stage) == recipe.task else None)
