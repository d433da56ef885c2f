"""What the tuned model is compared with, on the same test rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tunesmith.data.rows import Row
from tunesmith.data.shots import shots_per_label
from tunesmith.evaluation import answering, extractive, pairs
from tunesmith.evaluation.answering import Setting
from tunesmith.evaluation.comparison import System
from tunesmith.evaluation.in_context import nearest_shots, random_shots
from tunesmith.evaluation.likelihood import score_documents, unigram
from tunesmith.evaluation.metrics import evaluated, measure, truth
from tunesmith.evaluation.outputs import Outputs
from tunesmith.evaluation.span_answers import by_dictionary
from tunesmith.evaluation.thresholds import tuned_on
from tunesmith.events import Notice, Phase
from tunesmith.models.heads import pooling_of
from tunesmith.models.load import load_config, load_model, natural_form
from tunesmith.models.model import Form, Model
from tunesmith.models.vision import load_vision
from tunesmith.recipe import Baseline, Evaluate
from tunesmith.tasks.base import Answer
from tunesmith.tasks.summarization import Summarization

if TYPE_CHECKING:
    from tunesmith.data.prepare import PreparedData

DEFAULT_SHOTS = 5

Found = tuple[str, str, str, Outputs, int]
"""A baseline that was measured: its name, its title, what it is, its outputs and its parameters."""

Untuned = tuple[str, Path]
"""An untuned model: its name and its folder."""


@dataclass(frozen=True)
class Field:
    """What all baselines of a run have in common.

    Attributes:
        wanted: From the recipe.
        kinds: Which kinds are among them, of those that fit the task.
        data: Training rows for shots, shares and features; validation rows for choices.
        rows: The test rows.
        setting: What all systems share.
        dtype: For loading models.
        device: For loading models.
    """

    wanted: Sequence[Baseline]
    kinds: set[str]
    data: PreparedData
    rows: Sequence[Row]
    setting: Setting
    dtype: torch.dtype
    device: torch.device

    @property
    def shots(self) -> int:
        """Examples in the prompt, or of each label."""
        return next((b.shots for b in self.wanted if b.kind == "few-shot" and b.shots), DEFAULT_SHOTS)


def run_baselines(
    wanted: Sequence[Baseline],
    base: Untuned,
    larger: Sequence[Untuned],
    data: PreparedData,
    rows: Sequence[Row],
    setting: Setting,
    settings: Evaluate,
    dtype: torch.dtype,
    device: torch.device,
) -> Iterator[System]:
    """Measure each baseline that fits the task.

    Args:
        wanted: From the recipe.
        base: The untuned base model.
        larger: Larger ones; their systems' names begin with theirs.
        data: Training rows for shots, shares and features; validation rows for choices.
        rows: The test rows.
        setting: What all systems share.
        settings: Intervals.
        dtype: For loading models.
        device: For loading models.
    """
    field = Field(wanted, {baseline.kind for baseline in wanted}, data, rows, setting, dtype, device)
    right = truth(setting.task, [setting.task.reference(row) for row in rows], setting.labels, settings)
    for name, title, what, outputs, parameters in _measured(base, larger, field):
        metrics = measure(outputs, right, settings)
        setting.on_event(evaluated(name, outputs, metrics))
        yield System(name, title, what, outputs, metrics, parameters=parameters, is_ceiling=name == "oracle")


def _measured(base: Untuned, larger: Sequence[Untuned], field: Field) -> Iterator[Found]:
    answer = field.setting.task.answer
    if answer in ("pair", "thumb"):
        yield from (_pairs if answer == "pair" else _thumbs)(base, field)
        return
    of_model = _likelihoods if answer == "likelihood" else _answers
    if answer != "likelihood":
        yield from _without_model(field)
    yield from of_model(*base, field)
    asked = replace(field, kinds={"base", "few-shot"})
    for name, folder in larger:
        for key, title, what, outputs, parameters in of_model(name, folder, asked):
            yield f"{name}-{key}", title, what, outputs, parameters


def _pairs(base: Untuned, field: Field) -> Iterator[Found]:
    yield from pairs.baselines(field.kinds, _load(*base, field), field.data.train, field.rows, field.setting)


def _thumbs(base: Untuned, field: Field) -> Iterator[Found]:
    untuned = _load(*base, field)
    if untuned is not None and "base" in field.kinds:
        outputs = answering.answer(untuned, field.rows, field.setting)
        what = "how much likelier the untuned model finds liked answers"
        yield "base", f"{base[0]}, untuned", what, outputs, untuned.total_parameters


def _without_model(field: Field) -> Iterator[Found]:
    """What needs no model: sentences of the document, the commonest answer, a dictionary."""
    task, rows, train = field.setting.task, field.rows, field.data.train
    if isinstance(task, Summarization) and "lead" in field.kinds:
        count = next((b.sentences for b in field.wanted if b.kind == "lead" and b.sentences), 1)
        what = f"the first {f'{count} sentences' if count > 1 else 'sentence'} of the document"
        yield "lead", f"Lead-{count}", what, extractive.lead(rows, task, count), 0
    if isinstance(task, Summarization) and "oracle" in field.kinds:
        what = "a ceiling, not a rival: the document's own sentences, chosen with the right answer in sight"
        yield "oracle", "Best extract", what, extractive.oracle(rows, task, "rouge1"), 0
    if "majority" in field.kinds and task.answer in _ALWAYS:
        yield "majority", *_ALWAYS[task.answer], answering.majority(train, rows, field.setting), 0
    if "majority" in field.kinds and task.answer == "spans":
        what = "gives each word the tag that it most often has in the training data"
        yield "dictionary", "Dictionary", what, by_dictionary(train, rows), 0


def _answers(name: str, folder: Path, field: Field) -> Iterator[Found]:
    """An untuned model: asked without examples, with some, and its frozen features."""
    tell, answer = field.setting.on_event, field.setting.task.answer
    if field.setting.task.name == "image-classification":
        if "features" in field.kinds:
            yield _picture_features(name, folder, field)
        return
    if not field.kinds & {"base", "few-shot", "features"}:
        return
    tell(Phase(step="evaluate", message=f"baselines of {name}"))
    writes = natural_form(load_config(folder)) != "classify"
    model = None
    if answer in ("spans", "labels", "score") and not writes:
        tell(Notice(level="info", message=f"{name} cannot write: no baseline of it without training"))
    elif (model := _load(name, folder, field)) is None:
        tell(Notice(level="info", message=f"{name} has no sentence vectors: no zero-shot baseline of it"))
    else:
        for key, title, what, outputs in (_prompted if writes else _embedded)(model, field):
            yield key, title, what, outputs, model.total_parameters
    if "features" in field.kinds and answer in _ALWAYS:
        yield _features(name, folder, model, field)


def _likelihoods(name: str, folder: Path, field: Field) -> Iterator[Found]:
    """How likely untuned models find documents: one that knows but the frequencies of tokens, and the base model."""
    form: Form = "generate" if natural_form(load_config(folder)) == "generate" else "mask"
    model = load_model(folder, name=name, form=form, dtype=field.dtype, device=field.device)
    if "majority" in field.kinds:
        what = "guesses by how frequent each token is in the training documents, whatever stands around it"
        yield "majority", "Token frequencies", what, unigram(model, field.data.train, field.rows, field.setting.task), 0
    if "base" not in field.kinds:
        return
    if form == "mask" and model.head_names:
        message = f"{name} has no head that predicts words, so there is nothing to measure before tuning"
        field.setting.on_event(Notice(level="info", message=message))
        return
    field.setting.on_event(Phase(step="evaluate", message=f"{name} before tuning"))
    outputs = score_documents(model, field.rows, field.setting.task, field.setting.on_event)
    yield "base", f"{name}, untuned", "the model before tuning, on the same documents", outputs, model.total_parameters


_ALWAYS: dict[Answer, tuple[str, str]] = {
    "label": ("Majority class", "always gives the commonest label of the training data"),
    "labels": ("Commonest labels", "always gives the labels that most training rows have, at least the commonest one"),
    "score": ("Mean score", "always gives the mean of the training scores"),
}
"""Title and description of the system that answers all rows alike."""


def _features(name: str, folder: Path, model: Model | None, field: Field) -> Found:
    """A classical fit on the frozen model's vectors; thresholds of several labels are tuned like the tuned model's."""
    data, rows, setting = field.data, field.rows, field.setting
    frozen = model or load_model(
        folder,
        name=name,
        form="classify",
        labels=setting.labels,
        dtype=field.dtype,
        device=field.device,
        pooling=pooling_of(folder) or "mean",
    )
    head = answering.fit_features(frozen, data.train, data.validation, setting)
    outputs = answering.by_features(head, frozen, rows, setting)
    if setting.task.answer == "labels" and len(data.validation):
        chosen_on = answering.by_features(head, frozen, data.validation, setting)
        outputs = replace(outputs, thresholds=tuned_on(chosen_on, data.validation, setting))
    how = "ridge" if setting.task.answer == "score" else "logistic"
    what = f"{how} regression on the untuned model's vectors, fitted on the same training rows"
    return "features", f"{name}, frozen features", what, outputs, frozen.total_parameters


def _picture_features(name: str, folder: Path, field: Field) -> Found:
    """The same for pictures."""
    data, setting = field.data, field.setting
    network = load_vision(folder, name=name, labels=setting.labels or [], device=field.device)
    frozen = Model(network, None, "classify", name, folder, 0, setting.labels)
    answering.fit_features(frozen, data.train, data.validation, setting).copy_to(network)
    what = "logistic regression on the untuned model's vectors, fitted on the same training pictures"
    outputs = answering.answer(frozen, field.rows, setting)
    return "features", f"{name}, frozen features", what, outputs, frozen.total_parameters


Asked = Iterator[tuple[str, str, str, Outputs]]


def _load(name: str, folder: Path, field: Field) -> Model | None:
    """The untuned model in its own form; ``None`` for an encoder that was never taught to compare texts."""
    natural = natural_form(load_config(folder))
    if natural != "classify":
        return load_model(folder, name=name, form=natural, dtype=field.dtype, device=field.device)
    if pooling_of(folder) is None:
        return None
    labels = field.setting.labels
    return load_model(folder, name=name, form="classify", labels=labels, dtype=field.dtype, device=field.device)


def _prompted(model: Model, field: Field) -> Asked:
    """A generating model, asked in words."""
    kinds, k, data, rows, setting = field.kinds, field.shots, field.data, field.rows, field.setting
    how = "the likeliest label by the model's own likelihood" if setting.task.answer == "label" else "greedy answers"
    if "base" in kinds:
        what = f"the untuned model, asked without examples; {how}"
        yield "base", f"{model.name}, 0 shots", what, answering.answer(model, rows, setting)
    if "few-shot" in kinds and model.form == "seq2seq":
        message = f"{model.name} is an encoder-decoder, which learns nothing from examples in the prompt: no few-shot"
        setting.on_event(Notice(level="info", message=message))
    elif "few-shot" in kinds and len(data.train) and setting.task.answer != "open":  # else there is nothing to show
        fixed = random_shots(data.train, k, setting.task, setting.labels, setting.seed)
        what = f"the untuned model with {{}} in the prompt; {how}"
        yield (
            f"few-shot-{k}-random",
            f"{model.name}, {k} random shots",
            what.format(f"the same {len(fixed)} examples"),
            answering.answer(model, rows, setting, lambda row: fixed),
        )
        yield (
            f"few-shot-{k}-nearest",
            f"{model.name}, {k} nearest shots",
            what.format(f"the {k} training examples most like each row (TF-IDF cosine)"),
            answering.answer(model, rows, setting, nearest_shots(data.train, rows, k, setting.task)),
        )


def _embedded(model: Model, field: Field) -> Asked:
    """A sentence encoder, asked by distance."""
    kinds, k, data, rows, setting = field.kinds, field.shots, field.data, field.rows, field.setting
    if "base" in kinds:
        what = "the untuned encoder: the label whose name lies nearest to the text"
        yield "base", f"{model.name}, 0 shots", what, answering.by_label_similarity(model, rows, setting)
    if "few-shot" in kinds and len(data.train):
        shown = shots_per_label(data.train, k, setting.task, setting.seed)
        what = f"the untuned encoder: the label whose {k} examples' mean lies nearest to the text"
        outputs = answering.by_nearest_centroid(model, rows, shown, setting)
        yield f"few-shot-{k}", f"{model.name}, {k} shots a label", what, outputs
