"""The axes of a stage beside each other: its task, its objective and its parameters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tunesmith.recipe import (
    CLASSICAL,
    HEADS,
    LANGUAGE_OBJECTIVES,
    PICTURES,
    WEIGHTED,
    NoParameters,
    Prompt,
    Recipe,
    TaskName,
)
from tunesmith.refusals.base import Chosen
from tunesmith.strict import Refusal

_TASKS_OF: dict[str, tuple[TaskName, ...]] = {
    "preference": ("preference", "feedback"),
    "reward": ("preference",),
    "self-supervised": ("language-modeling",),
}
_NEEDS = {"token-classification": "spans", "text-regression": "scores"}


def of_bare_text(recipe: Recipe, chosen: Chosen) -> Iterator[Refusal]:
    """Language objectives learn from bare text, and nothing else does."""
    task, objective = chosen.task, chosen.objective
    bare = objective in LANGUAGE_OBJECTIVES or (objective == "distill" and task == "language-modeling")
    if bare != (task == "language-modeling") and objective is not None:
        learn_text = "use `task: language-modeling`, or leave out `objective`"
        fix = learn_text if bare else "use `objective: causal-lm` or `masked-lm`, or the task that your data are for"
        yield Refusal(
            f"the objective `{objective}` does not belong to the task `{task}`: `causal-lm` and `masked-lm` learn "
            "from bare text, so they want `task: language-modeling`, and it wants one of them",
            fix=fix,
            key=chosen.at("objective"),
        )


def of_objectives(recipe: Recipe, chosen: Chosen) -> Iterator[Refusal]:
    """What is minimised, and what the task has to minimise it by."""
    task, objective, usual = chosen.task, chosen.objective, chosen.usual_objective
    if objective is not None and (objective == "kto") != (task == "feedback"):
        yield Refusal(
            f"the objective `{objective}` does not belong to the task `{task}`: `kto` learns from answers that "
            "were liked or not, so it wants `task: feedback`, and it wants `kto`",
            fix="use `task: feedback`" if objective == "kto" else "use `objective: kto`",
            key=chosen.at("objective"),
        )
    if objective in ("dpo", "reward") and task != "preference":
        yield Refusal(
            f"the objective `{objective}` learns from pairs of a better and a worse answer, which the task `{task}` "
            "has not",
            fix=f"use `task: preference`, or `objective: {usual}`",
            key=chosen.at("objective"),
        )
    teaches = next((name for name, own in HEADS.items() if objective in own), None)
    if teaches is not None and objective not in HEADS.get(task, ()):
        needs = _NEEDS.get(teaches, "labels")
        yield Refusal(
            f"the objective `{objective}` needs {needs}, which the task `{task}` has not",
            fix=f"use `objective: {usual}`, or `task: {teaches}`",
            key=chosen.at("objective"),
        )
    if chosen.training.class_weights is not None and objective not in (None, *WEIGHTED):
        yield Refusal(
            f"the objective `{objective}` knows no `class_weights`",
            fix=f"use `objective: {usual}`",
            key=chosen.at("training.class_weights"),
        )


def of_parameters(recipe: Recipe, chosen: Chosen) -> Iterator[Refusal]:
    """A head needs a task that has one."""
    task, kind = chosen.task, chosen.kind
    if kind == "head" and chosen.objective == "supervised":
        yield Refusal(
            "`parameters: {kind: head}` trains a classification head, which the objective `supervised` has not",
            fix=f"use `objective: {chosen.usual_objective}`, or `parameters: {{kind: layers, layers: last 2}}`",
            key=chosen.at("parameters.kind"),
        )
    if kind == "head" and task not in HEADS:
        yield Refusal(
            f"`parameters: {{kind: head}}` needs a task with a head; `{task}` has none",
            fix="use `kind: lora`, or `kind: layers`",
            key=chosen.at("parameters.kind"),
        )


def of_virtual_tokens(recipe: Recipe, chosen: Chosen) -> Iterator[Refusal]:
    """Tokens before the text are no part of the base, and not of its own places."""
    kind, key = chosen.kind, chosen.at("parameters.kind")
    if not isinstance(chosen.parameters, Prompt):
        return
    if chosen.number < chosen.of:
        yield Refusal(
            f"`kind: {kind}` puts virtual tokens before the text, which cannot become part of the next stage's base",
            fix="use `kind: lora` in this stage",
            key=key,
        )
    if chosen.objective == "masked-lm":
        yield Refusal(
            f"`kind: {kind}` puts virtual tokens before the text, and `masked-lm` looks for the hidden words at the "
            "text's own places",
            fix="use `kind: lora`",
            key=key,
        )
    if chosen.training.recompute == "on":
        yield Refusal(
            f"`kind: {kind}` puts virtual tokens into a cache that each layer adds to, so activations cannot be "
            "recomputed",
            fix="leave `training.recompute` at `auto`, or use `kind: lora`",
            key=chosen.at("training.recompute"),
        )
    if chosen.training.ppo.value_trunk == "separate":
        yield Refusal(
            f"`kind: {kind}` learns virtual tokens, which a separate value trunk would read and change too",
            fix="use `ppo: {value_trunk: shared}`, or `kind: lora`",
            key=chosen.at("training.ppo.value_trunk"),
        )


def of_fits(recipe: Recipe, chosen: Chosen) -> Iterator[Refusal]:
    """Stages without a loop: a classical fit on frozen features."""
    kind, task = chosen.kind, chosen.task
    if recipe.method == "hosted":
        return
    fit_before = kind == "none" and chosen.number < chosen.of  # the fit's head is where the next stage starts
    fit_after = kind == "none" and chosen.number > 1 and recipe.method == "few-shot"
    if kind is not None and not (fit_before or fit_after) and (kind == "none") != (recipe.method == "features"):
        yield Refusal(
            "`parameters: {kind: none}` and `method: features` belong together",
            fix="give both or neither",
            key=chosen.at("parameters.kind"),
        )
    yield from _of_heads(chosen)
    if kind == "none" and task not in CLASSICAL:
        yield Refusal(
            f"`parameters: {{kind: none}}` fits a classifier; `{task}` has no labels",
            fix="use `kind: lora`",
            key=chosen.at("parameters.kind"),
        )


def _of_heads(chosen: Chosen) -> Iterator[Refusal]:
    """What is fitted, and on which layer."""
    fit, task = chosen.parameters, chosen.task
    if not isinstance(fit, NoParameters):
        return
    if fit.head != "logistic" and task not in ("text-classification", "image-classification"):
        yield Refusal(
            f"`head: {fit.head}` gives one label a text, and `{task}` wants something else",
            fix="leave out `head`",
            key=chosen.at("parameters.head"),
        )
    if fit.head in ("knn", "boosting", "best") and chosen.number < chosen.of:
        yield Refusal(
            f"`head: {fit.head}` may be no linear layer, which the next stage needs",
            fix="use `head: svm`",
            key=chosen.at("parameters.head"),
        )
    if fit.layer is not None and task in PICTURES:
        yield Refusal("`layer` is for models of text", fix="leave out `layer`", key=chosen.at("parameters.layer"))


def of_few_shot(recipe: Recipe, chosen: Chosen) -> Iterator[Refusal]:
    """Examples of each label to contrast, or examples to show in the prompt."""
    task, objective, kind = chosen.task, chosen.objective, chosen.kind
    contrastive = objective == "contrastive" or (recipe.method == "few-shot" and kind != "in-context")
    if contrastive and task not in ("text-classification", "image-classification"):  # of pictures another rule speaks
        yield Refusal(
            f"contrastive learning needs labels, which the task `{task}` has not",
            fix="use `parameters: in-context`",
            key=chosen.at("objective") if objective == "contrastive" else "method",
        )
    if objective == "contrastive" and kind == "head":
        yield Refusal(
            "the objective `contrastive` trains the encoder and no head",
            fix="use `parameters: full` or `lora`",
            key=chosen.at("parameters.kind"),
        )
    if kind == "in-context":
        yield from _of_shown_examples(chosen)


def _of_shown_examples(chosen: Chosen) -> Iterator[Refusal]:
    """In-context learning changes nothing, and asks in words."""
    task, key = chosen.task, chosen.at("parameters.kind")
    if chosen.of > 1:
        yield Refusal(
            "`parameters: in-context` trains nothing that a stage could go on from",
            fix="use it without `stages`",
            key=key,
        )
    if task in ("preference", "feedback", "prompts", "language-modeling"):
        yield Refusal(
            f"`parameters: in-context` shows questions and answers, which `{task}` has not",
            fix="use `kind: lora`",
            key=key,
        )
    elif chosen.objective not in (None, "supervised"):
        yield Refusal(
            f"`parameters: in-context` asks a model that writes, which `{chosen.objective}` does not teach",
            fix="leave out `objective`, or choose other `parameters`",
            key=key,
        )


def of_methods(recipe: Recipe, stages: Sequence[Chosen]) -> Iterator[Refusal]:
    """Methods that say what the data are."""
    tasks = _TASKS_OF.get(recipe.method, ())
    if tasks and recipe.task not in tasks:
        wanted = " or ".join(f"`task: {name}`" for name in tasks)
        yield Refusal(
            f"`method: {recipe.method}` does not belong to the task `{recipe.task}`: it wants {wanted}",
            fix=f"use {wanted}, or another method (`tunesmith methods`)",
            key="method",
        )


def of_features(recipe: Recipe, stages: Sequence[Chosen]) -> Iterator[Refusal]:
    """A method that is one fit."""
    if recipe.method != "features":
        return
    if recipe.task not in CLASSICAL:
        yield Refusal(
            f"`method: features` fits a classifier; `{recipe.task}` has no labels",
            fix="use `method: peft`",
            key="method",
        )
    if len(recipe.stages) > 1:  # one is what the resolved recipe of a run has
        yield Refusal(
            "`method: features` is a single fit and has no stages", fix="use it without `stages`", key="stages"
        )
