"""Which choices of a recipe exclude each other, and what to do instead.

A rule is a function that yields what it finds wrong. Each says one thing; none loads anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tunesmith.recipe import (
    CLASSICAL,
    HEADS,
    LANGUAGE_OBJECTIVES,
    WEIGHTED,
    LoRA,
    NoParameters,
    ObjectiveName,
    Parameters,
    Prompt,
    Recipe,
    RewardSource,
    Stage,
    TaskName,
    Training,
    objective_of,
    task_of,
)

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
ANSWERED: tuple[TaskName, ...] = ("text-generation", "chat", "prompts")
"""Tasks whose prompts a model can answer to learn from what its answers are worth."""
RLHF_STAGES = ("sft", "reward", "ppo")
"""Of ``method: rlhf``, in their order."""
HOSTED_TASKS: tuple[TaskName, ...] = (
    "text-classification",
    "text-generation",
    "chat",
    "summarization",
    "token-classification",
    "preference",
    "prompts",
)
"""Tasks that can be put to a provider as conversations and measured by its answers."""
COMPARED: tuple[TaskName, ...] = ("preference", "feedback", "prompts")
"""Those in which an answer is better or worse than what the model would have said, and none is right."""
MERGED = ("linear", "ties", "dare")
"""Values of ``sequence.adapters`` that put the adapters together."""
PICTURE_METHODS = ("supervised", "full", "transfer", "features")
"""Methods that learn from pictures."""
_NEEDS = {"token-classification": "spans", "text-regression": "scores"}


@dataclass(frozen=True)
class Chosen:
    """A stage with what it takes from the top of the recipe.

    Attributes:
        stage: As the recipe has it.
        number: Of the stage, from 1 on.
        of: How many there are.
        task: What it teaches.
        objective: What it minimises, if the recipe says.
        parameters: What may change, if the recipe says.
        training: Its own settings, or those for all stages.
    """

    stage: Stage
    number: int
    of: int
    task: TaskName
    objective: ObjectiveName | None
    parameters: Parameters | None
    training: Training

    @property
    def kind(self) -> str | None:
        """The kind of its parameters, if the recipe says."""
        return None if self.parameters is None else self.parameters.kind

    @property
    def usual_objective(self) -> ObjectiveName:
        """What its task calls for."""
        return HEADS.get(self.task, ("supervised",))[0]


def refusals(recipe: Recipe) -> Iterator[str]:
    """Everything that speaks against a recipe, each with its remedy, the first thing to mend first."""
    stages = [
        Chosen(
            stage,
            number,
            max(1, len(recipe.stages)),
            task_of(recipe, stage),
            objective_of(recipe, stage),
            stage.parameters or recipe.parameters,
            stage.training or recipe.training,
        )
        for number, stage in enumerate(recipe.stages or [Stage()], 1)
    ]
    for chosen in stages:
        foreign = list(_of_bare_text(recipe, chosen))
        yield from foreign
        for stage_rule in () if foreign else STAGE_RULES:  # with the wrong task the rest would only follow from it
            yield from stage_rule(recipe, chosen)
    for rule in RULES:
        yield from rule(recipe, stages)


# --- rules for each stage --------------------------------------------------------------------------------------------


def _of_bare_text(recipe: Recipe, chosen: Chosen) -> Iterator[str]:
    task, objective = chosen.task, chosen.objective
    bare = objective in LANGUAGE_OBJECTIVES or (objective == "distill" and task == "language-modeling")
    if bare != (task == "language-modeling") and objective is not None:
        yield (
            f"the objective `{objective}` does not belong to the task `{task}`: `causal-lm` and `masked-lm` learn "
            "from bare text, so they want `task: language-modeling`, and it wants one of them"
        )


def _of_objectives(recipe: Recipe, chosen: Chosen) -> Iterator[str]:
    task, objective, usual = chosen.task, chosen.objective, chosen.usual_objective
    if objective is not None and (objective == "kto") != (task == "feedback"):
        yield (
            f"the objective `{objective}` does not belong to the task `{task}`: `kto` learns from answers that "
            "were liked or not, so it wants `task: feedback`, and it wants `kto`"
        )
    teaches = next((name for name, own in HEADS.items() if objective in own), None)
    if teaches is not None and objective not in HEADS.get(task, ()):
        needs = _NEEDS.get(teaches, "labels")
        yield (
            f"the objective `{objective}` needs {needs}, which the task `{task}` has not: "
            f"use `objective: {usual}`, or `task: {teaches}`"
        )
    if chosen.training.class_weights is not None and objective not in (None, *WEIGHTED):
        yield f"the objective `{objective}` knows no `class_weights`: use `objective: {usual}`"


def _of_parameters(recipe: Recipe, chosen: Chosen) -> Iterator[str]:
    task, kind = chosen.task, chosen.kind
    if kind == "head" and chosen.objective == "supervised":
        yield (
            "`parameters: {kind: head}` trains a classification head, which the objective `supervised` has not: "
            f"use `objective: {chosen.usual_objective}`, or `parameters: {{kind: layers, layers: last 2}}`"
        )
    if kind == "head" and task not in HEADS:
        yield (
            f"`parameters: {{kind: head}}` needs a task with a head; `{task}` has none: "
            "use `kind: lora`, or `kind: layers`"
        )
    if isinstance(chosen.parameters, Prompt) and chosen.number < chosen.of:
        yield (
            f"`kind: {kind}` puts virtual tokens before the text, which cannot become part of the next stage's "
            "base: use `kind: lora` in this stage"
        )
    if isinstance(chosen.parameters, Prompt) and chosen.objective == "masked-lm":
        yield (
            f"`kind: {kind}` puts virtual tokens before the text, and `masked-lm` looks for the hidden words at the "
            "text's own places: use `kind: lora`"
        )
    if isinstance(chosen.parameters, Prompt) and chosen.training.recompute == "on":
        yield (
            f"`kind: {kind}` puts virtual tokens into a cache that each layer adds to, so activations cannot be "
            "recomputed: leave `training.recompute` at `auto`, or use `kind: lora`"
        )
    if isinstance(chosen.parameters, Prompt) and chosen.training.ppo.value_trunk == "separate":
        yield (
            f"`kind: {kind}` learns virtual tokens, which a separate value trunk would read and change too: "
            "use `ppo: {value_trunk: shared}`, or `kind: lora`"
        )


def _of_fits(recipe: Recipe, chosen: Chosen) -> Iterator[str]:
    """Stages without a loop: a classical fit on frozen features."""
    kind, task = chosen.kind, chosen.task
    if recipe.method == "hosted":
        return
    fit_before = kind == "none" and chosen.number < chosen.of  # the fit's head is where the next stage starts
    fit_after = kind == "none" and chosen.number > 1 and recipe.method == "few-shot"
    if kind is not None and not (fit_before or fit_after) and (kind == "none") != (recipe.method == "features"):
        yield "`parameters: {kind: none}` and `method: features` belong together: give both or neither"
    fit = chosen.parameters
    if isinstance(fit, NoParameters):
        if fit.head != "logistic" and task not in ("text-classification", "image-classification"):
            yield f"`head: {fit.head}` gives one label a text; for `{task}` leave out `head`"
        if fit.head in ("knn", "boosting", "best") and chosen.number < chosen.of:
            yield f"`head: {fit.head}` may be no linear layer, which the next stage needs: use `svm`"
        if fit.layer is not None and task == "image-classification":
            yield "`layer` is for models of text: leave it out"
    if kind == "none" and task not in CLASSICAL:
        yield f"`parameters: {{kind: none}}` fits a classifier; `{task}` has no labels: use `kind: lora`"


def _of_few_shot(recipe: Recipe, chosen: Chosen) -> Iterator[str]:
    task, objective, kind = chosen.task, chosen.objective, chosen.kind
    contrastive = objective == "contrastive" or (recipe.method == "few-shot" and kind != "in-context")
    if contrastive and task not in ("text-classification", "image-classification"):  # of pictures another rule speaks
        yield f"contrastive learning needs labels, which the task `{task}` has not: use `parameters: in-context`"
    if objective == "contrastive" and kind == "head":
        yield "the objective `contrastive` trains the encoder and no head: use `parameters: full` or `lora`"
    if kind == "in-context" and chosen.of > 1:
        yield "`parameters: in-context` trains nothing that a stage could go on from: use it without `stages`"
    if kind == "in-context" and task in ("preference", "feedback", "prompts", "language-modeling"):
        yield f"`parameters: in-context` shows questions and answers, which `{task}` has not: use `kind: lora`"
    elif kind == "in-context" and objective not in (None, "supervised"):
        yield "`parameters: in-context` asks a model that writes: leave out `objective`, or choose other `parameters`"


def _of_distillation(recipe: Recipe, chosen: Chosen) -> Iterator[str]:
    task, objective, training = chosen.task, chosen.objective, chosen.training
    own = training.distillation if "distillation" in training.model_fields_set else recipe.training.distillation
    distils = objective == "distill" or (objective is None and recipe.method == "distillation")
    if not distils or chosen.kind in ("none", "in-context"):  # a fit of the head, say, before the stage that distils
        return
    if task not in TAUGHT:
        yield f"`objective: distill` cannot teach the task `{task}`: it can {', '.join(TAUGHT)}"
    if own.teacher is None and recipe.student is None:
        yield (
            "there is no teacher: name a run or a model (`training: {distillation: {teacher: runs/NAME}}`), or cut the "
            "student from `model` (`student: {layers: 6}`), which is then the teacher"
        )
    if own.answers != "data" and task not in WRITTEN:
        yield (
            f"`distillation.answers: {own.answers}` needs a task whose answers are texts, and `{task}` has none: leave "
            "it out, and the student learns what the teacher thinks of the data's own"
        )
    if own.unlabelled and (task != "text-classification" or own.share_of_labels == 1):
        yield (
            "`distillation.unlabelled` is text for which the teacher says how likely each label is: use it with "
            "`task: text-classification` and a `label_weight` below 1"
        )
    if (own.hidden_weight or own.attention_weight) and task != "text-classification":
        yield (
            "`distillation.hidden_weight` and `attention_weight` are for encoders that classify texts: leave them out; "
            f"for `{task}` the teacher's distributions are learned"
        )
    if (training.class_weights or recipe.training.class_weights) is not None:
        yield "`objective: distill` knows no `class_weights`: leave them out"
    if own.written.keep == "reward" and not (training.rewards or recipe.training.rewards):
        yield (
            "`distillation.written.keep: reward` needs something that scores the answers: `training: {rewards: [...]}`"
        )
    if recipe.sequence.replay:
        yield "`sequence.replay` does not replay what a teacher taught: leave it out, or use `hold: l2`"


def _of_quantization_aware(recipe: Recipe, chosen: Chosen) -> Iterator[str]:
    """Training with the rounding of a number format."""
    kind = chosen.training.quantization_aware
    if kind is None:
        return
    parameters = chosen.parameters
    if chosen.kind not in (None, "full", "layers", "lora"):
        yield (
            f"`training.quantization_aware` lets weights learn to be rounded, and with `kind: {chosen.kind}` those "
            "that are rounded do not train: use `kind: full`, `layers` or `lora`, or leave it out"
        )
    if isinstance(parameters, LoRA):
        if parameters.quantization != "none":
            yield (
                f"the base is kept in {parameters.quantization} already, and `training.quantization_aware` rounds what "
                "the adapter is added to: use `parameters.quantization: none`"
            )
        if parameters.dora or parameters.dropout:
            yield (
                "`training.quantization_aware` rounds the base with the adapter added to it, which `dora` and "
                "`dropout` of the adapter do not allow: leave them out"
            )
    if chosen.objective in ("ppo", "grpo", "contrastive"):
        yield (
            f"`training.quantization_aware` is not made for the objective `{chosen.objective}`: use it in a stage of "
            f"`{chosen.usual_objective}`"
        )
    if recipe.sequence.adapters != "chain":
        yield "`training.quantization_aware` is lost where adapters are kept apart or merged: leave it out"
    if recipe.quantize is not None and chosen.number == chosen.of and recipe.quantize.to != kind:
        yield (
            f"the model is trained for the rounding of `{kind}` and then quantized to `{recipe.quantize.to}`: give the "
            "same to `training.quantization_aware` and `quantize`"
        )


def _of_hosted(recipe: Recipe, chosen: Chosen) -> Iterator[str]:
    """Jobs at a provider, which decides what trains, and how."""
    if recipe.method != "hosted":
        if recipe.hosted is not None:
            yield "`hosted` is read by `method: hosted` alone: use that method, or leave it out"
        return
    if recipe.task not in HOSTED_TASKS:
        yield f"a provider tunes models that write, and `{recipe.task}` is no task for that: use `task: chat`"
    if chosen.kind not in (None, "none") or chosen.objective or recipe.objective or chosen.of > 1:
        yield (
            "with `method: hosted` the provider chooses what trains: leave out `parameters`, `objective` and `stages`"
        )
    usual = Training()
    asked = [name for name in Training.model_fields if getattr(chosen.training, name) != getattr(usual, name)]
    ignored = [name for name in asked if name != "seed"]
    if ignored:
        yield (
            f"`training.{ignored[0]}` is for training on this machine: use `hosted.epochs`, `hosted.batch_size`, "
            "`hosted.learning_rate_multiplier` or `hosted.beta`"
        )
    if recipe.quantize is not None:
        yield "`quantize` needs the weights, and a provider keeps them: leave it out"
    graded = recipe.hosted is not None and recipe.hosted.grader is not None
    if graded != (recipe.task == "prompts"):
        yield "`hosted.grader` and `task: prompts` (rows without answers) belong together: give both"


STAGE_RULES: tuple[Callable[[Recipe, Chosen], Iterator[str]], ...] = (
    _of_objectives,
    _of_parameters,
    _of_fits,
    _of_few_shot,
    _of_distillation,
    _of_quantization_aware,
    _of_hosted,
)


# --- rules for the whole recipe --------------------------------------------------------------------------------------


def _of_pictures(recipe: Recipe, stages: Sequence[Chosen]) -> Iterator[str]:
    if recipe.task != "image-classification":
        if any(chosen.training.augment for chosen in stages):
            yield "`training.augment` changes pictures: leave it out, or use `task: image-classification`"
        return
    if recipe.method not in PICTURE_METHODS:
        yield (
            f"`method: {recipe.method}` is for texts: pictures are learned from by the features of a frozen model "
            "(`method: features`), by its head or last layers (`transfer`), or by all of it (`full`)"
        )
    for chosen in stages:
        if chosen.kind not in (None, "none", "head", "layers", "full"):
            yield f"`parameters: {{kind: {chosen.kind}}}` is for texts: use `head`, `layers` or `full` for pictures"
        if chosen.objective not in (None, *HEADS["image-classification"]):
            yield f"the objective `{chosen.objective}` is for texts: use `classify` or `focal` for pictures"
    if recipe.quantize is not None:
        yield "models of pictures are not quantized here: leave `quantize` out"


def _of_domain(recipe: Recipe, stages: Sequence[Chosen]) -> Iterator[str]:
    if recipe.method == "domain":
        if not recipe.stages and not recipe.data.corpus:
            yield (
                "`method: domain` needs text of the domain: `data: {corpus: FOLDER}`, or `stages` of which the first "
                "has `objective: causal-lm` or `masked-lm` and data of its own"
            )
        return
    if any(baseline.kind == "without-domain" for baseline in recipe.evaluate.baselines):
        yield "the baseline `without-domain` leaves out the first stage of `method: domain`: use that method"
    if recipe.data.corpus:
        yield "`data.corpus` is read by `method: domain` alone: use it, or `task: language-modeling`"


def _of_students(recipe: Recipe, stages: Sequence[Chosen]) -> Iterator[str]:
    """A model that is cut, and what is compared with a teacher."""
    if recipe.student is not None and recipe.task == "image-classification":
        yield "`student` cuts models of text: leave it out for pictures"
    if recipe.method == "distillation" or any(chosen.stage.objective == "distill" for chosen in stages):
        return
    if recipe.objective == "distill":
        return
    if recipe.training.distillation.teacher is not None:
        yield "`distillation.teacher` is read by `objective: distill`: use it, or `method: distillation`"
    for baseline in recipe.evaluate.baselines:
        if baseline.kind in ("teacher", "without-teacher"):
            yield f"the baseline `{baseline.kind}` belongs to a teacher: use `method: distillation`"


def _of_sequences(recipe: Recipe, stages: Sequence[Chosen]) -> Iterator[str]:
    sequence = recipe.sequence
    if sequence.adapters != "chain":
        if any(chosen.kind != "lora" for chosen in stages):
            yield "`sequence.adapters` keeps one adapter a stage: use `parameters: {kind: lora}` for all"
        if sequence.replay or sequence.hold != "none":
            yield (
                "`sequence.adapters` begins each stage from the plain base, where nothing is forgotten that could be "
                "replayed or held: leave out `replay` and `hold`"
            )
    if sequence.adapters in MERGED:
        for chosen in stages:
            yield from _of_merged(chosen)
    for chosen in stages[:-1] if sequence.replay else []:
        if chosen.task in COMPARED and chosen.objective != "reward":
            yield (
                f"`sequence.replay` learns right answers again, and the stage `{chosen.stage.name}` "
                f"(`task: {chosen.task}`) has none: make it the last stage, or use `sequence: {{hold: l2}}`"
            )
    if sequence.hold != "none" and any(chosen.kind not in (None, "full", "layers") for chosen in stages):
        yield (
            "`sequence.hold` holds the weights of the model, which adapters and heads leave as they are: "
            "use `parameters: {kind: full}`, or `sequence: {replay: 0.1}`"
        )
    if recipe.method == "sequential" and len(recipe.stages) < 2:
        yield "`method: sequential` learns task after task: give two `stages` or more, each with its `data`"


def _of_merged(chosen: Chosen) -> Iterator[str]:
    """Adapters that are put together are the products of their matrices, and nothing besides."""
    lora = chosen.parameters
    if not isinstance(lora, LoRA):
        return
    beside = {
        "dora": lora.dora,
        "bias": lora.bias != "none",
        "modules_to_save": bool(lora.modules_to_save),
        "new_tokens": bool(lora.new_tokens),
    }
    for name, asked in beside.items():
        if asked:
            yield (
                f"`{name}` is more than the low-rank products that `sequence.adapters` merges: leave it out, or use "
                "`adapters: separate`"
            )


def _of_prompts(recipe: Recipe, stages: Sequence[Chosen]) -> Iterator[str]:
    if recipe.task != "prompts" or recipe.method in ("verifiable-reward", "rlhf", "hosted"):
        return
    if any(chosen.objective not in ("ppo", "grpo") for chosen in stages):
        yield "`task: prompts` has no answers to learn from: use `method: verifiable-reward`"


def _of_rewards(recipe: Recipe, stages: Sequence[Chosen]) -> Iterator[str]:
    """Stages that learn from rewards, and those that make a judge for them."""
    judges = {"reward"} if recipe.method == "rlhf" else set()
    for place, chosen in enumerate(stages):
        made_before = RLHF_STAGES[:2] if recipe.method == "rlhf" else [other.stage.name for other in stages[:place]]
        named = [source.stage for source in _rewards(recipe, chosen) if source.stage is not None]
        judges.update(named)
        yield from _of_rewarded(recipe, chosen, named, made_before)
    for chosen in stages:
        if chosen.stage.model is not None and chosen.stage.name not in judges:
            name = chosen.stage.name
            yield (
                f"the stage `{name}` has a `model` of its own, and no later stage is rewarded by what it makes: "
                f"name it there (`rewards: [{{kind: stage, stage: {name}}}]`), or leave out `model`"
            )
    if judges and (recipe.sequence.adapters != "chain" or recipe.sequence.replay or recipe.sequence.hold != "none"):
        yield "`sequence` is about tasks that one model learns in turn: leave it out beside a reward's stage"


def _rewards(recipe: Recipe, chosen: Chosen) -> Sequence[RewardSource]:
    """A stage's own rewards, else the recipe's."""
    training = chosen.stage.training
    return (training.rewards if training is not None else []) or recipe.training.rewards


def _of_rewarded(recipe: Recipe, chosen: Chosen, named: Sequence[str], made_before: Sequence[str]) -> Iterator[str]:
    """One stage: what it learns from, and the stages that its rewards name, of which some are made before it."""
    objective = chosen.objective or ("grpo" if recipe.method == "verifiable-reward" else None)
    if objective in ("ppo", "grpo") and chosen.task not in ANSWERED:
        yield (
            f"the objective `{objective}` learns from answers to prompts, which the task `{chosen.task}` has not: "
            "write the rows as prompts, and use `task: text-generation`"
        )
    for name in named:
        if name not in made_before and objective in ("ppo", "grpo", None):
            known = f"one of {', '.join(made_before)}" if made_before else "a run (`kind: run`)"
            yield f"there is no stage {name!r} before `{chosen.stage.name}` that could be its reward: use {known}"


def _of_judges(recipe: Recipe, stages: Sequence[Chosen]) -> Iterator[str]:
    """The second judge, of whom nothing was learned."""
    judge = recipe.evaluate.judge
    if judge is None:
        return
    if judge.kind == "stage":
        yield "`evaluate.judge` must be a judge that nothing was learned from: name another run"
    if recipe.method not in ("rlhf", "verifiable-reward") and not any(c.objective in ("ppo", "grpo") for c in stages):
        yield "`evaluate.judge` judges what learned from rewards: leave it out, or use `method: rlhf`"


def _of_rlhf(recipe: Recipe, stages: Sequence[Chosen]) -> Iterator[str]:
    if recipe.method != "rlhf":
        if recipe.data.preferences:
            yield "`data.preferences` is read by `method: rlhf` alone: use it, or `task: preference`"
        return
    names = [stage.name for stage in recipe.stages]
    first = {chosen.task for chosen in stages if chosen.stage.name == "sft"} or {recipe.task}
    if "prompts" in first:
        yield "the stage `sft` learns from answers, which `prompts` has not: give it `task` and `data`"
    elif recipe.task not in ANSWERED:
        yield f"`method: rlhf` teaches to write, and `{recipe.task}` does not: use `task: text-generation`"
    if len(set(names)) < len(names) or not set(names) <= set(RLHF_STAGES):
        yield f"`method: rlhf` has the stages {', '.join(RLHF_STAGES)}, each once, not {', '.join(names)}"
    if not recipe.data.preferences and not any(stage.name == "reward" and stage.data for stage in recipe.stages):
        yield "`method: rlhf` needs pairs of answers to learn what to reward: `data: {preferences: FILE}`"


def _of_features(recipe: Recipe, stages: Sequence[Chosen]) -> Iterator[str]:
    if recipe.method != "features":
        return
    if recipe.task not in CLASSICAL:
        yield f"`method: features` fits a classifier; `{recipe.task}` has no labels: use `method: peft`"
    if len(recipe.stages) > 1:  # one is what the resolved recipe of a run has
        yield "`method: features` is a single fit and has no stages: use it without `stages`"


RULES: tuple[Callable[[Recipe, Sequence[Chosen]], Iterator[str]], ...] = (
    _of_pictures,
    _of_domain,
    _of_students,
    _of_sequences,
    _of_prompts,
    _of_rewards,
    _of_judges,
    _of_rlhf,
    _of_features,
)
