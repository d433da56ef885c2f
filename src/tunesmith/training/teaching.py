"""What a teacher adds to the data of a stage: answers that it writes, and texts for which it says what they are."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from tunesmith import disk, rewards
from tunesmith.data.prepare import PreparedData, prepare
from tunesmith.data.rows import Row, content_key
from tunesmith.errors import DataError
from tunesmith.events import Listener, Notice, Phase, Progress
from tunesmith.models.cutting import fingerprint
from tunesmith.objectives import server_teacher
from tunesmith.objectives.distill import UNLABELLED
from tunesmith.objectives.teacher import folder_of, name_of
from tunesmith.prediction.answering import answer
from tunesmith.prediction.setting import Setting
from tunesmith.recipe import Data, Generation, Recipe, Stage, TeacherAnswers, Training
from tunesmith.rewards.rules import last_number
from tunesmith.tasks import TASKS
from tunesmith.tasks.base import Task
from tunesmith.tasks.summarization import Summarization

ROWS_AT_ONCE = 64
"""Prompts answered between two writes to the disk."""
SAMPLING = 0.8
"""Temperature at which several answers to a prompt are drawn, unless the recipe says otherwise."""

Write = Callable[[Sequence[Row], int], list[str]]
"""From rows and a seed to an answer to each."""


def taught(data: PreparedData, recipe: Recipe, stage: Stage, place: Path, tell: Listener) -> PreparedData:
    """The data of a stage with what its teacher adds, and the teacher as part of their identity; as they are without.

    Args:
        data: As the recipe has them.
        recipe: As the stage sees it.
        stage: Its objective and ``training.distillation`` are read.
        place: The stage's folder, in which answers are kept: a resumed run does not ask again.
        tell: Told what is asked.
    """
    trains = stage.parameters is not None and stage.parameters.kind not in ("none", "in-context")
    if stage.objective != "distill" or not trains:
        return data
    assert stage.training is not None
    own = stage.training.distillation
    if own.unlabelled:
        data = dataclasses.replace(data, train=[*data.train, *_unlabelled(recipe, own.unlabelled, data, tell)])
    if own.answers == "teacher":
        rows = _answered(recipe, stage.training, data.train, place / "teacher_answers.jsonl", tell)
        data = dataclasses.replace(data, train=rows)
    added = own.unlabelled or own.answers == "teacher"
    known = [data.fingerprint, _teacher(recipe, stage.training), [row.key for row in data.train] if added else []]
    return dataclasses.replace(data, fingerprint=content_key(known))


# --- texts without labels -----------------------------------------------------------------


def _unlabelled(recipe: Recipe, files: list[str], data: PreparedData, tell: Listener) -> list[Row]:
    """Bare texts, without those that stand in the data already: what is measured on must not be learned from."""
    named = {"text": recipe.data.columns["text"]} if "text" in recipe.data.columns else {}
    settings = Data(train=files, validation=0.0, test=0.0, drop_bad=True, columns=named, encoding=recipe.data.encoding)
    view = Recipe(task="language-modeling", model=recipe.model, data=settings)
    known = {str(row.fields["text"]) for part in (data.train, data.validation, data.test) for row in part}
    found = list(prepare(view, on_event=tell).train)
    rows = [Row({**row.fields, UNLABELLED: True}, row.origin) for row in found if row.fields["text"] not in known]
    message = f"{len(rows):,} texts without labels; {len(found) - len(rows):,} more stand in the data already"
    tell(Notice(level="info", message=message))
    return rows


# --- answers that the teacher writes ------------------------------------------------------


def _answered(recipe: Recipe, training: Training, rows: Sequence[Row], kept: Path, tell: Listener) -> list[Row]:
    """The rows with answers of the teacher's in place of their own, and without those that it could not answer."""
    task, own = TASKS[recipe.task], training.distillation.written
    with_tools = next((row for row in rows if row.fields.get("tools")), None)
    if with_tools is not None:
        raise DataError(
            "the row has tools, and what a teacher writes is learned as plain text",
            where=str(with_tools.origin),
            fix="leave such rows out, or use `distillation: {answers: data}`",
        )
    written = _written(recipe, training, rows, kept, tell)
    chosen = _chosen(task, training, rows, written)
    answered = [with_answer(task, row, text) for row, text in zip(rows, chosen, strict=True) if text]
    left_out = len(rows) - len(answered)
    if left_out:
        why = {"all": "are empty", "reward": "are worth too little", "agreement": "differ too much"}[own.keep]
        tell(Notice(level="info", message=f"{left_out:,} of {len(rows):,} prompts are left out: their answers {why}"))
    if not answered:
        raise DataError(
            "no answer of the teacher's is kept",
            where=str(kept),
            fix="lower `distillation.written.least`, or look at the answers: perhaps the teacher cannot do the task",
        )
    return answered


