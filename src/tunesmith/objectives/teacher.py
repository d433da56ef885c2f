"""The model that a student learns from: a tuned run, or any model that does the student's task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tunesmith import catalog, lineage, runs
from tunesmith.data.rows import Row
from tunesmith.errors import RecipeError
from tunesmith.events import Listener
from tunesmith.models import attention, inference, packing
from tunesmith.models.forms import answer_form
from tunesmith.models.load import load_config, load_model, load_tokenizer, natural_form, trained_labels
from tunesmith.models.model import Model, decoder_of
from tunesmith.models.saving import load_artefact, read_notes
from tunesmith.prediction.answering import answer, encode_rows
from tunesmith.prediction.setting import Setting
from tunesmith.recipe import Generation, Recipe, Stage, Training
from tunesmith.refusals import WRITTEN
from tunesmith.tasks import TASKS

PLACE = "training.distillation.teacher"


def name_of(recipe: Recipe, training: Training) -> str:
    """What the recipe calls the teacher: the model that the student is cut from, unless it says otherwise."""
    return training.distillation.teacher or recipe.model


def folder_of(name: str) -> Path:
    """The folder with the teacher's files; of a run the one with its adapter, if it has one.

    Raises:
        NotFoundError: There is no such run, or no such model.
    """
    run = _run(name)
    return catalog.model_folder(name) if run is None else run / "model"


@dataclass(frozen=True)
class Teacher:
    """A teacher: its frozen model, and the system prompt that it was tuned with."""

    model: Model
    system_prompt: str | None = None


def load_teacher(name: str, student: Model) -> Teacher:
    """The teacher, ready to be asked what the student is asked.

    Raises:
        RecipeError: It cannot do the student's task.
    """
    system_prompt = None
    if _run(name) is not None:
        teacher, notes = load_artefact(folder_of(name), device=student.device)
        system_prompt = notes.system_prompt
    else:
        folder = folder_of(name)
        writes = natural_form(load_config(folder)) != "classify" and student.form not in ("tag",)
        teacher = load_model(
            folder,
            name=name,
            form=None if writes else student.form,
            labels=None if writes else student.labels,
            dtype=student.dtype,
            device=student.device,
            max_length=student.max_length,
        )
        if not writes:
            _refuse_new_head(teacher, folder, student)
    refuse_unfit(teacher, student)
    teacher.network.requires_grad_(False)
    if not teacher.virtual_tokens and teacher.form != "seq2seq":
        teacher.packable_length = packing.longest_row(decoder_of(teacher.transformer()), attention.NAME)
    return Teacher(teacher, system_prompt)


def load_writer(name: str, dtype: torch.dtype, device: torch.device) -> Teacher:
    """A teacher whose answers are learned: it may be of any size and read with any tokenizer.

    Raises:
        RecipeError: It cannot write.
    """
    if _run(name) is not None:
        model, notes = load_artefact(folder_of(name), device=device)
        found = Teacher(model, notes.system_prompt)
    else:
        found = Teacher(load_model(folder_of(name), name=name, dtype=dtype, device=device))
    if found.model.form not in ("generate", "seq2seq"):
        raise RecipeError(
            f"the teacher {name} does not write texts",
            where=PLACE,
            fix="name a causal language model or an encoder-decoder, or a run that tuned one",
        )
    return found


def refuse_unfit(teacher: Model, student: Model) -> None:
    """Find out before the first update that the two do not answer the same question.

    Raises:
        RecipeError: What differs, and what to do.
    """
    if student.labels and teacher.labels and teacher.labels != student.labels:
        missing = sorted(set(student.labels) ^ set(teacher.labels))
        raise RecipeError(
            f"the teacher knows other labels than the data have: {', '.join(missing[:5])}",
            where=PLACE,
            fix="name the run of a teacher that was tuned on these labels",
        )
    same = teacher.form == student.form or (student.form == "classify" and teacher.form in ("generate", "seq2seq"))
    if not same:
        raise RecipeError(
            f"the teacher {teacher.name} answers in another way (form {teacher.form}) than the student {student.name} "
            f"(form {student.form})",
            where=PLACE,
            fix="name the run of a teacher of the same task",
        )


def refuse_unusable(recipe: Recipe, stage: Stage, base: Path) -> None:
    """Find out, before any weight is loaded, that there is no such teacher, or that it cannot teach this student.

    Scores of labels can be learned from a teacher that reads in its own way; distributions of tokens, and states of
    tokens, cannot.

    Args:
        recipe: As the stage sees it.
        stage: One that distils.
        base: Folder of the student.

    Raises:
        RecipeError: Says which choice needs the same tokens, and what does not.
        NotFoundError: There is no such teacher.
    """
    assert stage.training is not None, "the recipe is resolved"
    own = stage.training.distillation
    if own.is_server:
        return
    name = name_of(recipe, stage.training)
    theirs = folder_of(name)
    form, _ = answer_form(recipe, stage, load_config(base))
    if not own.needs_scores:
        return
    by_text = "learn from what the teacher writes (`distillation: {answers: teacher}`)"
    if form in ("seq2seq", "mask"):
        raise RecipeError(
            f"{recipe.model} is an {'encoder-decoder' if form == 'seq2seq' else 'encoder that fills in words'}, which "
            "cannot learn its teacher's distributions here",
            where="model",
            fix=by_text if form == "seq2seq" else "distil it for a task with labels, or take a causal language model",
        )
    if form == "classify" and not (own.hidden_weight or own.attention_weight):
        return
    if not same_tokens(load_tokenizer(theirs), load_tokenizer(base)):
        raise RecipeError(
            f"the teacher {name} and the student {recipe.model} have different tokenizers, so what one says of a "
            "token means nothing to the other",
            where=PLACE,
            fix=by_text
            if recipe.task in WRITTEN
            else "take a student with the teacher's tokenizer, or cut it from the teacher (`student: {layers: 6}`)",
        )


def same_tokens(first: Any, second: Any) -> bool:
    """Whether each number stands for the same token in both tokenizers."""
    return bool(first.get_vocab() == second.get_vocab())


def label_scores(teacher: Teacher, rows: Sequence[Row], labels: list[str], tell: Listener) -> np.ndarray:
    """What the teacher thinks of each label for each text: scores (N, C), whose softmax are its probabilities.

    The teacher reads the texts with its own tokenizer. One that writes is asked how likely it finds each label.
    """
    task = TASKS["text-classification"]
    if teacher.model.form == "classify":
        examples = encode_rows(teacher.model, rows, task)
        return inference.head_scores(teacher.model, examples, what="asking the teacher", on_event=tell)
    setting = Setting(task, labels, teacher.system_prompt, Generation(), on_event=tell)
    found = answer(teacher.model, rows, setting).probabilities
    assert found is not None
    return np.log(found.clip(min=np.finfo(np.float64).tiny))


def _run(name: str) -> Path | None:
    """The folder of a finished run of this name, or by this name below ``runs/``."""
    found = lineage.run_folder(name) or lineage.run_folder(str(runs.DEFAULT_ROOT / name))
    if found is not None:
        read_notes(found / "model")  # raises where the run has no model yet
    return found


def _refuse_new_head(teacher: Model, folder: Path, student: Model) -> None:
    from tunesmith.models.heads import head_labels

    known = head_labels(folder, student.form) or trained_labels(load_config(folder))
    if known != student.labels:
        raise RecipeError(
            f"{teacher.name} has no head for these labels, so it knows nothing to teach",
            where=PLACE,
            fix="tune it first, and name that run: `teacher: runs/NAME`",
        )
