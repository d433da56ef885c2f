"""Applying a tuned model to new rows: the rendering is that of training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tunesmith.data.conversations import MalformedError, as_messages, as_tools
from tunesmith.data.pictures import unpacked_for_now
from tunesmith.data.rows import Origin, Row
from tunesmith.data.spans import inline
from tunesmith.errors import DataError
from tunesmith.events import nobody
from tunesmith.models.model import Model
from tunesmith.models.saving import ArtefactNotes
from tunesmith.prediction import answering, preferences, reading
from tunesmith.prediction.outputs import Outputs
from tunesmith.prediction.setting import Setting
from tunesmith.recipe import PICTURES, Data, Generation
from tunesmith.tasks import TASKS, Task
from tunesmith.tasks.multi_label import NONE


@dataclass(frozen=True)
class Prediction:
    """One answer of a tuned model.

    Attributes:
        answer: The label or labels, the score, the written text, or the spans as a reader lists them.
        probability: Of the label; ``None`` for other answers.
        probabilities: Label -> probability; ``None`` without labels. Of several labels each has its own.
        labels: All labels that apply, of a task with several.
        score: The number, of a task with scores.
        text: Where the answer is spans: the text that their offsets count in.
        spans: Each ``{"start", "end", "label", "text", "score"}``.
    """

    answer: str
    probability: float | None = None
    probabilities: dict[str, float] | None = None
    labels: list[str] | None = None
    score: float | None = None
    text: str | None = None
    spans: list[dict[str, Any]] | None = None

    def as_dict(self) -> dict[str, Any]:
        """The prediction as a line of ``tunesmith predict``."""
        return {key: value for key, value in asdict(self).items() if value is not None}


@unpacked_for_now()
def predict(model: Model, notes: ArtefactNotes, rows: Sequence[Any], generation: Generation) -> list[Prediction]:
    """Answers of a model to texts or dictionaries.

    Raises:
        DataError: A row lacks the task's input field; its number is the place.
    """
    task = asked_task(notes.task, model.form)
    if task is None:
        return _scores(model, rows)
    wanted = [_as_row(value, number, task) for number, value in enumerate(rows, 1)]
    if not wanted:
        return []
    setting = Setting(task, notes.labels, notes.system_prompt, generation)
    outputs = answering.answer(model, wanted, setting, score_references=False)
    return _predictions(outputs, wanted, task, notes.labels or [])


def asked_task(name: str, form: str) -> Task | None:
    """The task that a model is asked: what learned from preferences writes, unless it scores (``None``)."""
    task = TASKS[name]
    if task.answer == "pair" and form == "classify":
        return None
    return TASKS["text-generation"] if task.answer in ("pair", "thumb") else task


@unpacked_for_now()
def unreadable(name: str, rows: Sequence[Any]) -> dict[int, DataError]:
    """Place of each picture that cannot be read, from 0, with the reason; empty for tasks that read text."""
    task = TASKS[name]
    found: dict[int, DataError] = {}
    for place, value in enumerate(rows if task.name in PICTURES else ()):
        try:
            _as_row(value, place + 1, task)
        except DataError as error:
            found[place] = error
    return found


def _predictions(outputs: Outputs, rows: Sequence[Row], task: Task, labels: Sequence[str]) -> list[Prediction]:
    """What was answered, row by row."""
    if outputs.spans is not None:
        return [
            Prediction(inline(spans), text=task.input_text(row), spans=[span._asdict() for span in spans])
            for row, spans in zip(rows, outputs.spans, strict=True)
        ]
    if task.answer == "score":
        return [Prediction(f"{score:.6g}", score=float(score)) for score in reading.scores(outputs)]
    if task.answer == "labels":
        return _label_sets(outputs, labels)
    if outputs.texts is not None:
        return [Prediction(text) for text in outputs.texts]
    if outputs.probabilities is None:
        return [Prediction(text) for text in reading.surprises(outputs)]
    return [
        Prediction(labels[best], line[best], dict(zip(labels, line, strict=True)))
        for best, line in zip(reading.label_numbers(outputs, labels), outputs.probabilities.tolist(), strict=True)
    ]


def _label_sets(outputs: Outputs, labels: Sequence[str]) -> list[Prediction]:
    """All labels that apply to each row."""
    found = []
    for row, given in enumerate(reading.label_sets(outputs, labels).tolist()):
        chosen = [label for label, applies in zip(labels, given, strict=True) if applies]
        sure = None if outputs.probabilities is None else dict(zip(labels, outputs.probabilities[row], strict=True))
        probabilities = None if sure is None else {label: float(p) for label, p in sure.items()}
        found.append(Prediction("; ".join(chosen) or NONE, probabilities=probabilities, labels=chosen))
    return found


def _scores(model: Model, rows: Sequence[Any]) -> list[Prediction]:
    """The scores that a reward model gives to answers: texts, or rows with `prompt` and `completion`, or `messages`.

    With `tools` they may be calls of these.
    """
    texts = []
    for number, value in enumerate(rows, 1):
        fields, origin = {"completion": str(value)} if not isinstance(value, dict) else value, Origin("input", number)
        answer = fields.get("completion", fields.get("chosen", fields.get("text")))
        if "messages" not in fields and answer is None:
            raise DataError("the row has no `completion`", where=str(origin), fix="give the answer to be scored")
        try:
            turns = as_messages(fields["messages"]) if fields.get("messages") else []
            tools = as_tools(fields["tools"]) if fields.get("tools") else None
        except MalformedError as error:
            raise DataError(str(error), where=str(origin), fix=error.fix) from error
        if not turns:
            turns = [{"role": "user", "content": fields["prompt"]}] if fields.get("prompt") else []
            turns.append({"role": "assistant", "content": str(answer)})
        texts.append((turns, tools, origin))
    return [Prediction(f"{score:.6g}") for score in preferences.score_texts(model, texts, nobody)]


def _as_row(value: Any, number: int, task: Task) -> Row:
    """A row with an empty answer, which the rendering cuts off again."""
    origin = Origin("input", number)
    fields = dict(value) if isinstance(value, dict) else {task.forms[-1][0].name: str(value)}
    form = next((form for form in task.forms if form[0].name in fields), None)
    if form is None:
        names = " or ".join(f"`{form[0].name}`" for form in task.forms)
        raise DataError(
            f"the row has no {names}",
            where=str(origin),
            fix=f"name the input {names}; fields of this row: {', '.join(fields) or 'none'}",
        )
    unasked = {field.name: field.unasked for field in form[1:] if field.required}  # an answer that is there is not read
    row = Row({**{key: value for key, value in fields.items() if value is not None}, **unasked}, origin)
    convert = task.reading([row], Data()).convert
    row, faults = convert(row) if convert else (row, [])
    wrong = next((fault for fault in faults if fault.severity == "error"), None)
    if wrong is not None:
        raise DataError(wrong.message, where=str(origin), fix=wrong.fix)
    turns = row.fields.get("messages")
    if turns and turns[-1]["role"] != "assistant":
        turns.append({"role": "assistant", "content": ""})
    return row
