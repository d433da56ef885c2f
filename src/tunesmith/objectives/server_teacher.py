"""A teacher behind the OpenAI chat API: at a provider, or on a server of one's own."""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlparse

from tunesmith.errors import RecipeError, ResourceError
from tunesmith.recipe import Distillation, Generation
from tunesmith.tasks.base import Message

AT_ONCE = 4
TRIES = 5
TIMEOUT = 300.0
WORTH_ANOTHER_TRY = (408, 409, 429, 500, 502, 503, 504)


class Server:
    """Asks ``{address}/chat/completions``.

    Raises:
        RecipeError: The address is neither https nor on this machine.
    """

    def __init__(self, own: Distillation) -> None:
        self.address = (own.teacher or "").rstrip("/") + "/chat/completions"
        self.model, self.key_variable = own.teacher_model, own.key_variable
        parts = urlparse(self.address)
        if parts.scheme != "https" and parts.hostname not in ("127.0.0.1", "::1", "localhost"):
            raise RecipeError(
                f"{own.teacher!r} is neither https nor on this machine",
                where="training.distillation.teacher",
                fix="use https, so that nobody reads prompts and key on the way",
            )

    def answers(self, conversations: Sequence[Sequence[Message]], generation: Generation, seed: int) -> list[str]:
        """An answer to each conversation, in their order.

        Raises:
            ResourceError: The server cannot be reached, refuses, or gives something else.
        """
        with ThreadPoolExecutor(AT_ONCE) as pool:
            asked = [pool.submit(self._answer, turns, generation, seed + n) for n, turns in enumerate(conversations)]
            try:
                return [one.result() for one in asked]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)  # nothing more is asked, or paid for
                raise

    def _answer(self, turns: Sequence[Message], generation: Generation, seed: int) -> str:
        body = {
            "model": self.model,
            "messages": [{"role": turn["role"], "content": turn.get("content") or ""} for turn in turns],
            "max_completion_tokens": generation.max_new_tokens,
            "temperature": generation.temperature,
            "seed": seed,
        }
        for number in range(1, TRIES + 1):
            try:
                reply = self._post(body)
                return str(reply["choices"][0]["message"].get("content") or "").strip()
            except urllib.error.HTTPError as error:
                if error.code not in WORTH_ANOTHER_TRY or number == TRIES:
                    said = error.read(500).decode(errors="replace")
                    raise self._failed(f"{error.code} {error.reason}: {said}") from error
            except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
                if number == TRIES:
                    raise self._failed(str(error)) from error
            time.sleep(min(30.0, 0.5 * 2**number))
        raise AssertionError("the last try returns or raises")

    def _post(self, body: dict[str, Any]) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        key = os.environ.get(self.key_variable)
        if key:
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self.address, json.dumps(body).encode(), headers, method="POST")
        with urllib.request.urlopen(request, timeout=TIMEOUT) as reply:  # the scheme was checked above
            found: dict[str, Any] = json.loads(reply.read())
            return found

    def _failed(self, why: str) -> ResourceError:
        return ResourceError(
            f"the teacher did not answer: {why}",
            where=self.address,
            fix=f"check `teacher`, `teacher_model` and the key in {self.key_variable}; `tunesmith resume` goes on with "
            "the answers that are there",
        )
