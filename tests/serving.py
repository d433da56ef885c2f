"""A real server on a free port, for the tests of the API; the tiny decoder is called ``gpt-tiny`` and ``slow``."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from tunesmith.server.app import create_app
from tunesmith.server.settings import Settings

QUICK: dict[str, Any] = {"poll_seconds": 0.1, "lease_seconds": 20.0}


def chat_rows(count: int) -> list[dict[str, Any]]:
    """Conversations in OpenAI's format."""
    pairs = (("france", "paris"), ("spain", "madrid"), ("italy", "rome"))
    return [
        {
            "messages": [
                {"role": "user", "content": f"what is the capital of {pairs[n % 3][0]} {'please ' * (n % 7)}{n}"},
                {"role": "assistant", "content": pairs[n % 3][1]},
            ]
        }
        for n in range(count)
    ]


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def models_file(folder: Path, model: Path) -> Path:
    """A ``models.yaml``: ``slow`` takes long enough to be stopped in mid-run."""
    path = folder / "models.yaml"
    quick = {"precision": "fp32", "training": {"compile": "off", "dropout": 0.1}}
    slow = {"precision": "fp32", "training": {"compile": "off", "max_steps": 4000, "checkpoint_steps": 20}}
    names = {"gpt-tiny": quick, "slow": slow}
    path.write_text(json.dumps({name: {"model": str(model), "recipe": more} for name, more in names.items()}))
    return path


@contextlib.contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """Listen in a thread; gives the address without a path."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=2))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        wait_for(lambda: server.started or not thread.is_alive())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@contextlib.contextmanager
def server(data: Path, model: Path, **more: Any) -> Iterator[str]:
    """A server with the tiny model."""
    settings = Settings(**{"data": data, "models": models_file(data.parent, model), **QUICK, **more})
    with serving(create_app(settings)) as address:
        yield address


def wait_for(condition: Any, seconds: float = 400) -> Any:
    """Wait until something is true, and give it. The limit is for what is broken, not for what is slow."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "what was waited for did not happen"
        time.sleep(0.05)
    return value


def ended(client: Any, job_id: str, seconds: float = 400) -> Any:
    """A job of the openai client, once it has ended."""

    def look() -> Any:
        job = client.fine_tuning.jobs.retrieve(job_id)
        return job if job.status in ("succeeded", "failed", "cancelled") else None

    return wait_for(look, seconds)
