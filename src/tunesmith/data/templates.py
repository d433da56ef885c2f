"""Chat templates are programs of a model's author: they are rendered in a process of their own, with limits.

Jinja's sandbox keeps a template from the interpreter, but not from looping for ever, taking all memory or writing
without end, and no thread of the same process could stop it: `{{ 9 ** (9 ** 9) }}` is one call that holds the lock of
the interpreter. So transformers' own renderer runs in a small process that stays (60 MB, without torch). A rendering
has a limit of processor time, memory and output; what goes beyond is killed, and a new process is started.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

from tunesmith.errors import ResourceError

SECONDS = 3
"""Processor time of one rendering; honest templates take a thousandth of that."""
WALL_SECONDS = 60.0
"""The same by the clock, on a machine that is busy with other things."""
MEMORY_BYTES = 2**30
"""Address space, libraries included."""
TEMPLATE_CHARACTERS = 2**20
REST_SECONDS = 60.0
"""For so long a template that went beyond a limit is refused at once: it shall not keep the machine busy."""
START_SECONDS = 300.0
REPLY_BYTES = 2**30
TEMPLATES_A_PROCESS = 64
ENVIRONMENT = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "HOME", "LANG", "LC_ALL", "TZ")
"""All that the process sees of ours: no token, no address of a database."""


class TemplateError(Exception):
    """A template refused the messages; the text is the template's own."""


class TemplateLimitError(ResourceError):
    """A template went beyond a limit. That is the model's fault, whatever the messages were."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"the model's chat template {what}",
            where="model",
            fix="use a model whose chat template can be trusted, or mend `chat_template.jinja` in its folder",
        )
        self.refused_until = time.monotonic() + REST_SECONDS


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Any = None,
    add_generation_prompt: bool = False,
    variables: Mapping[str, Any] | None = None,
) -> str:
    """Apply a chat template, as transformers' ``apply_chat_template(..., tokenize=False)`` does.

    Args:
        template: Jinja.
        messages: The conversation; plain values, as they stand in JSON.
        tools: JSON schemas of functions.
        add_generation_prompt: Whether to go on to where the answer begins.
        variables: Further names that the template may use, such as ``eos_token``.

    Raises:
        TemplateError: The template refuses the messages, or is no template.
        TemplateLimitError: It takes too much time or memory or writes too much, or did so less than a minute ago.
    """
    if not messages:
        raise TemplateError("there are no messages")
    if len(template) > TEMPLATE_CHARACTERS:
        raise TemplateLimitError(f"has {len(template)} characters; at most {TEMPLATE_CHARACTERS} are taken")
    key = hashlib.sha256(template.encode("utf-8", "surrogatepass")).digest()
    known = _refused.get(key)
    if known is not None and time.monotonic() < known.refused_until:
        raise known
    values = {"messages": messages, "tools": tools, "add_generation_prompt": add_generation_prompt}
    with _process() as process:
        try:
            return process.render(template, values | dict(variables or {}))
        except TemplateLimitError as error:
            _refused[key] = error
            raise


def start() -> None:
    """Start the process, without waiting for it: it takes a second until the first rendering."""
    with _lock:
        if not _processes:
            _idle.append(_Process())


class _Process:
    """One process, for one thread at a time."""

    def __init__(self) -> None:
        self._connection, theirs = Pipe()
        names = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
        self._process = subprocess.Popen(
            [sys.executable, "-P", Path(__file__).with_name("template_process.py"), str(MEMORY_BYTES), str(SECONDS)],
            stdin=theirs.fileno(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=names | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        )
        theirs.close()
        self._poller = select.poll()
        self._poller.register(self._connection.fileno(), select.POLLIN)
        self._is_ready = False
        self._numbers: dict[str, int] = {}
        _processes.add(self)

    @property
    def is_usable(self) -> bool:
        """Whether another rendering can be asked of it."""
        return self._process.poll() is None and len(self._numbers) < TEMPLATES_A_PROCESS

    def render(self, template: str, values: dict[str, Any]) -> str:
        """See :func:`render`."""
        if not self._is_ready:
            self._reply(START_SECONDS)
            self._is_ready = True
        asked: dict[str, Any] = {**values, "number": self._numbers.get(template)}
        if template not in self._numbers:
            self._numbers[template] = len(self._numbers)
            asked |= {"number": self._numbers[template], "template": template}
        try:
            body = json.dumps(asked, default=_plain).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise TemplateError(f"the messages are no plain values: {error}") from error
        with contextlib.suppress(BrokenPipeError):  # it has ended: the reply says how
            self._connection.send_bytes(body)
        reply = json.loads(self._reply(WALL_SECONDS))
        if "error" in reply:
            raise TemplateError(reply["error"])
        if "limit" in reply:
            raise TemplateLimitError(_BEYOND[reply["limit"]])
        text: str = reply["text"]
        return text

    def close(self) -> None:
        """End the process, whatever it does."""
        _processes.discard(self)
        self._connection.close()
        self._process.kill()
        self._process.wait()

    def _reply(self, seconds: float) -> bytes:
        try:
            if not self._poller.poll(seconds * 1000):  # a fifth of what the connection's own takes
                raise TemplateLimitError(f"took more than {seconds:.0f} s")
            return self._connection.recv_bytes(REPLY_BYTES)
        except (EOFError, OSError) as error:
            code = self._process.wait()
            if code == -signal.SIGXCPU:
                raise TemplateLimitError(_BEYOND["time"]) from error
            raise TemplateLimitError(f"ended its process ({code})") from error


_BEYOND = {
    "time": f"took more than {SECONDS} s",
    "memory": f"took more than {MEMORY_BYTES / 2**30:.0f} GB of memory",
    "output": "writes far more than it is given",
}
_lock = threading.Lock()
_idle: list[_Process] = []
_processes: set[_Process] = set()
_refused: dict[bytes, TemplateLimitError] = {}


@contextlib.contextmanager
def _process() -> Iterator[_Process]:
    """A process that nobody else uses, so that there are as many as there are renderings at the same time."""
    with _lock:
        process = _idle.pop() if _idle else None
        if process is not None and not process.is_usable:
            process.close()
            process = None
        process = process or _Process()
    is_well = False
    try:
        yield process
        is_well = True
    except TemplateError:
        is_well = True
        raise
    finally:
        with _lock:
            _idle.append(process) if is_well else process.close()


def _plain(value: Any) -> Any:
    """What JSON does not have, as transformers shows it to templates: a number, or the name of its type."""
    import numpy as np

    return value.item() if isinstance(value, np.generic) else f"<{type(value).__name__}>"


def _close_all() -> None:
    for process in list(_processes):
        process.close()


def _after_fork() -> None:
    """The processes belong to the parent; its child starts its own."""
    global _lock
    _lock = threading.Lock()
    _idle.clear()
    _processes.clear()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_after_fork)
