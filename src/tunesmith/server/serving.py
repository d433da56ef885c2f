"""Run the server until it is told to stop."""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Callable
from typing import Any

import uvicorn

from tunesmith.errors import ResourceError
from tunesmith.server.app import create_app
from tunesmith.server.rebuild import rebuild_index
from tunesmith.server.settings import Settings


def say(sentence: str, facts: dict[str, Any]) -> None:
    """Announce for people."""
    print(sentence, flush=True)


def serve(settings: Settings, announce: Callable[[str, dict[str, Any]], None] = say, *, rebuild: bool = False) -> None:
    """Listen and answer until SIGINT or SIGTERM.

    Args:
        settings: What was asked for.
        announce: Told, as a sentence and as facts, what was restored and where the server listens.
        rebuild: Restore the index from the data folder first.

    Raises:
        UsageError: See :func:`tunesmith.server.app.create_app`.
        ResourceError: The port is taken.
    """
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("tunesmith.server").setLevel(logging.INFO)  # what becomes of jobs, and which models are loaded
    app = create_app(settings)
    if rebuild:
        found = rebuild_index(app.state.services)
        announce("Restored " + ", ".join(f"{number} {what}" for what, number in found.items()), {"restored": found})
    listener = _listen(settings)
    config = uvicorn.Config(app, log_level="warning", server_header=False, timeout_graceful_shutdown=10)
    name = f"[{settings.host}]" if ":" in settings.host else settings.host
    url = f"http://{name}:{listener.getsockname()[1]}/v1"
    announce(f"Serving on {url} - stop with Ctrl-C", {"url": url, "process": os.getpid()})
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)  # uvicorn raises it once more when all is stopped: that is a normal end
    uvicorn.Server(config).run(sockets=[listener])


def _listen(settings: Settings) -> socket.socket:
    """Open the port before anything is promised: a taken one is an error with a remedy, and 0 is told."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
        listener.listen(128)  # from now on clients wait for the server instead of being refused
    except OSError as error:
        listener.close()
        place = f"{settings.host}:{settings.port}"
        raise ResourceError(f"cannot listen: {error.strerror}", where=place, fix="choose another `--port`") from error
    return listener
