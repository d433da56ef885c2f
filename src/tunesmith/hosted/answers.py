"""Test rows put to models at a provider: what they answer, what that takes, and nothing asked twice."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith import disk
from tunesmith.data.rows import Row, content_key
from tunesmith.errors import UsageError
from tunesmith.events import Listener, Progress
from tunesmith.hosted.client import Answer, Client
from tunesmith.hosted.formats import tidy
from tunesmith.hosted.jobs import patiently
from tunesmith.prediction.answering import with_shots
from tunesmith.prediction.outputs import Outputs
from tunesmith.prediction.setting import Setting
from tunesmith.tasks.token_classification import written_spans

AT_ONCE = 4
"""Questions that wait for their answers at the same time."""


@dataclass(frozen=True)
class Usage:
    """What the calls of one system took.

    Attributes:
        calls: How many there were.
        prompt_tokens: Of all of them, as the provider counts.
        cached_tokens: Of these, what cost less because it was read before.
        written_tokens: Of all answers.
        latency: Median seconds from question to whole answer.
        slow_latency: The same of the slowest tenth.
    """

    calls: int
    prompt_tokens: int
    cached_tokens: int
    written_tokens: int
    latency: float
    slow_latency: float

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return asdict(self)


class Asker:
    """Asks a provider, and keeps each answer on disk: an interrupted measurement pays for none of them again.

    Args:
        client: The provider's.
        path: JSON lines of answers.
        tell: Told the progress.
    """

    def __init__(self, client: Client, path: Path, tell: Listener) -> None:
        self.client = client
        self.path = path
        self.tell = tell
        self._lock = threading.Lock()
        self._known: dict[str, Answer] = {}
        for stored in disk.read_log(path):
            self._known[stored.pop("question")] = Answer(**stored)

    def ask(self, name: str, model: str, questions: Sequence[dict[str, Any]], most_tokens: int) -> list[Answer]:
        """Answers of one model, in the order of the questions.

        Args:
            name: Of the system, for the progress.
            model: Who is asked.
            questions: With ``messages``, and ``tools`` where there are some.
            most_tokens: Longest answer.
        """
        done = 0

        def one(question: dict[str, Any]) -> Answer:
            nonlocal done
            found = self._one(model, question, most_tokens)
            with self._lock:
                done += 1
                self.tell(Progress(what=f"asking {name}", done=done, total=len(questions)))
            return found

        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(one, questions))

    def _one(self, model: str, question: dict[str, Any], most_tokens: int) -> Answer:
        key = content_key([model, question, most_tokens])
        if key in self._known:
            return self._known[key]
        found = patiently(
            lambda: self.client.ask(model, question["messages"], tools=question.get("tools"), most_tokens=most_tokens),
            self.tell,
        )
        with self._lock:
            self._known[key] = found
            self.path.parent.mkdir(parents=True, exist_ok=True)
            disk.append_line(self.path, {"question": key, **asdict(found)})
        return found


def questions_of(
    rows: Sequence[Row], setting: Setting, shots: Callable[[Row], Sequence[Row]] | None, client: Client
) -> list[dict[str, Any]]:
    """What a model is asked for each row: its conversation up to the answer, with examples before it."""
    found = []
    for row in rows:
        turns = with_shots(row, setting, shots(row) if shots else ())
        plain = [{key: value for key, value in turn.items() if key != "weight"} for turn in turns[:-1]]
        kept = {"tools": row.fields["tools"]} if row.fields.get("tools") else {}
        found.append(tidy({"messages": plain, **kept}, client.provider))
    return found


def as_outputs(answers: Sequence[Answer], rows: Sequence[Row], setting: Setting) -> Outputs:
    """Answers in the form that metrics read.

    Raises:
        UsageError: The task's answers cannot be read from texts.
    """
    texts = [answer.text for answer in answers]
    taken: dict[str, Any] = {
        "prompt_tokens": sum(answer.prompt_tokens for answer in answers),
        "written_tokens": sum(answer.written_tokens for answer in answers),
        "seconds": sum(answer.seconds for answer in answers),
    }
    if setting.task.answer == "spans":
        spans = [
            written_spans(text, setting.task.input_text(row), setting.labels or [])
            for text, row in zip(texts, rows, strict=True)
        ]
        return Outputs(spans=spans, **taken)
    if setting.task.answer not in ("text", "label", "open"):
        raise UsageError(f"a provider's answers to the task {setting.task.name} cannot be measured")
    worth: dict[str, Any] = setting.judges.score(rows, texts, [()] * len(rows)) if setting.judges is not None else {}
    return Outputs(texts=texts, **taken, **worth)


def usage_of(answers: Sequence[Answer]) -> Usage:
    """What they took together."""
    seconds = np.asarray([answer.seconds for answer in answers] or [0.0])
    return Usage(
        calls=len(answers),
        prompt_tokens=sum(answer.prompt_tokens for answer in answers),
        cached_tokens=sum(answer.cached_tokens for answer in answers),
        written_tokens=sum(answer.written_tokens for answer in answers),
        latency=float(np.median(seconds)),
        slow_latency=float(np.quantile(seconds, 0.9)),
    )
