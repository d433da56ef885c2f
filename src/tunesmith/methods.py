"""The field's named methods: each is a function that fills in what a recipe left open.

A method chooses; it never overrules. Whatever the recipe says itself stands.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, cast, get_args

from tunesmith.parameters.kinds import KINDS
from tunesmith.parameters.settings import SHORT_FORMS, with_kind
from tunesmith.recipe import (
    HEADS,
    Baseline,
    Data,
    Evaluate,
    Full,
    Generation,
    Head,
    Hosted,
    Layers,
    LoRA,
    NoParameters,
    ObjectiveName,
    Parameters,
    Recipe,
    Rollouts,
    Stage,
    Training,
    objective_of,
    task_of,
)


@dataclass(frozen=True)
class Method:
    """One row of ``tunesmith methods``."""

    name: str
    what: str
    when: str
    objective: str
    parameters: str
    choose: Callable[[Recipe], Parameters]
    stages: Callable[[Recipe], list[Stage]] = lambda recipe: recipe.stages or [Stage()]

    def as_dict(self) -> dict[str, str]:
        """The row without its function."""
        row = asdict(self)
        row.pop("choose")
        row.pop("stages")
        return row


def _all_or_adapter(recipe: Recipe) -> Parameters:
    return Full() if recipe.task in HEADS else LoRA()


def _corpus_then_task(recipe: Recipe) -> list[Stage]:
    """First the language of the corpus, by all parameters where the task's own are but a head; then the task."""
    if recipe.stages:
        return recipe.stages
    head_only = recipe.parameters is not None and recipe.parameters.kind == "head"
    corpus = Data(train=recipe.data.corpus, **_told(recipe))
    return [
        Stage(name="domain", task="language-modeling", data=corpus, parameters=Full() if head_only else None),
        Stage(name="task"),
    ]


def _contrast_then_head(recipe: Recipe) -> list[Stage]:
    """SetFit's two phases (arXiv 2209.11055), with its learning rate; a batch is one group of 16 texts."""
    if recipe.stages:
        return recipe.stages
    if recipe.parameters is not None and recipe.parameters.kind == "in-context":
        return [Stage()]
    own = {"epochs": 1.0, "learning_rate": 2e-5}
    if recipe.training.batch_tokens is None:
        own["batch_size"] = 1
    return [
        Stage(name="contrast", objective="contrastive", training=_unless_said(recipe, own)),
        Stage(name="head", parameters=NoParameters()),
    ]


def _show_judge_reinforce(recipe: Recipe) -> list[Stage]:
    """The three stages of InstructGPT (arXiv 2203.02155), each with what the recipe says of the stage of its name.

    A reward model learns for one pass: several overfit (appendix C.2 there). One with a base of its own, mostly an
    encoder or a small model, trains whole, as in `method: reward`.
    """
    given = {stage.name: stage for stage in recipe.stages}
    judge = given.get("reward")
    pairs = Data(train=recipe.data.preferences, **_told(recipe))
    whole = Full() if judge is not None and judge.model is not None and recipe.parameters is None else None
    once = _unless_said(recipe, {"epochs": 1.0})
    rewarded = _unless_said(recipe, {"epochs": 1.0, "rewards": [{"kind": "stage", "stage": "reward"}]})
    stages = [
        Stage(name="sft", objective="supervised"),
        Stage(name="reward", task="preference", data=pairs, objective="reward", parameters=whole, training=once),
        Stage(name="ppo", objective="ppo", training=rewarded),
    ]
    return [_over(stage, given[stage.name]) if stage.name in given else stage for stage in stages]


def _told(recipe: Recipe) -> dict[str, Any]:
    """What the recipe says of its data that holds for other files as well."""
    return recipe.data.model_dump(
        include={"encoding", "seed", "max_length", "read_rows", "duplicates", "drop_bad"}, exclude_unset=True
    )


def _unless_said(recipe: Recipe, own: dict[str, Any]) -> Training:
    """A method's settings for one of its stages, without those that the recipe states for all stages."""
    said = recipe.training.model_fields_set
    return Training.model_validate({key: value for key, value in own.items() if key not in said})


