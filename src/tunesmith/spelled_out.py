"""A recipe with every default, as ``recipe show`` prints it.

What a run alone can fill in stays ``null``, with a comment that says what decides it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import yaml

from tunesmith import catalog, disk, lineage
from tunesmith.errors import TunesmithError
from tunesmith.recipe import HEADS, PICTURES, ObjectiveName, Recipe, Stage
from tunesmith.recipe_file import line_numbers
from tunesmith.runs import Run
from tunesmith.training.defaults import BATCH_SIZE, LEAST_BATCH, LEAST_UPDATES, MICRO_TOKENS, learning_rate

if TYPE_CHECKING:
    from tunesmith.models.model import Form

Keys = tuple[str, ...]
"""Path of a key in the recipe."""
UNTRAINED = ("none", "in-context")
"""Kinds of parameters of which none is updated."""


@dataclass(frozen=True)
class SpelledOut:
    """A recipe without open choices, as far as they can be made before the run.

    Attributes:
        recipe: Resolved; stages whose model is on this machine have their learning rate.
        decided_by: Path of each key that is still ``null`` because a run fills it in -> what decides it.
    """

    recipe: Recipe
    decided_by: dict[Keys, str]

    def to_yaml(self) -> str:
        """The recipe with all its keys, and what decides the open ones as comments."""
        text = self.recipe.to_yaml(nulls=True)
        lines, numbers = text.split("\n"), line_numbers(yaml.compose(text, Loader=yaml.SafeLoader))
        for keys, what in self.decided_by.items():
            lines[numbers[keys] - 1] += f"  # {what}"
        return "\n".join(lines)


@dataclass(frozen=True)
class _Answer:
    """How a stage's model will answer and what teaches it to; or why nobody knows yet."""

    form: Form | None = None
    objective: ObjectiveName | None = None
    unknown: str = ""


def spelled_out(recipe: Recipe) -> SpelledOut:
    """Fill in what the method decides, and what the model decides where its configuration can be read here."""
    recipe = recipe.resolved()
    if recipe.method == "hosted":
        return SpelledOut(recipe, {})
    decided_by = {keys: "see `stages`" for keys in _open_at_the_top(recipe)}
    stages = []
    for number, stage in enumerate(recipe.stages):
        answer = _answer(recipe, stage)
        filled = _with_rate(stage, answer)
        stages.append(filled)
        decided_by |= {("stages", str(number), *keys): what for keys, what in _open(filled, answer)}
    return SpelledOut(recipe.model_copy(update={"stages": stages}), decided_by)


def _open_at_the_top(recipe: Recipe) -> Iterator[Keys]:
    """Keys that the stages spell out."""
    for name in ("objective", "parameters"):
        if getattr(recipe, name) is None:
            yield (name,)
    for name in ("learning_rate", "batch_size", "micro_tokens"):
        if getattr(recipe.training, name) is None:
            yield "training", name


def _answer(recipe: Recipe, stage: Stage) -> _Answer:
    view = recipe.of_stage(stage)
    if view.task in PICTURES:
        return _Answer("classify", stage.objective or HEADS[view.task][0])
    try:
        base = _base_of(view.model)
        folder = catalog.model_here(base)
        if folder is None:
            return _Answer(unknown=_why_unread(base))
        from tunesmith.models.forms import answer_form
        from tunesmith.models.load import load_config

        return _Answer(*answer_form(view, stage, load_config(folder)))
    except TunesmithError as error:  # the run will say it too
        return _Answer(unknown=error.what.splitlines()[0])


def _base_of(name: str) -> str:
    """The model whose configuration a model has: for a run that which it began from, so that nothing is merged."""
    run = lineage.run_folder(name)
    return name if run is None else _base_of(Run(run).recipe.model)


def _why_unread(name: str) -> str:
    """Why a model's configuration cannot be read before the run."""
    path = disk.path_of(name)
    if path.suffix == ".gguf" and path.is_file():
        return f"{name} is converted when the run first loads it"
    return f"{name} is not on this machine"


def _with_rate(stage: Stage, answer: _Answer) -> Stage:
    training, parameters = stage.training, stage.parameters
    assert training is not None and parameters is not None, "the recipe is resolved"
    if training.learning_rate is not None or answer.form is None or parameters.kind in UNTRAINED:
        return stage
    rate = learning_rate(parameters.kind, answer.form, answer.objective)
    return stage.model_copy(update={"training": training.model_copy(update={"learning_rate": rate})})


def _open(stage: Stage, answer: _Answer) -> Iterator[tuple[Keys, str]]:
    """What of a stage a run fills in, and by what."""
    training, parameters = stage.training, stage.parameters
    assert training is not None and parameters is not None, "the recipe is resolved"
    trains = parameters.kind not in UNTRAINED
    if stage.objective is None and trains:
        yield ("objective",), f"by the task and the model: {answer.objective or answer.unknown}"
    if training.learning_rate is None:
        yield ("training", "learning_rate"), _rates(parameters.kind, stage.objective, answer) if trains else "not used"
    if training.batch_size is None and training.batch_tokens is None:
        yield ("training", "batch_size"), _batch_size(answer) if trains else "not used"
    if training.micro_tokens is None:
        tokens = ", ".join(f"{count} on a {device}" for device, count in MICRO_TOKENS.items())
        yield ("training", "micro_tokens"), tokens


def _rates(kind: str, objective: ObjectiveName | None, answer: _Answer) -> str:
    of_form: dict[str, Form] = {
        "with a head": "classify",
        "for a decoder": "generate",
        "for an encoder-decoder": "seq2seq",
    }
    rates = ", ".join(f"{learning_rate(kind, form, objective):g} {what}" for what, form in of_form.items())
    return f"by the model: {rates}; {answer.unknown}"


def _batch_size(answer: _Answer) -> str:
    either = f"{BATCH_SIZE['classify']} with a head, {BATCH_SIZE['generate']} in writing"
    most = BATCH_SIZE[answer.form] if answer.form else either
    return f"by the training rows: one in {LEAST_UPDATES} of them, at least {LEAST_BATCH}, at most {most}"
