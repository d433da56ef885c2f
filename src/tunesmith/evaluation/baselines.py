"""What the tuned model is compared with, on the same test rows."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tunesmith.data import thoughts
from tunesmith.data.rows import Row
from tunesmith.data.shots import shots_per_label
from tunesmith.errors import DataError
from tunesmith.evaluation import extractive, pairs
from tunesmith.evaluation.comparison import System
from tunesmith.evaluation.metrics import evaluated, measure, truth
from tunesmith.events import Notice, Phase
from tunesmith.models.heads import pooling_of
from tunesmith.models.load import load_config, load_model, natural_form
from tunesmith.models.model import Form, Model
from tunesmith.models.vision import load_vision
from tunesmith.prediction import answering
from tunesmith.prediction.in_context import Shots, nearest_shots, random_shots
from tunesmith.prediction.likelihood import score_documents, unigram
from tunesmith.prediction.outputs import Outputs
from tunesmith.prediction.setting import Setting
from tunesmith.prediction.span_answers import by_dictionary
from tunesmith.prediction.thresholds import tuned_on
from tunesmith.recipe import PICTURES, Baseline, Evaluate
from tunesmith.tasks.base import Answer
from tunesmith.tasks.summarization import Summarization

if TYPE_CHECKING:
    from tunesmith.data.prepare import PreparedData

DEFAULT_SHOTS = 5
LOOKED_AT = 1000
"""Training rows in which thoughts are looked for."""

Found = tuple[str, str, str, Outputs, int]
"""A baseline that was measured: its name, its title, what it is, its outputs and its parameters."""

Untuned = tuple[str, Path]
"""An untuned model: its name and its folder."""


@dataclass(frozen=True)
class Conditions:
    """What all baselines of a run have in common.

    Attributes:
        wanted: From the recipe.
        data: Training rows for shots, shares and features; validation rows for choices.
        rows: The test rows.
        setting: What all systems share.
        settings: How they are measured.
        dtype: For loading models.
        device: For loading models.
    """

    wanted: Sequence[Baseline]
    data: PreparedData
    rows: Sequence[Row]
    setting: Setting
    settings: Evaluate
    dtype: torch.dtype
    device: torch.device

    @property
    def kinds(self) -> set[str]:
        """Which kinds are wanted."""
        return {baseline.kind for baseline in self.wanted}

    @property
    def shots(self) -> list[int]:
        """Examples in the prompt, or of each label: as many counts as are wanted."""
        return shot_counts(self.wanted)


def shot_counts(wanted: Sequence[Baseline]) -> list[int]:
    """The counts of examples that are to be measured, each once."""
    return list(dict.fromkeys(b.shots or DEFAULT_SHOTS for b in wanted if b.kind == "few-shot"))


def run_baselines(given: Conditions, base: Untuned, larger: Sequence[Untuned]) -> Iterator[System]:
    """Measure each baseline that fits the task.

    Args:
        given: What they have in common.
        base: The untuned base model.
        larger: Larger ones; their systems' names begin with theirs.
    """
    given = replace(given, setting=replace(given.setting, may_think=_answers_have_thoughts(given)))
    setting, settings = given.setting, given.settings
    right = truth(setting.task, [setting.task.reference(row) for row in given.rows], setting.labels, settings)
    for name, title, what, outputs, parameters in _measured(base, larger, given):
        metrics = measure(outputs, right, settings)
        setting.on_event(evaluated(name, outputs, metrics))
        yield System(name, title, what, outputs, metrics, parameters=parameters, is_ceiling=name == "oracle")


def _answers_have_thoughts(given: Conditions) -> bool:
    """Whether untuned models may think: training answers do, or are not known, or what they are worth is learned."""
    known = [given.setting.task.target_text(row) for row in itertools.islice(given.data.train, LOOKED_AT)]
    return given.setting.judges is not None or not any(known) or any(thoughts.END in text for text in known)


def _measured(base: Untuned, larger: Sequence[Untuned], given: Conditions) -> Iterator[Found]:
    answer = given.setting.task.answer
    if answer in ("pair", "thumb"):
        yield from (_pairs if answer == "pair" else _thumbs)(base, given)
        return
    of_model = _likelihoods if answer == "likelihood" else _answers
    if answer != "likelihood":
        yield from _without_model(given)
    yield from of_model(*base, given)
    asked = [Baseline(kind="base"), *(Baseline(kind="few-shot", shots=k) for k in given.shots or [DEFAULT_SHOTS])]
    for name, folder in larger:
        for key, title, what, outputs, parameters in of_model(name, folder, replace(given, wanted=asked)):
            yield f"{name}-{key}", title, what, outputs, parameters


def _pairs(base: Untuned, given: Conditions) -> Iterator[Found]:
    yield from pairs.baselines(given.kinds, _load(*base, given), given.data.train, given.rows, given.setting)


def _thumbs(base: Untuned, given: Conditions) -> Iterator[Found]:
    untuned = _load(*base, given)
    if untuned is not None and "base" in given.kinds:
        outputs = answering.answer(untuned, given.rows, given.setting)
        what = "how much likelier the untuned model finds liked answers"
        yield "base", f"{base[0]}, untuned", what, outputs, untuned.total_parameters


def _without_model(given: Conditions) -> Iterator[Found]:
    """What needs no model: sentences of the document, the commonest answer, a dictionary."""
    task, rows, train = given.setting.task, given.rows, given.data.train
    if isinstance(task, Summarization):
        counts = dict.fromkeys(b.sentences or 1 for b in given.wanted if b.kind == "lead")
        for number, count in enumerate(counts):
            what = f"the first {f'{count} sentences' if count > 1 else 'sentence'} of the document"
            name = f"lead-{count}" if number else "lead"
            yield name, f"Lead-{count}", what, extractive.lead(rows, task, count), 0
    if isinstance(task, Summarization) and "oracle" in given.kinds:
        what = "a ceiling, not a rival: the document's own sentences, chosen with the right answer in sight"
        yield "oracle", "Best extract", what, extractive.oracle(rows, task, "rouge1"), 0
    if "majority" in given.kinds and task.answer in _ALWAYS:
        yield "majority", *_ALWAYS[task.answer], answering.majority(train, rows, given.setting), 0
    if "majority" in given.kinds and task.answer == "spans":
        what = "gives each word the tag that it most often has in the training data"
        yield "dictionary", "Dictionary", what, by_dictionary(train, rows), 0


def _answers(name: str, folder: Path, given: Conditions) -> Iterator[Found]:
    """An untuned model: asked without examples, with some, and its frozen features."""
    tell, answer = given.setting.on_event, given.setting.task.answer
    if given.setting.task.name in PICTURES:
        if "features" in given.kinds:
            yield _picture_features(name, folder, given)
        return
    if not given.kinds & {"base", "few-shot", "features"}:
        return
    tell(Phase(step="evaluate", message=f"baselines of {name}"))
    writes = natural_form(load_config(folder)) != "classify"
    model = None
    if answer in ("spans", "labels", "score") and not writes:
        tell(Notice(level="info", message=f"{name} cannot write: no baseline of it without training"))
    elif (model := _load(name, folder, given)) is None:
        tell(Notice(level="info", message=f"{name} has no sentence vectors: no zero-shot baseline of it"))
    else:
        for key, title, what, outputs in (_prompted if writes else _embedded)(model, given):
            yield key, title, what, outputs, model.total_parameters
    if "features" in given.kinds and answer in _ALWAYS:
        yield _features(name, folder, model, given)


def _likelihoods(name: str, folder: Path, given: Conditions) -> Iterator[Found]:
    """How likely untuned models find documents: one that knows but the frequencies of tokens, and the base model."""
    form: Form = "generate" if natural_form(load_config(folder)) == "generate" else "mask"
    model = load_model(folder, name=name, form=form, dtype=given.dtype, device=given.device)
    if "majority" in given.kinds:
        what = "guesses by how frequent each token is in the training documents, whatever stands around it"
        yield "majority", "Token frequencies", what, unigram(model, given.data.train, given.rows, given.setting.task), 0
    if "base" not in given.kinds:
        return
    if form == "mask" and model.head_names:
        message = f"{name} has no head that predicts words, so there is nothing to measure before tuning"
        given.setting.on_event(Notice(level="info", message=message))
        return
    given.setting.on_event(Phase(step="evaluate", message=f"{name} before tuning"))
    outputs = score_documents(model, given.rows, given.setting.task, given.setting.on_event)
    yield "base", f"{name}, untuned", "the model before tuning, on the same documents", outputs, model.total_parameters


_ALWAYS: dict[Answer, tuple[str, str]] = {
    "label": ("Majority class", "always gives the commonest label of the training data"),
    "labels": ("Commonest labels", "always gives the labels that most training rows have, at least the commonest one"),
    "score": ("Mean score", "always gives the mean of the training scores"),
}
"""Title and description of the system that answers all rows alike."""


def _features(name: str, folder: Path, model: Model | None, given: Conditions) -> Found:
    """A classical fit on the frozen model's vectors; thresholds of several labels are tuned like the tuned model's."""
    data, rows, setting = given.data, given.rows, given.setting
    frozen = model or load_model(
        folder,
        name=name,
        form="classify",
        labels=setting.labels,
        dtype=given.dtype,
        device=given.device,
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


def _picture_features(name: str, folder: Path, given: Conditions) -> Found:
    """The same for pictures."""
    data, setting = given.data, given.setting
    network = load_vision(folder, name=name, labels=setting.labels or [], device=given.device)
    frozen = Model(network, None, "classify", name, folder, 0, setting.labels)
    answering.fit_features(frozen, data.train, data.validation, setting).copy_to(network)
    what = "logistic regression on the untuned model's vectors, fitted on the same training pictures"
    outputs = answering.answer(frozen, given.rows, setting)
    return "features", f"{name}, frozen features", what, outputs, frozen.total_parameters


Asked = Iterator[tuple[str, str, str, Outputs]]


def _load(name: str, folder: Path, given: Conditions) -> Model | None:
    """The untuned model in its own form; ``None`` for an encoder that was never taught to compare texts."""
    natural = natural_form(load_config(folder))
    if natural != "classify":
        return load_model(folder, name=name, form=natural, dtype=given.dtype, device=given.device)
    if pooling_of(folder) is None:
        return None
    labels = given.setting.labels
    return load_model(folder, name=name, form="classify", labels=labels, dtype=given.dtype, device=given.device)


def _prompted(model: Model, given: Conditions) -> Asked:
    """A generating model, asked in words."""
    kinds, data, rows, setting = given.kinds, given.data, given.rows, given.setting
    how = "the likeliest label by the model's own likelihood" if setting.task.answer == "label" else "greedy answers"
    if "base" in kinds:
        what = f"the untuned model, asked without examples; {how}"
        yield "base", f"{model.name}, 0 shots", what, answering.answer(model, rows, setting)
    if "few-shot" in kinds and model.form == "seq2seq":
        message = f"{model.name} is an encoder-decoder, which learns nothing from examples in the prompt: no few-shot"
        setting.on_event(Notice(level="info", message=message))
    elif len(data.train) and setting.task.answer != "open":  # else there is nothing to show
        for k in given.shots:
            yield from _shown(model, given, k, f"the untuned model with {{}} in the prompt; {how}")


def _shown(model: Model, given: Conditions, k: int, what: str) -> Asked:
    """The same with examples in the prompt: the same ones for all rows, and those most like each."""
    data, rows, setting = given.data, given.rows, given.setting
    fixed = random_shots(data.train, k, setting.task, setting.labels, setting.seed)
    near = f"the {k} training examples most like each row (TF-IDF cosine)"
    ways: dict[str, tuple[str, Shots]] = {
        "random": (f"the same {len(fixed)} examples", lambda row: fixed),
        "nearest": (near, nearest_shots(data.train, rows, k, setting.task)),
    }
    for way, (which, shots) in ways.items():
        name = f"few-shot-{k}-{way}"
        try:
            outputs = answering.answer(model, rows, setting, shots)
        except DataError as error:  # a training row that was left out may not be shown either
            message = f"no baseline {name}: an example cannot be shown ({error.what})"
            setting.on_event(Notice(level="warning", message=message, where=error.where, fix=error.fix))
            continue
        yield name, f"{model.name}, {k} {way} shots", what.format(which), outputs


def _embedded(model: Model, given: Conditions) -> Asked:
    """A sentence encoder, asked by distance."""
    data, rows, setting = given.data, given.rows, given.setting
    if "base" in given.kinds:
        what = "the untuned encoder: the label whose name lies nearest to the text"
        yield "base", f"{model.name}, 0 shots", what, answering.by_label_similarity(model, rows, setting)
    for k in given.shots if len(data.train) else ():
        shown = shots_per_label(data.train, k, setting.task, setting.seed)
        what = f"the untuned encoder: the label whose {k} examples' mean lies nearest to the text"
        outputs = answering.by_nearest_centroid(model, rows, shown, setting)
        yield f"few-shot-{k}", f"{model.name}, {k} shots a label", what, outputs