def _over(stage: Stage, given: Stage) -> Stage:
    """A stage as the method has it, with what the recipe says of it on top."""
    said = {name: value for name in given.model_fields_set if (value := getattr(given, name)) is not None}
    if stage.training is not None:
        said["training"] = _merged(stage.training, given.training)
    return stage.model_copy(update=said)


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            "supervised",
            "learn the answer that each example shows",
            "you have labelled examples and no other wish: classification trains all, generation an adapter",
            "classify or supervised",
            "full or lora",
            _all_or_adapter,
        ),
        Method(
            "instruction",
            "learn to follow instructions; the loss is on the answers only",
            "your data are prompts or conversations with good answers",
            "supervised",
            "lora",
            lambda recipe: LoRA(),
        ),
        Method(
            "self-supervised",
            "go on with pre-training: learn the language of a corpus, without labels",
            "you have much text of a domain and few labels; an encoder fills in masked words, a decoder writes on",
            "causal-lm or masked-lm",
            "full",
            lambda recipe: Full(),
        ),
        Method(
            "domain",
            "learn the language of a domain from bare text first, then the task",
            "labels are few but text of the same domain is plentiful; the report says what the first stage gave",
            "causal-lm or masked-lm, then classify or supervised",
            "full or lora",
            _all_or_adapter,
            _corpus_then_task,
        ),
        Method(
            "sequential",
            "learn one task after the other, and measure what is forgotten",
            "tasks come one by one; the report shows each of them after every stage, and remedies can be compared",
            "any, a stage",
            "full or lora",
            _all_or_adapter,
        ),
        Method(
            "full",
            "train every parameter",
            "the model is small or the data are many, and memory allows it (about 16 bytes a parameter)",
            "classify or supervised",
            "full",
            lambda recipe: Full(),
        ),
        Method(
            "transfer",
            "train the head, or the last layers, on top of frozen ones",
            "data are few, or the base already knows the domain: quick, and it cannot forget much",
            "classify or supervised",
            "head or layers",
            lambda recipe: Head() if recipe.task in HEADS else Layers(),
        ),
        Method(
            "peft",
            "train added parameters on a frozen base: LoRA, or one of its variants and kin by `parameters`",
            "the base is large, or many tasks shall share it: megabytes a task, near the quality of full training",
            "classify or supervised",
            "lora, or another: see `tunesmith methods --parameters`",
            lambda recipe: LoRA(),
        ),
        Method(
            "preference",
            "learn to write the better of two answers, straight from the pairs (DPO and its kin), or from thumbs (KTO)",
            "you have pairs of a better and a worse answer, or answers that were liked or not (`task: feedback`)",
            "dpo or kto",
            "lora",
            lambda recipe: LoRA(),
        ),
        Method(
            "verifiable-reward",
            "learn from answers of its own that a rule, a grader or a judge scores, measured against each other (GRPO)",
            "right answers can be told from wrong ones, but not shown token by token",
            "grpo",
            "lora",
            lambda recipe: LoRA(),
        ),
        Method(
            "distillation",
            "teach a smaller model what a larger one knows",
            "a good model is too slow or too large: the student is given, or cut from the teacher by `student`",
            "distill",
            "full, or lora for a given model that writes",
            lambda recipe: Full() if recipe.task in HEADS or recipe.student else LoRA(),
        ),
        Method(
            "reward",
            "learn to score answers from pairs: a reward model, or a judge",
            "you want to rank answers, or to train another model by reinforcement",
            "reward",
            "full or lora",
            lambda recipe: Full(),
        ),
        Method(
            "rlhf",
            "learn from demonstrations, then a judge from preferences, then by PPO to write what the judge likes",
            "you can show good answers and say which of two is better, and want more than either gives alone",
            "supervised, then reward, then ppo",
            "lora",
            lambda recipe: LoRA(),
            _show_judge_reinforce,
        ),
        Method(
            "few-shot",
            "tune an encoder on pairs of the few examples and fit a head (SetFit), or show them in the prompt",
            "there are 1 to 64 examples of each label: set `data.shots`, or use all you have",
            "contrastive, then logistic regression; or none (`parameters: in-context`)",
            "full, then none",
            lambda recipe: Full(),
            _contrast_then_head,
        ),
        Method(
            "hosted",
            "let a provider with the OpenAI fine-tuning API tune the model, then measure it like any other",
            "the model is to be had there alone, or there is no machine: `tunesmith hosted estimate` says the cost",
            "the provider's: supervised, dpo or reinforcement",
            "the provider's",
            lambda recipe: NoParameters(),
        ),
        Method(
            "features",
            "fit a classical classifier on the frozen model's features",
            "seconds count, data are few, or a baseline is wanted: nothing of the model changes",
            "logistic regression",
            "none",
            lambda recipe: NoParameters(),
        ),
    )
}


_METHOD_OF_KIND = {"none": "features", "in-context": "few-shot", "head": "transfer", "layers": "transfer"}
"""Kind of parameters -> the method that is known for it; of all other kinds that is ``peft``."""


