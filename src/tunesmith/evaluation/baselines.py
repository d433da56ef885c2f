"""What the tuned model is compared with, on the same test rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
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
from tunesmith.models.precision import default_device
from tunesmith.models.vision import load_vision
from tunesmith.recipe import Baseline, Evaluate
from tunesmith.tasks.base import Answer
from tunesmith.tasks.summarization import Summarization

if TYPE_CHECKING:
    from tunesmith.data.prepare import PreparedData

DEFAULT_SHOTS = 5


def run_baselines(
    wanted: Sequence[Baseline],
    base: tuple[str, Path],
    larger: dict[str, Path],
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
        base: Name and folder of the untuned base model.
        larger: Name -> folder of the larger models.
        data: Training rows for shots, shares and features; validation rows for choices.
        rows: The test rows.
        setting: What all systems share.
        settings: Intervals.
        dtype: For loading models.
        device: For loading models.
    """
    shots = next((b.shots for b in wanted if b.kind == "few-shot" and b.shots), DEFAULT_SHOTS)
    kinds: set[str] = {baseline.kind for baseline in wanted}
    if setting.task.answer == "open":
        kinds.discard("few-shot")  # there are no answers to show
    right = truth(setting.task, [setting.task.reference(row) for row in rows], setting.labels, settings)

    def system(name: str, title: str, what: str, outputs: Outputs, parameters: int) -> System:
        metrics = measure(outputs, right, settings)
        setting.on_event(evaluated(name, outputs, metrics))
        return System(name, title, what, outputs, metrics, parameters=parameters)

    if setting.task.answer == "pair":
        untuned = _load(base[0], base[1], setting, dtype, device)
        for found in pairs.baselines(kinds, untuned, data.train, rows, setting):
            yield system(*found)
        return
    if setting.task.answer == "thumb":
        untuned = _load(base[0], base[1], setting, dtype, device)
        if untuned is not None and "base" in kinds:
            outputs = answering.answer(untuned, rows, setting)
            what = "how much likelier the untuned model finds liked answers"
            yield system("base", f"{base[0]}, untuned", what, outputs, untuned.total_parameters)
        return
    if setting.task.answer == "likelihood":
        for name, folder, prefix in _models(base, larger):
            wanted_here = kinds if not prefix else {"base"}
            for key, title, what, outputs, size in _likelihoods(name, folder, wanted_here, data, rows, setting, dtype):
                yield system(prefix + key, title, what, outputs, size)
        return
    if isinstance(setting.task, Summarization):
        count = next((b.sentences for b in wanted if b.kind == "lead" and b.sentences), 1)
        if "lead" in kinds:
            what = f"the first {f'{count} sentences' if count > 1 else 'sentence'} of the document"
            yield system("lead", f"Lead-{count}", what, extractive.lead(rows, setting.task, count), 0)
        if "oracle" in kinds:
            what = "a ceiling, not a rival: the document's own sentences, chosen with the right answer in sight"
            ceiling = system("oracle", "Best extract", what, extractive.oracle(rows, setting.task, "rouge1"), 0)
            yield replace(ceiling, is_ceiling=True)
    if "majority" in kinds and setting.task.answer in _ALWAYS:
        yield system(
            "majority",
            *_ALWAYS[setting.task.answer],
            answering.majority(data.train, rows, setting),
            0,
        )
    if "majority" in kinds and setting.task.answer == "spans":
        yield system(
            "dictionary",
            "Dictionary",
            "gives each word the tag that it most often has in the training data",
            by_dictionary(data.train, rows),
            0,
        )
    if setting.task.name == "image-classification":
        if "features" in kinds:
            yield system(*_picture_features(*base, data, rows, setting, device))
        return
    for name, folder, prefix in _models(base, larger):
        own = kinds if not prefix else {"base", "few-shot"}
        if not own & {"base", "few-shot", "features"}:
            continue
        setting.on_event(Phase(step="evaluate", message=f"baselines of {name}"))
        writes = natural_form(load_config(folder)) != "classify"
        fits = "features" in own and setting.task.answer in _ALWAYS and not prefix
        if setting.task.answer in ("spans", "labels", "score") and not writes:
            setting.on_event(Notice(level="info", message=f"{name} cannot write: no baseline of it without training"))
            if fits:
                yield system(*_features(name, folder, None, data, rows, setting, dtype, device))
            continue
        asked = _prompted if writes else _embedded
        model = _load(name, folder, setting, dtype, device)
        if model is None:
            setting.on_event(
                Notice(level="info", message=f"{name} has no sentence vectors: no zero-shot baseline of it")
            )
        else:
            for key, title, what, outputs in asked(model, own, shots, data, rows, setting):
                yield system(prefix + key, title, what, outputs, model.total_parameters)
        if fits:
            yield system(*_features(name, folder, model, data, rows, setting, dtype, device))
        del model


