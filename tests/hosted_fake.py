"""A provider on this machine: OpenAI's API as its own package describes it, and faults at will.

Replies are built from the openai package's models, so that a field that is missing here is missing in its types too.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from unittest import mock
from urllib.parse import parse_qs, unquote, urlsplit

from openai.types import FileDeleted, FileObject, Model
from openai.types.chat import ChatCompletion, ChatCompletionStoreMessage
from openai.types.fine_tuning import FineTuningJob, FineTuningJobEvent
from openai.types.fine_tuning.jobs import FineTuningJobCheckpoint

KEY = "sk-planted-4f1d9c27b6"
STATES = ("validating_files", "queued", "running", "running", "succeeded")


@dataclass
class Fault:
    """What goes wrong with the next requests that fit.

    Attributes:
        kind: An HTTP status; ``drop`` cuts the connection before anything is done, ``lost`` after it was done,
            ``slow`` does it and
            answers after the client has given up.
    """

    method: str
    path: str
    kind: int | str
    times: int = 1
    body: dict[str, Any] | None = None


@dataclass
class Provider:
    """Its state, to be looked at by tests."""

    faults: list[Fault] = field(default_factory=list)
    files: dict[str, tuple[FileObject, bytes]] = field(default_factory=dict)
    jobs: dict[str, FineTuningJob] = field(default_factory=dict)
    seen: list[str] = field(default_factory=list)
    looked: dict[str, int] = field(default_factory=dict)
    refuse_data: str | None = None
    key: str = KEY
    asked: int = 0
    slow_seconds: float = 1.5
    shutdown: str | None = "2027-01-14"
    stored: dict[str, tuple[ChatCompletion, list[dict[str, Any]]]] = field(default_factory=dict)

    def store(self, model: str, messages: list[dict[str, Any]]) -> None:
        """Answer as a client that sends ``store: true`` is answered, and keep it."""
        made = _complete(self, {"model": model, "messages": messages})
        made = made.model_copy(update={"id": f"chatcmpl-{len(self.stored)}"})
        self.stored[made.id] = (made, messages)

    def learned(self, model: str) -> dict[str, str]:
        """Question -> answer of the file that a tuned model learned from."""
        job = next(job for job in self.jobs.values() if job.fine_tuned_model == model)
        rows = [json.loads(line) for line in self.files[job.training_file][1].decode("utf-8-sig").splitlines()]
        return dict(_lesson(row) for row in rows)


def _lesson(row: dict[str, Any]) -> tuple[str, str]:
    """Question and answer of a row: shown, preferred, or what a grader would like."""
    if "preferred_output" in row:
        return _last_user(row["input"]["messages"]), row["preferred_output"][-1]["content"]
    return _last_user(row["messages"]), row.get("wanted") or row["messages"][-1]["content"]


def _last_user(messages: list[dict[str, Any]]) -> str:
    return next(turn["content"] for turn in reversed(messages) if turn["role"] == "user")


@contextlib.contextmanager
def provider() -> Iterator[tuple[Provider, str]]:
    """Gives the state and the address that ends in ``/v1``. Clients load no certificates: 0.3 s each."""
    state = Provider()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(state))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    plain = mock.patch(
        "httpx2._transports.default.create_ssl_context", lambda **_: ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    )
    try:
        with plain:
            yield state, f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _handler(state: Provider) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            self._serve("GET")

        def do_POST(self) -> None:
            self._serve("POST")

        def _serve(self, method: str) -> None:
            url = urlsplit(self.path)
            path, query = unquote(url.path).removeprefix("/v1"), parse_qs(url.query)
            state.seen.append(f"{method} {path}")
            fault = next(
                (f for f in state.faults if f.times and f.method == method and re.fullmatch(f.path, path)), None
            )
            if fault is not None:
                fault.times -= 1
                if fault.kind == "drop":  # in the middle of the body
                    self.rfile.read(min(10, int(self.headers.get("Content-Length") or 0)))
                    self._cut()
                    return
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if fault is not None and isinstance(fault.kind, int):
                error = fault.body or {"message": f"a fault; the key was {state.key}", "type": "server_error"}
                self._send(fault.kind, {"error": {"param": None, "code": None, "type": "x", **error}})
                return
            if self.headers.get("Authorization") != f"Bearer {state.key}":
                said = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
                error = {"message": f"Incorrect API key provided: {said}", "type": "invalid_request_error"}
                self._send(401, {"error": {"param": None, "code": "invalid_api_key", **error}})
                return
            try:
                status, found = _answer(state, method, path, query, body, self.headers)
            except KeyError as missing:
                error = {"message": f"No such thing: {missing}", "type": "invalid_request_error"}
                status, found = 404, {"error": {"param": None, "code": "not_found", **error}}
            if fault is not None and fault.kind == "slow":
                time.sleep(state.slow_seconds)
            if fault is not None and fault.kind == "lost":
                self._cut()
                return
            self._send(status, found)

        def _cut(self) -> None:
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(2)

        def _send(self, status: int, found: Any) -> None:
            raw = found if isinstance(found, bytes) else json.dumps(found).encode()
            with contextlib.suppress(OSError):
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

    return Handler


def _answer(
    state: Provider, method: str, path: str, query: dict[str, list[str]], body: bytes, headers: Any
) -> tuple[int, Any]:
    match (method, path.strip("/").split("/")):
        case ("POST", ["files"]):
            return 200, _upload(state, body, headers).model_dump()
        case ("GET", ["files"]):
            return 200, {"object": "list", "data": [f.model_dump() for f, _ in state.files.values()], "has_more": False}
        case ("GET", ["files", name, "content"]):
            return 200, state.files[name][1]
        case ("POST", ["fine_tuning", "jobs"]):
            return _create(state, json.loads(body))
        case ("GET", ["fine_tuning", "jobs"]):
            wanted = {key[9:-1]: values[0] for key, values in query.items() if key.startswith("metadata[")}
            jobs = [j for j in state.jobs.values() if wanted.items() <= (j.metadata or {}).items()]
            return 200, {"object": "list", "data": [j.model_dump() for j in jobs[::-1]], "has_more": False}
        case ("GET", ["fine_tuning", "jobs", name]):
            return 200, _moved(state, name).model_dump()
        case ("POST", ["fine_tuning", "jobs", name, "cancel"]):
            state.jobs[name] = state.jobs[name].model_copy(update={"status": "cancelled"})
            return 200, state.jobs[name].model_dump()
        case ("GET", ["fine_tuning", "jobs", name, "events"]):
            return 200, {"object": "list", "data": _events(state, name)[::-1], "has_more": False}
        case ("GET", ["fine_tuning", "jobs", name, "checkpoints"]):
            return 200, {"object": "list", "data": [_checkpoint(state.jobs[name])], "has_more": False}
        case ("GET", ["models"]):
            model = Model(id="gpt-4.1-mini", created=1, object="model", owned_by="system", shutdown_date=state.shutdown)
            return 200, {"object": "list", "data": [model.model_dump()]}
        case ("POST", ["chat", "completions"]):
            return 200, _complete(state, json.loads(body)).model_dump()
        case ("GET", ["chat", "completions"]):
            kept = [made.model_dump() for made, _ in state.stored.values() if [made.model] == query.get("model")]
            return 200, {"object": "list", "data": kept, "has_more": False}
        case ("GET", ["chat", "completions", name, "messages"]):
            # the package's type allows the role "assistant" alone; the reference's own example shows a user's message
            turns = [
                {**ChatCompletionStoreMessage(id=f"{name}-{n}", role="assistant").model_dump(), **turn}
                for n, turn in enumerate(state.stored[name][1])
            ]
            return 200, {"object": "list", "data": turns, "has_more": False}
        case ("DELETE", ["files", name]):
            return 200, FileDeleted(id=name, deleted=True, object="file").model_dump()
    raise KeyError(path)


def _upload(state: Provider, body: bytes, headers: Any) -> FileObject:
    mark = b"--" + re.search(r"boundary=([^;]+)", headers["Content-Type"])[1].strip('"').encode()  # type: ignore[index]
    parts = {}
    for part in body.split(mark)[1:-1]:
        head, _, content = part.removeprefix(b"\r\n").removesuffix(b"\r\n").partition(b"\r\n\r\n")
        parts[re.search(rb'name="([^"]+)"', head)[1]] = (head, content)  # type: ignore[index]
    head, content = parts[b"file"]
    name = re.search(rb'filename="([^"]+)"', head)[1].decode()  # type: ignore[index]
    made = FileObject(
        id=f"file-{len(state.files)}",
        bytes=len(content),
        created_at=int(time.time()),
        filename=name,
        object="file",
        purpose="fine-tune",
        status="processed",
    )
    state.files[made.id] = (made, content)
    return made


def _create(state: Provider, asked: dict[str, Any]) -> tuple[int, Any]:
    if asked["model"] not in ("gpt-4.1-mini", "o4-mini", "gpt-free"):
        error = {"message": f"The model {asked['model']} does not exist", "type": "invalid_request_error"}
        return 404, {"error": {"param": "model", "code": "model_not_found", **error}}
    kind = asked["method"]["type"]
    name = f"ftjob-{len(state.jobs)}"
    numbers = {"n_epochs": 3, "batch_size": 1}
    job = FineTuningJob.model_validate(
        {
            "id": name,
            "created_at": int(time.time()),
            "error": None,
            "fine_tuned_model": None,
            "finished_at": None,
            "hyperparameters": {"n_epochs": 3, "batch_size": 1, "learning_rate_multiplier": 2.0},
            "model": asked["model"],
            "object": "fine_tuning.job",
            "organization_id": "org-1",
            "result_files": [],
            "seed": asked.get("seed", 0),
            "status": "validating_files",
            "trained_tokens": None,
            "training_file": asked["training_file"],
            "validation_file": asked.get("validation_file"),
            "metadata": asked.get("metadata"),
            "method": {"type": kind, kind: {**asked["method"].get(kind, {}), "hyperparameters": numbers}},
        }
    )
    state.jobs[name] = job
    return 200, job.model_dump()


def _moved(state: Provider, name: str) -> FineTuningJob:
    """The job, a state further each time it is looked at."""
    job = state.jobs[name]
    if job.status in ("succeeded", "failed", "cancelled"):
        return job
    state.looked[name] = state.looked.get(name, 0) + 1
    changed: dict[str, Any] = {"status": STATES[min(state.looked[name], len(STATES) - 1)]}
    if state.refuse_data is not None:
        error = {"code": "invalid_n_examples", "message": state.refuse_data, "param": "training_file"}
        changed = {"status": "failed", "error": error}
    if changed["status"] == "succeeded":
        table = b"step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy\n1,0.9,0.5,,\n2,0.4,0.8,0.5,0.7\n"
        result = FileObject(
            id=f"file-results-{name}",
            bytes=len(table),
            created_at=1,
            filename="step_metrics.csv",
            object="file",
            purpose="fine-tune-results",
            status="processed",
        )
        state.files[result.id] = (result, base64.b64encode(table))
        changed |= {
            "fine_tuned_model": f"ft:{job.model}:org::{name}",
            "finished_at": int(time.time()) + 60,
            "trained_tokens": 3000,
            "result_files": [result.id],
        }
    state.jobs[name] = FineTuningJob.model_validate(job.model_dump() | changed)
    return state.jobs[name]


def _events(state: Provider, name: str) -> list[dict[str, Any]]:
    texts = [f"Created fine-tuning job: {name}", "Fine-tuning job started"]
    texts += [f"Step {n}/2: training loss={1.0 / n:.2f}" for n in range(1, state.looked.get(name, 0) - 1) if n <= 2]
    return [
        FineTuningJobEvent(
            id=f"ftevent-{name}-{n}",
            created_at=1000 + n,
            level="info",
            message=text,
            object="fine_tuning.job.event",
            type="message",
        ).model_dump()
        for n, text in enumerate(texts)
    ]


def _checkpoint(job: FineTuningJob) -> dict[str, Any]:
    return FineTuningJobCheckpoint.model_validate(
        {
            "id": f"ftckpt-{job.id}",
            "created_at": 1,
            "fine_tuned_model_checkpoint": f"{job.fine_tuned_model}:ckpt-step-1",
            "fine_tuning_job_id": job.id,
            "metrics": {"step": 1, "train_loss": 0.9},
            "object": "fine_tuning.job.checkpoint",
            "step_number": 1,
        }
    ).model_dump()


def _complete(state: Provider, asked: dict[str, Any]) -> ChatCompletion:
    """A tuned model knows its training rows and guesses the rest by their likest; the base guesses badly."""
    state.asked += 1
    question = _last_user(asked["messages"])
    answer = "positive"
    if asked["model"].startswith("ft:"):
        known = state.learned(asked["model"])
        words = set(question.split())
        answer = known.get(question) or known[max(known, key=lambda other: len(words & set(other.split())))]
    read = sum(len(str(turn["content"]).split()) for turn in asked["messages"])
    return ChatCompletion.model_validate(
        {
            "id": "chatcmpl-1",
            "created": 1,
            "model": asked["model"],
            "object": "chat.completion",
            "choices": [
                {
                    "finish_reason": "stop",
                    "index": 0,
                    "logprobs": None,
                    "message": {"role": "assistant", "content": answer, "refusal": None},
                }
            ],
            "usage": {
                "prompt_tokens": read,
                "completion_tokens": 1,
                "total_tokens": read + 1,
                "prompt_tokens_details": {"cached_tokens": read // 2},
            },
        }
    )