def method_meant(name: str) -> str | None:
    """How to write what is no method but a kind of parameters (``lora``) or an objective (``dpo``); else ``None``."""
    if name in KINDS or name in SHORT_FORMS:
        method = _METHOD_OF_KIND.get(SHORT_FORMS.get(name, {}).get("kind", name), "peft")
        return f"`{name}` is a kind of parameters: write `method: {method}` and `parameters: {name}`"
    if name in get_args(ObjectiveName):
        known = [method for method in METHODS.values() if name in re.split(r"[ ,;]+", method.objective)]
        return f"`{name}` is an objective: write `{f'method: {known[0].name}' if known else f'objective: {name}'}`"
    return None


def with_kinds(tree: dict[str, Any]) -> dict[str, Any]:
    """Plain values of a recipe in which parameters without a kind have the one that they mean, where that is clear.

    What is wrong with the values is not said here.
    """
    method, task = tree.get("method", "supervised"), tree.get("task")
    if not isinstance(method, str) or method not in METHODS or not isinstance(task, str):
        return tree

    def chosen(for_task: object) -> str:
        known = Recipe.model_construct(task=cast(Any, for_task), model="", student=tree.get("student"))
        return METHODS[method].choose(known).kind

    tree = dict(tree)
    if "parameters" in tree:
        tree["parameters"] = with_kind(tree["parameters"], chosen(task))
    given = tree.get("parameters")
    said = given.get("kind") if isinstance(given, dict) else given
    stages = []
    for stage in tree["stages"] if isinstance(tree.get("stages"), list) else []:
        if isinstance(stage, dict) and "parameters" in stage:
            own = said if isinstance(said, str) else chosen(stage.get("task") or task)
            stage = {**stage, "parameters": with_kind(stage["parameters"], own)}
        stages.append(stage)
    return {**tree, "stages": stages} if stages else tree


_OBJECTIVES: dict[str, ObjectiveName] = {
    "preference": "dpo",
    "verifiable-reward": "grpo",
    "reward": "reward",
    "distillation": "distill",
}
"""What a method teaches where the task alone does not say."""


def _usual_objective(recipe: Recipe, stage: Stage) -> ObjectiveName | None:
    return "kto" if task_of(recipe, stage) == "feedback" else _OBJECTIVES.get(recipe.method)


def fill_in(recipe: Recipe) -> Recipe:
    """Spell out the stages of a recipe: its own words first, then the top of the recipe, then its method."""
    chosen = recipe.parameters or METHODS[recipe.method].choose(recipe)
    stages = [
        stage.model_copy(
            update={
                "task": stage.task or (task_of(recipe, stage) if task_of(recipe, stage) != recipe.task else None),
                "objective": objective_of(recipe, stage) or _usual_objective(recipe, stage),
                "parameters": stage.parameters or chosen,
                "training": _merged(recipe.training, stage.training),
            }
        )
        for stage in METHODS[recipe.method].stages(recipe)
    ]
    last = recipe.of_stage(stages[-1])  # the model is for what it learned last
    if (last.task, last.data) != (recipe.task, recipe.data):
        views = [recipe.of_stage(stage) for stage in stages]
        stages = [
            stage.model_copy(update={"task": view.task, "data": view.data})
            for stage, view in zip(stages, views, strict=True)
        ]
    evaluate = recipe.evaluate
    if recipe.method in _BASELINES and "baselines" not in evaluate.model_fields_set:
        baselines = _BASELINES[recipe.method](evaluate.baselines)
        evaluate = Evaluate.model_validate({**evaluate.model_dump(exclude_unset=True), "baselines": baselines})
    if recipe.method == "rlhf" and "generation" not in evaluate.model_fields_set:
        # Reward and divergence are means over what the policy draws, so they are measured on that.
        rollouts = stages[-1].training.rollouts if stages[-1].training is not None else Rollouts()
        drawn = Generation(max_new_tokens=rollouts.max_new_tokens, temperature=rollouts.temperature)
        evaluate = evaluate.model_copy(update={"generation": drawn})
    hosted = (recipe.hosted or Hosted()) if recipe.method == "hosted" else None
    chosen_now = {"stages": stages, "task": last.task, "data": last.data, "evaluate": evaluate, "hosted": hosted}
    return recipe.model_copy(update=chosen_now)


_BASELINES: dict[str, Callable[[list[Baseline]], list[Baseline]]] = {
    "domain": lambda usual: [*usual, Baseline(kind="without-domain")],
    "distillation": lambda usual: [
        *(baseline for baseline in usual if baseline.kind in ("majority", "base")),
        Baseline(kind="teacher"),
        Baseline(kind="without-teacher"),
    ],
}
"""What a method is compared with, where the recipe does not say."""


def _merged(shared: Training, own: Training | None) -> Training:
    """The shared settings, with those that a stage states itself on top."""
    if own is None:
        return shared
    return Training.model_validate(shared.model_dump(exclude_unset=True) | own.model_dump(exclude_unset=True))
