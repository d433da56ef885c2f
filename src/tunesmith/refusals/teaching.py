"""Students of a teacher, and models that learn to be rounded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tunesmith.recipe import PICTURES, Distillation, LoRA, Recipe
from tunesmith.refusals.base import TAUGHT, WRITTEN, Chosen
from tunesmith.strict import Refusal


def of_distillation(recipe: Recipe, chosen: Chosen) -> Iterator[Refusal]:
    """What a teacher can teach, and how."""
    task, objective, training = chosen.task, chosen.objective, chosen.training
    own = training.distillation if "distillation" in training.model_fields_set else recipe.training.distillation
    distils = objective == "distill" or (objective is None and recipe.method == "distillation")
    if not distils or chosen.kind in ("none", "in-context"):  # a fit of the head, say, before the stage that distils
        return
    if task not in TAUGHT:
        yield Refusal(
            f"`objective: distill` cannot teach the task `{task}`",
            fix=f"use one that it can: {', '.join(TAUGHT)}",
            key=chosen.at("task"),
        )
    if own.teacher is None and recipe.student is None:
        yield Refusal(
            "there is no teacher",
            fix="name a run or a model (`training: {distillation: {teacher: runs/NAME}}`), or cut the student from "
            "`model` (`student: {layers: 6}`), which is then the teacher",
            key=chosen.at("training.distillation.teacher"),
        )
    yield from _of_what_is_taught(chosen, own)
    if (training.class_weights or recipe.training.class_weights) is not None:
        yield Refusal(
            "`objective: distill` knows no `class_weights`",
            fix="leave them out",
            key=chosen.at("training.class_weights"),
        )
    if own.written.keep == "reward" and not (training.rewards or recipe.training.rewards):
        yield Refusal(
            "`distillation.written.keep: reward` needs something that scores the answers",
            fix="add `training: {rewards: [...]}`",
            key=chosen.at("training.distillation.written.keep"),
        )
    if recipe.sequence.replay:
        yield Refusal(
            "`sequence.replay` does not replay what a teacher taught",
            fix="leave it out, or use `hold: l2`",
            key="sequence.replay",
        )


def _of_what_is_taught(chosen: Chosen, own: Distillation) -> Iterator[Refusal]:
    """Answers, labels of texts without them, and what stands inside the network."""
    task = chosen.task
    if own.answers != "data" and task not in WRITTEN:
        yield Refusal(
            f"`distillation.answers: {own.answers}` needs a task whose answers are texts, and `{task}` has none",
            fix="leave it out, and the student learns what the teacher thinks of the data's own",
            key=chosen.at("training.distillation.answers"),
        )
    if own.unlabelled and (task != "text-classification" or own.share_of_labels == 1):
        yield Refusal(
            "`distillation.unlabelled` is text for which the teacher says how likely each label is",
            fix="use it with `task: text-classification` and a `label_weight` below 1",
            key=chosen.at("training.distillation.unlabelled"),
        )
    if (own.hidden_weight or own.attention_weight) and task != "text-classification":
        name = "hidden_weight" if own.hidden_weight else "attention_weight"
        yield Refusal(
            "`distillation.hidden_weight` and `attention_weight` are for encoders that classify texts",
            fix=f"leave them out; for `{task}` the teacher's distributions are learned",
            key=chosen.at(f"training.distillation.{name}"),
        )


def of_quantization_aware(recipe: Recipe, chosen: Chosen) -> Iterator[Refusal]:
    """Training with the rounding of a number format."""
    kind, key = chosen.training.quantization_aware, chosen.at("training.quantization_aware")
    if kind is None:
        return
    yield from _of_rounded_weights(chosen, key)
    if chosen.objective in ("ppo", "grpo", "contrastive"):
        yield Refusal(
            f"`training.quantization_aware` is not made for the objective `{chosen.objective}`",
            fix=f"use it in a stage of `{chosen.usual_objective}`",
            key=key,
        )
    if recipe.sequence.adapters != "chain":
        yield Refusal(
            "`training.quantization_aware` is lost where adapters are kept apart or merged",
            fix="leave it out, or use `sequence: {adapters: chain}`",
            key=key,
        )
    if recipe.quantize is not None and chosen.number == chosen.of and recipe.quantize.to != kind:
        yield Refusal(
            f"the model is trained for the rounding of `{kind}` and then quantized to `{recipe.quantize.to}`",
            fix="give the same to `training.quantization_aware` and `quantize`",
            key=key,
        )


def _of_rounded_weights(chosen: Chosen, key: str) -> Iterator[Refusal]:
    """What is rounded must be what trains."""
    lora = chosen.parameters
    if chosen.kind not in (None, "full", "layers", "lora"):
        yield Refusal(
            f"`training.quantization_aware` lets weights learn to be rounded, and with `kind: {chosen.kind}` those "
            "that are rounded do not train",
            fix="use `kind: full`, `layers` or `lora`, or leave it out",
            key=key,
        )
    if not isinstance(lora, LoRA):
        return
    if lora.quantization != "none":
        yield Refusal(
            f"the base is kept in {lora.quantization} already, and `training.quantization_aware` rounds what the "
            "adapter is added to",
            fix="use `parameters.quantization: none`",
            key=chosen.at("parameters.quantization"),
        )
    if lora.dora or lora.dropout:
        yield Refusal(
            "`training.quantization_aware` rounds the base with the adapter added to it, which `dora` and `dropout` of "
            "the adapter do not allow",
            fix="leave them out",
            key=chosen.at("parameters.dora" if lora.dora else "parameters.dropout"),
        )


def of_students(recipe: Recipe, stages: Sequence[Chosen]) -> Iterator[Refusal]:
    """A model that is cut, and what is compared with a teacher."""
    if recipe.student is not None and recipe.task in PICTURES:
        yield Refusal("`student` cuts models of text", fix="leave it out for pictures", key="student")
    if recipe.method == "distillation" or any(chosen.stage.objective == "distill" for chosen in stages):
        return
    if recipe.objective == "distill":
        return
    if recipe.training.distillation.teacher is not None:
        yield Refusal(
            "`distillation.teacher` is read by `objective: distill`",
            fix="use it, or `method: distillation`",
            key="training.distillation.teacher",
        )
    for baseline in recipe.evaluate.baselines:
        if baseline.kind in ("teacher", "without-teacher"):
            yield Refusal(
                f"the baseline `{baseline.kind}` belongs to a teacher",
                fix="use `method: distillation`",
                key="evaluate.baselines",
            )
