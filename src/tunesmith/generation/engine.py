"""A running batch in a thread of its own, for servers: requests come from any thread, tokens go out as they come."""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol, TypeVar

from tunesmith.errors import ResourceError, UsageError
from tunesmith.generation.batch import Request, RunningBatch, Token

log = logging.getLogger("tunesmith.generation")

Result = TypeVar("Result")

QUEUE_LIMIT = 256
"""Requests that may wait; a further one is refused."""


class TextEngine(Protocol):
    """What the server asks of whatever writes text: :class:`Engine` here, or vLLM's.

    Methods may be called from any thread. See :class:`Engine` for what they do.
    """

    @property
    def context(self) -> int: ...  # noqa: D102

    @property
    def waiting(self) -> int: ...  # noqa: D102

    @property
    def running(self) -> int: ...  # noqa: D102

    @property
    def tokens_written(self) -> int: ...  # noqa: D102

    def submit(self, requests: Sequence[Request]) -> None: ...  # noqa: D102

    def cancel(self, requests: Sequence[Request]) -> None: ...  # noqa: D102

    def call(self, function: Callable[[], Result]) -> Future[Result]: ...  # noqa: D102

    def withdraw(self, adapter: str) -> None: ...  # noqa: D102

    def close(self) -> None: ...  # noqa: D102


class LoadedAdapters(Protocol):
    """The adapters that an engine's requests may name."""

    def load(self, name: str, folder: Path) -> None: ...  # noqa: D102

    def drop(self, name: str) -> None: ...  # noqa: D102

    def use_for_all(self, name: str | None) -> AbstractContextManager[None]: ...  # noqa: D102


class QueueFullError(ResourceError):
    """Too many requests are waiting.

    Attributes:
        retry_after: Seconds after which there should be room again.
    """

    code = "queue-full"

    def __init__(self, waiting: int, retry_after: int) -> None:
        super().__init__(f"{waiting} requests are waiting already", fix=f"try again in {retry_after} s")
        self.retry_after = retry_after


def may_join(asked: int, waiting: int, queue_limit: int, most: int) -> bool:
    """Whether an engine takes so many requests together: as many as may wait, and more only where nobody waits.

    Args:
        asked: How many come together.
        waiting: How many wait already.
        queue_limit: How many may wait.
        most: How many can run and wait.

    Raises:
        UsageError: They are more than can ever run and wait, so that coming back later is of no use.
    """
    if asked > most:
        raise UsageError(
            f"{asked} answers are asked for at once; {most} can run and wait here", fix="ask for fewer at a time"
        )
    return not waiting or waiting + asked <= queue_limit


class Engine:
    """Steps a batch as long as there is something to write.

    Args:
        batch: Only the engine's thread touches it from now on.
        queue_limit: Requests that may wait.
        name: Of the thread.
    """

    def __init__(self, batch: RunningBatch, *, queue_limit: int = QUEUE_LIMIT, name: str = "generation") -> None:
        self.queue_limit = queue_limit
        self._batch = batch
        self._orders: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._arriving = 0
        self._closed = False
        self._tokens_per_second = 100.0  # a guess before anything was written; then a running mean
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    @property
    def context(self) -> int:
        """Tokens of prompt and answer together that there is room for."""
        return self._batch.context

    @property
    def waiting(self) -> int:
        """Requests that have not joined the batch yet."""
        return self._arriving + len(self._batch.waiting)

    @property
    def running(self) -> int:
        """Rows of the batch."""
        return len(self._batch.running)

    @property
    def tokens_written(self) -> int:
        """Tokens of all answers so far."""
        return self._batch.tokens_written

    def submit(self, requests: Sequence[Request]) -> None:
        """Let requests join, all or none; once the engine is closed they are told that they failed.

        Raises:
            QueueFullError: Too many are waiting.
            UsageError: They are more than can ever run and wait.
        """
        with self._lock:
            if not self._closed:
                waiting, most = self.waiting, self._batch.max_rows + self.queue_limit
                if not may_join(len(requests), waiting, self.queue_limit, most):
                    raise QueueFullError(waiting, self._retry_after(waiting))
                self._arriving += len(requests)
                self._orders.put(lambda: self._add(requests))
                return
        for request in requests:
            request.on_token(Token(None, finish_reason="failed"))

    def cancel(self, requests: Sequence[Request]) -> None:
        """Take requests out before the next step, wherever they are."""

        def order() -> None:
            for request in requests:
                self._batch.cancel(request)

        self._orders.put(order)

    def call(self, function: Callable[[], Result]) -> Future[Result]:
        """Run something between two steps, in the engine's thread: it may use and change the model.

        Once the engine is closed, the future holds a :class:`ResourceError`.
        """
        future: Future[Result] = Future()

        def order() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function())
            except BaseException as error:  # it belongs to whoever asked
                future.set_exception(error)

        with self._lock:
            if not self._closed:
                self._orders.put(order)
                return future
        future.set_exception(ResourceError("the model was taken out of memory", fix="ask again"))
        return future

    def withdraw(self, adapter: str) -> None:
        """See :meth:`RunningBatch.withdraw`; to be called by what :meth:`call` runs."""
        self._batch.withdraw(adapter)

    def close(self) -> None:
        """Stop after the current step; requests that are left are told that they failed."""
        with self._lock:  # what was asked for before comes before the end in the queue
            self._closed = True
            self._orders.put(None)
        self._thread.join()

    def _add(self, requests: Sequence[Request]) -> None:
        for request in requests:
            try:
                self._batch.add(request)
            except UsageError:
                log.exception("a request cannot be answered")
                request.on_token(Token(None, finish_reason="failed"))
        with self._lock:
            self._arriving -= len(requests)

    def _work(self) -> None:
        try:
            while True:
                if not self._follow_orders():
                    return
                if self._batch.busy:
                    self._step()
        finally:
            self._batch.fail_all()

    def _follow_orders(self) -> bool:
        """Do what was asked for since the last step; wait for something if there is nothing to write."""
        while True:
            try:
                order = self._orders.get(block=not self._batch.busy)
            except queue.Empty:
                return True
            if order is None:
                return False
            order()

    def _step(self) -> None:
        started, before = time.perf_counter(), self.tokens_written
        try:
            self._batch.step()
        except Exception:  # out of memory, or a defect: these answers are lost, the server goes on
            log.exception("a step of the batch failed; its requests are given up")
            self._batch.fail_all()
            return
        speed = (self.tokens_written - before) / max(1e-6, time.perf_counter() - started)
        self._tokens_per_second += 0.05 * (speed - self._tokens_per_second)

    def _retry_after(self, waiting: int) -> int:
        """When about a tenth of what waits will have been written, guessing 100 tokens an answer."""
        return max(1, min(60, math.ceil(waiting * 0.1 * 100 / max(1.0, self._tokens_per_second))))
