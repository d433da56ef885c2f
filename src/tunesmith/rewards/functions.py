"""Rewards of the user's own: a Python function, or an address that answers."""

from __future__ import annotations

import importlib.util
import json
import queue
import threading
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from tunesmith.errors import RecipeError, RewardError
from tunesmith.recipe import RewardSource
from tunesmith.rewards import Answered


class Function:
    """``file.py:name``: a function that takes a list of answers and gives as many numbers.

    Each answer is a dictionary with ``messages``, ``text``, ``tokens``, ``reference``, and the row's ``fields``. The
    file is run as the user's own program, with the user's rights: name no file that you would not run.
    """

    def __init__(self, source: RewardSource) -> None:
        self.function, self.timeout = load_function(source.function or ""), source.timeout

    def __call__(self, answers: Sequence[Answered]) -> list[float]:
        """What the function gives.

        Raises:
            RewardError: It took longer than the timeout.
        """
        given = [as_dict(answer) for answer in answers]
        waiting: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()

        def work() -> None:
            try:
                waiting.put((True, list(self.function(given))))
            except BaseException as error:
                waiting.put((False, error))

        threading.Thread(target=work, daemon=True).start()  # a daemon: one that hangs must not keep the run alive
        try:
            fine, found = waiting.get(timeout=self.timeout)
        except queue.Empty:
            raise RewardError(
                f"the reward function took longer than {self.timeout:g} s for {len(answers)} answers",
                where=str(answers[0].row.origin),
                fix="make it faster, or raise `timeout` of the reward",
            ) from None
        if not fine:
            raise found
        return list(found)


class Endpoint:
    """An address that is sent ``{"answers": [...]}`` by POST and replies ``{"rewards": [...]}``."""

    def __init__(self, source: RewardSource) -> None:
        self.address, self.timeout = source.url or "", source.timeout
        parts = urlparse(self.address)
        if parts.scheme != "https" and parts.hostname not in ("127.0.0.1", "::1", "localhost"):
            raise RecipeError(
                f"{self.address!r} is neither https nor on this machine",
                where="rewards.url",
                fix="use https, so that nobody reads the answers on the way",
            )

    def __call__(self, answers: Sequence[Answered]) -> list[float]:
        """What the address replies."""
        body = json.dumps({"answers": [as_dict(answer) for answer in answers]}).encode()
        request = urllib.request.Request(  # the scheme was checked above
            self.address, data=body, headers={"Content-Type": "application/json"}, method="POST"
        )
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as reply:
                return list(json.loads(reply.read())["rewards"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RewardError(
                f"the reward at {self.address} did not answer as it should: {error}",
                fix='it must reply {"rewards": [number, ...]} in time (`timeout`)',
            ) from error


def as_dict(answer: Answered) -> dict[str, Any]:
    """An answer as functions and addresses see it."""
    return {
        "messages": answer.messages,
        "text": answer.text,
        "tokens": list(answer.tokens),
        "reference": answer.reference,
        "fields": answer.row.fields,
    }


def load_function(spec: str) -> Callable[[list[dict[str, Any]]], Any]:
    """Import ``file.py:name``.

    Raises:
        RecipeError: There is no such file or function.
    """
    file, _, name = spec.rpartition(":")
    path = Path(file)
    if not path.is_file() or path.suffix != ".py":
        raise RecipeError(f"there is no Python file {file!r}", where="rewards.function", fix="write `file.py:name`")
    loaded = importlib.util.spec_from_file_location(f"tunesmith_reward_{path.stem}", path)
    assert loaded is not None and loaded.loader is not None
    module = importlib.util.module_from_spec(loaded)
    loaded.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        raise RecipeError(f"{file} has no function {name!r}", where="rewards.function", fix="write `file.py:name`")
    return function