def with_answer(task: Task, row: Row, text: str) -> Row:
    """The row with another answer. Earlier answers of a conversation stay, and are not learned."""
    if isinstance(task, Summarization):
        return Row({**row.fields, "summary": [text]}, row.origin)
    turns = [
        {**turn, "weight": 0} if turn["role"] == "assistant" else turn for turn in task.conversation(row, None, None)
    ]
    return Row({"messages": [*turns[:-1], {"role": "assistant", "content": text}]}, row.origin)


def _written(recipe: Recipe, training: Training, rows: Sequence[Row], kept: Path, tell: Listener) -> list[list[str]]:
    """All answers to each prompt: those on disk, and the rest from the teacher, who is only loaded if needed."""
    own = training.distillation.written
    identity = _identity(recipe, training, rows)
    found = _read(kept, identity)
    if len(found) < len(rows):
        write = _writer(recipe, training)
        tell(Phase(step="tune", message=f"the teacher answers {len(rows) - len(found):,} prompts"))
        if not found:
            disk.write_text(kept, json.dumps({"key": identity}) + "\n")
        for first in range(len(found), len(rows), ROWS_AT_ONCE):
            part = rows[first : first + ROWS_AT_ONCE]
            texts = write([row for row in part for _ in range(own.per_prompt)], training.seed + first)
            several = [texts[n : n + own.per_prompt] for n in range(0, len(texts), own.per_prompt)]
            disk.append_line(kept, {"first": first, "answers": several})
            found += several
            tell(Progress(what="answers of the teacher", done=len(found), total=len(rows)))
    return found


def _identity(recipe: Recipe, training: Training, rows: Sequence[Row]) -> str:
    """Of all that decides what the teacher writes."""
    how = training.distillation.written.model_dump(include={"per_prompt", "temperature", "max_new_tokens"})
    asked = [_teacher(recipe, training), how, training.seed, recipe.system_prompt, [row.key for row in rows]]
    return content_key(asked)


def _teacher(recipe: Recipe, training: Training) -> str:
    """Who teaches: by the content of the teacher's files, or by address and name."""
    name, own = name_of(recipe, training), training.distillation
    return f"{name} {own.teacher_model}" if own.is_server else fingerprint(folder_of(name))


def _read(kept: Path, identity: str) -> list[list[str]]:
    """Answers on disk, but for what a kill cut off; none of another teacher, other rows or settings."""
    found: list[list[str]] = []
    lines = disk.read_log(kept)
    if next(lines, {}).get("key") != identity:
        return []
    for part in lines:
        if part["first"] == len(found):
            found += part["answers"]
    return found


def _writer(recipe: Recipe, training: Training) -> Write:
    """How the teacher is asked: a server over the network, a model in this process."""
    own = training.distillation
    temperature = own.written.temperature
    if temperature is None:
        temperature = 0.0 if own.written.per_prompt == 1 else SAMPLING
    generation = Generation(max_new_tokens=own.written.max_new_tokens, temperature=temperature)
    if own.is_server:
        task = TASKS[recipe.task]
        server = server_teacher.Server(own)

        def ask(rows: Sequence[Row], seed: int) -> list[str]:
            turns = [task.conversation(row, None, recipe.system_prompt)[:-1] for row in rows]
            return server.answers(turns, generation, seed)

        return ask
    return _model_writer(recipe, name_of(recipe, training), generation)


def _model_writer(recipe: Recipe, name: str, generation: Generation) -> Write:
    from tunesmith.models.precision import choose_dtype, default_device
    from tunesmith.objectives.teacher import load_writer

    device = default_device()
    teacher = load_writer(name, choose_dtype(recipe.precision, device), device)
    prompt = teacher.system_prompt if teacher.system_prompt is not None else recipe.system_prompt

    def ask(rows: Sequence[Row], seed: int) -> list[str]:
        setting = Setting(TASKS[recipe.task], None, prompt, generation, seed)
        return answer(teacher.model, rows, setting, score_references=False).texts or []

    return ask


def _chosen(task: Task, training: Training, rows: Sequence[Row], written: list[list[str]]) -> list[str]:
    """The answer to each prompt that is learned; empty where none is good enough."""
    own = training.distillation.written
    if own.keep == "agreement":
        return [agreed(texts, own) for texts in written]
    if own.keep == "all":
        return [texts[0] for texts in written]
    reward = rewards.make(training.rewards)
    chosen = []
    for row, texts in zip(rows, written, strict=True):
        turns = task.conversation(row, None, None)[:-1]
        values = reward([rewards.Answered(turns, text, task.target_text(row), row) for text in texts])
        best = max(range(len(texts)), key=values.__getitem__)
        chosen.append(texts[best] if values[best] >= own.least else "")
    return chosen


def agreed(texts: Sequence[str], own: TeacherAnswers) -> str:
    """The first of the answers that most agree with, if these are enough (self-consistency, arXiv 2203.11171)."""
    views = [last_number(text) if own.agree_on == "number" else " ".join(text.casefold().split()) for text in texts]
    counts = Counter(view for view in views if view not in (None, ""))
    if not counts:
        return ""
    view, count = counts.most_common(1)[0]
    return texts[views.index(view)] if count / len(texts) >= own.least else ""
