"""How a model will answer a task, and what teaches it to: settled before any weight is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunesmith.errors import UsageError
from tunesmith.models.load import load_config, natural_form
from tunesmith.models.model import Form
from tunesmith.models.vision import refuse_blind
from tunesmith.recipe import HEADS, PICTURES, ObjectiveName, Recipe, Stage
from tunesmith.tasks import TASKS

_BY_HEAD = ("labels", "score", "spans")  # kinds of answers that even a model made to write gives by a head
_FORMS: dict[ObjectiveName, Form] = {
    "multi-label": "multi-label",
    "mse": "score",
    "huber": "score",
    "ordinal": "ordinal",
    "tag": "tag",
}


def form_of(recipe: Recipe, stage: Stage, folder: Path) -> tuple[Form, ObjectiveName]:
    """The form of the answer and the objective of a stage that begins from the model in ``folder``.

    Raises:
        UsageError: The model cannot do the task.
    """
    if recipe.task in PICTURES:
        refuse_blind(folder, recipe.model)
        return "classify", stage.objective or HEADS[recipe.task][0]
    return answer_form(recipe, stage, load_config(folder))


def answer_form(recipe: Recipe, stage: Stage, config: Any) -> tuple[Form, ObjectiveName]:
    """The form of the answer and the objective: from the stage, else from the kind of the model.

    Args:
        recipe: Its task and model are read.
        stage: Of the resolved recipe.
        config: The base model's configuration.

    Raises:
        UsageError: The model cannot do the task.
    """
    if stage.objective == "distill":  # the student answers as it would without a teacher
        form, _ = answer_form(recipe, stage.model_copy(update={"objective": None}), config)
        return form, "distill"
    natural = natural_form(config)
    answer = TASKS[recipe.task].answer
    if answer == "pair":
        return _of_pairs(recipe, stage, natural)
    if answer == "thumb":
        return _of_thumbs(recipe, natural)
    if answer == "likelihood":
        return _language_form(recipe, stage, natural)
    if stage.parameters is not None and stage.parameters.kind == "in-context":
        return _shown_form(recipe, natural)
    if answer in _BY_HEAD and stage.objective != "supervised" and natural != "seq2seq":
        objective = stage.objective or HEADS[recipe.task][0]
        return _FORMS.get(objective, "classify"), objective
    if answer in ("text", "open"):
        return _writing_form(recipe, stage, natural)
    return _head_or_words(recipe, stage, natural)


def _of_pairs(recipe: Recipe, stage: Stage, natural: Form) -> tuple[Form, ObjectiveName]:
    """Preferences teach a model to score answers, or one that writes to write the better ones."""
    objective = stage.objective or ("reward" if natural == "classify" else "dpo")
    if natural == "seq2seq":
        raise UsageError(
            f"{recipe.model} is an encoder-decoder model, which cannot learn from preferences here",
            where="model",
            fix="use a causal language model, or an encoder with `objective: reward`",
        )
    if objective == "reward":
        return "classify", "reward"
    if natural != "generate":
        raise UsageError(
            f"{recipe.model} is an encoder: it cannot write, so it cannot learn by `{objective}`",
            where="objective",
            fix="use `objective: reward`, or a causal language model",
        )
    return "generate", objective


def _of_thumbs(recipe: Recipe, natural: Form) -> tuple[Form, ObjectiveName]:
    """Thumbs teach a model that writes what to write."""
    if natural != "generate":
        raise UsageError(
            f"{recipe.model} is no causal language model, which learning from thumbs needs",
            where="model",
            fix="choose one: `tunesmith catalog list`; to score answers, use `task: text-classification`",
        )
    return "generate", "kto"


def _language_form(recipe: Recipe, stage: Stage, natural: Form) -> tuple[Form, ObjectiveName]:
    """Bare text is learned as the model was made: a decoder predicts what follows, an encoder what is masked."""
    if natural == "seq2seq":
        raise UsageError(
            f"{recipe.model} is an encoder-decoder model, which has no objective for bare text here",
            where="model",
            fix="choose a causal language model or an encoder: `tunesmith catalog list`",
        )
    form: Form = "generate" if natural == "generate" else "mask"
    objective: ObjectiveName = "causal-lm" if form == "generate" else "masked-lm"
    if stage.objective not in (None, objective):
        kind = "a decoder" if form == "generate" else "an encoder"
        raise UsageError(
            f"{recipe.model} is {kind}, which learns from bare text by `{objective}`, not by `{stage.objective}`",
            where="objective",
            fix=f"use `objective: {objective}`, or another model: `tunesmith catalog list`",
        )
    return form, objective


def _shown_form(recipe: Recipe, natural: Form) -> tuple[Form, ObjectiveName]:
    """Examples are shown in the prompt of a model that writes."""
    if natural != "generate":
        kind = "an encoder-decoder" if natural == "seq2seq" else "an encoder"
        raise UsageError(
            f"{recipe.model} is {kind}: it has no prompt to put examples into",
            where="parameters.kind",
            fix="choose a causal language model, or leave out `parameters`, so that this one is tuned",
        )
    return "generate", "supervised"


def _writing_form(recipe: Recipe, stage: Stage, natural: Form) -> tuple[Form, ObjectiveName]:
    """Texts come from any model that writes."""
    if natural == "classify":
        raise UsageError(
            f"{recipe.model} is an encoder: it cannot write text, which the task `{recipe.task}` wants",
            where="model",
            fix="choose a causal language model (`tunesmith catalog list`), or an encoder-decoder (T5, BART)",
        )
    return natural, stage.objective or "supervised"


def _head_or_words(recipe: Recipe, stage: Stage, natural: Form) -> tuple[Form, ObjectiveName]:
    """Labels and the like: an encoder gives them by a head, a model that writes only where a head is asked for."""
    needs_head = stage.parameters is not None and stage.parameters.kind in ("head", "none")
    if stage.objective == "contrastive":
        if natural != "classify":
            raise UsageError(
                f"{recipe.model} writes text: its vectors are not made for comparing texts",
                where="objective",
                fix="put the examples into the prompt (`parameters: in-context`), or take a sentence encoder",
            )
        return "classify", "contrastive"
    if stage.objective == "supervised" and natural == "classify":
        raise UsageError(
            f"{recipe.model} is an encoder: it cannot write the answer",
            where="objective",
            fix=f"use `objective: {HEADS[recipe.task][0]}`, or a causal language model",
        )
    if natural == "seq2seq" and (stage.objective in HEADS[recipe.task] or needs_head):
        raise UsageError(
            f"{recipe.model} is an encoder-decoder model: it writes the label, and gets no head",
            where="objective" if stage.objective else "parameters.kind",
            fix="use `objective: supervised` with `method: peft` or `full`, or an encoder",
        )
    by_head = stage.objective in HEADS[recipe.task] or natural == "classify" or needs_head
    if stage.training is not None and stage.training.class_weights is not None and not by_head:
        raise UsageError(
            "`class_weights` need a head, and a causal language model writes the label",
            where="training.class_weights",
            fix="use `objective: classify`",
        )
    return ("classify", stage.objective or "classify") if by_head else (natural, "supervised")