def _models(base: tuple[str, Path], larger: dict[str, Path]) -> list[tuple[str, Path, str]]:
    """Name and folder of each untuned model, and what the names of its systems begin with."""
    return [(*base, "")] + [(name, folder, f"{name}-") for name, folder in larger.items()]


def _likelihoods(
    name: str,
    folder: Path,
    kinds: set[str],
    data: PreparedData,
    rows: Sequence[Row],
    setting: Setting,
    dtype: torch.dtype,
) -> Iterator[tuple[str, str, str, Outputs, int]]:
    """How likely untuned models find documents: one that knows but the frequencies of tokens, and the base model."""
    form: Form = "generate" if natural_form(load_config(folder)) == "generate" else "mask"
    model = load_model(folder, name=name, form=form, dtype=dtype, device=default_device())
    if "majority" in kinds:
        what = "guesses by how frequent each token is in the training documents, whatever stands around it"
        yield "majority", "Token frequencies", what, unigram(model, data.train, rows, setting.task), 0
    if "base" not in kinds:
        return
    if form == "mask" and model.head_names:
        message = f"{name} has no head that predicts words, so there is nothing to measure before tuning"
        setting.on_event(Notice(level="info", message=message))
        return
    setting.on_event(Phase(step="evaluate", message=f"{name} before tuning"))
    outputs = score_documents(model, rows, setting.task, setting.on_event)
    yield "base", f"{name}, untuned", "the model before tuning, on the same documents", outputs, model.total_parameters


_ALWAYS: dict[Answer, tuple[str, str]] = {
    "label": ("Majority class", "always gives the commonest label of the training data"),
    "labels": ("Commonest labels", "always gives the labels that most training rows have, at least the commonest one"),
    "score": ("Mean score", "always gives the mean of the training scores"),
}
"""Title and description of the system that answers all rows alike."""


def _features(
    name: str,
    folder: Path,
    model: Model | None,
    data: PreparedData,
    rows: Sequence[Row],
    setting: Setting,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[str, str, str, Outputs, int]:
    """A classical fit on the frozen model's vectors; thresholds of several labels are tuned like the tuned model's."""
    frozen = model or load_model(
        folder,
        name=name,
        form="classify",
        labels=setting.labels,
        dtype=dtype,
        device=device,
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


def _picture_features(
    name: str, folder: Path, data: PreparedData, rows: Sequence[Row], setting: Setting, device: torch.device
) -> tuple[str, str, str, Outputs, int]:
    """The same for pictures."""
    network = load_vision(folder, name=name, labels=setting.labels or [], device=device)
    frozen = Model(network, None, "classify", name, folder, 0, setting.labels)
    answering.fit_features(frozen, data.train, data.validation, setting).copy_to(network)
    what = "logistic regression on the untuned model's vectors, fitted on the same training pictures"
    return (
        "features",
        f"{name}, frozen features",
        what,
        answering.answer(frozen, rows, setting),
        frozen.total_parameters,
    )


Asked = Iterator[tuple[str, str, str, Outputs]]


def _load(name: str, folder: Path, setting: Setting, dtype: torch.dtype, device: torch.device) -> Model | None:
    """The untuned model in its own form; ``None`` for an encoder that was never taught to compare texts."""
    natural = natural_form(load_config(folder))
    if natural != "classify":
        return load_model(folder, name=name, form=natural, dtype=dtype, device=device)
    if pooling_of(folder) is None:
        return None
    return load_model(folder, name=name, form="classify", labels=setting.labels, dtype=dtype, device=device)


def _prompted(
    model: Model, kinds: set[str], k: int, data: PreparedData, rows: Sequence[Row], setting: Setting
) -> Asked:
    """A generating model, asked in words."""
    how = "the likeliest label by the model's own likelihood" if setting.task.answer == "label" else "greedy answers"
    if "base" in kinds:
        what = f"the untuned model, asked without examples; {how}"
        yield "base", f"{model.name}, 0 shots", what, answering.answer(model, rows, setting)
    if "few-shot" in kinds and model.form == "seq2seq":
        message = f"{model.name} is an encoder-decoder, which learns nothing from examples in the prompt: no few-shot"
        setting.on_event(Notice(level="info", message=message))
    elif "few-shot" in kinds and len(data.train):
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


def _embedded(
    model: Model, kinds: set[str], k: int, data: PreparedData, rows: Sequence[Row], setting: Setting
) -> Asked:
    """A sentence encoder, asked by distance."""
    if "base" in kinds:
        what = "the untuned encoder: the label whose name lies nearest to the text"
        yield "base", f"{model.name}, 0 shots", what, answering.by_label_similarity(model, rows, setting)
    if "few-shot" in kinds and len(data.train):
        shown = shots_per_label(data.train, k, setting.task, setting.seed)
        what = f"the untuned encoder: the label whose {k} examples' mean lies nearest to the text"
        outputs = answering.by_nearest_centroid(model, rows, shown, setting)
        yield f"few-shot-{k}", f"{model.name}, {k} shots a label", what, outputs
