"""Servers with OpenAI's fine-tuning API: OpenAI, Azure, Nebius, and one's own. Others change what differs."""

from __future__ import annotations

import base64
import binascii
import itertools
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from tunesmith.data import conversations
from tunesmith.hosted.client import Answer, Job, JobEvent, JobOrder, ProviderError, Status, told
from tunesmith.hosted.keys import scrub
from tunesmith.hosted.table import Provider

TAG = "tunesmith_intent"
"""Key of the metadata by which a job is found again."""

RETRIES = 3
"""Of requests that can be repeated without harm. Making a job and sending a file are asked once."""
EVENTS_A_PAGE = 100
MOST_JOBS = 1000
"""Looked through for the one that was made before."""
TIMEOUT, UPLOAD_TIMEOUT = 60.0, 1800.0

_STEP = re.compile(r"[Ss]tep (\d+)(?:/(\d+))?:.*?loss\s*=\s*([0-9.eE+-]+)")


class OpenAIClient:
    """The client, on OpenAI's own SDK.

    Args:
        provider: What it supports.
        base_url: Where it answers.
        key: Its key, or ``None``.
    """

    def __init__(self, provider: Provider, base_url: str, key: SecretStr | None) -> None:
        import openai

        self.provider = provider
        self.base_url = base_url
        self.key = key
        secret = key.get_secret_value() if key else "none"
        self.sdk = openai.OpenAI(base_url=base_url, api_key=secret, max_retries=RETRIES, timeout=TIMEOUT)
        self.once = self.sdk.with_options(max_retries=0)

    # --- files ------------------------------------------------------------------------------------------------------

    def upload(self, path: Path, name: str) -> str:
        """Send a file for fine-tuning."""
        with self._told(), path.open("rb") as file:
            made = self.once.files.create(file=(name, file), purpose="fine-tune", timeout=UPLOAD_TIMEOUT)
        return made.id

    def find_upload(self, name: str, size: int) -> str | None:
        """A file of this name and size."""
        with self._told():
            for file in self.sdk.files.list(purpose="fine-tune"):
                if file.filename == name and file.bytes == size and file.status != "error":
                    return file.id
        return None

    def content(self, file_id: str) -> bytes:
        """A file; results come in base64 from some servers, and are decoded."""
        with self._told():
            raw = self.sdk.files.content(file_id).read()
        try:
            return base64.b64decode(raw, validate=True) if raw[:5] != b"step," else raw
        except binascii.Error:
            return raw

    # --- jobs -------------------------------------------------------------------------------------------------------

    def create(self, order: JobOrder) -> Job:
        """Make a job."""
        body = self._body(order)
        with self._told():
            made = self.once.post(
                self._jobs, cast_to=object, body=body, options={"headers": {"Idempotency-Key": order.key}}
            )
        return self._job(as_mapping(made))

    def find(self, tag: str, training_file: str) -> list[Job]:
        """Jobs of one intent, newest first."""
        query = {f"metadata[{TAG}]": tag} if self.provider.tags else {}
        jobs = self._listed(MOST_JOBS, query)
        found = [job for job in jobs if (job.tag == tag if self.provider.tags else job.training_file == training_file)]
        return sorted(found, key=lambda job: -job.created_at)

    def job(self, job_id: str) -> Job:
        """A job as it is now."""
        with self._told():
            return self._job(as_mapping(self.sdk.get(f"{self._jobs}/{job_id}", cast_to=object)))

    def jobs(self, limit: int) -> list[Job]:
        """The newest jobs."""
        return self._listed(limit, {})

    def cancel(self, job_id: str) -> Job:
        """Stop a job for good."""
        with self._told():
            return self._job(as_mapping(self.sdk.post(f"{self._jobs}/{job_id}/cancel", cast_to=object)))

    def events(self, job_id: str, known: Set[str] = frozenset()) -> list[JobEvent]:
        """The events since those that are known, oldest first; the server gives the newest first."""
        with self._told():
            listed = self.sdk.fine_tuning.jobs.list_events(job_id, limit=EVENTS_A_PAGE)
            fresh = itertools.takewhile(lambda event: event.id not in known, listed)
            return [self._event(event.model_dump()) for event in fresh][::-1]

    def checkpoints(self, job_id: str) -> list[dict[str, Any]]:
        """What is left of the model's earlier states."""
        with self._told():
            found = self.sdk.fine_tuning.jobs.checkpoints.list(job_id)
            return [checkpoint.model_dump() for checkpoint in found]

    # --- models -----------------------------------------------------------------------------------------------------

    def models(self) -> list[dict[str, Any]]:
        """Models that the key may use."""
        with self._told():
            return [model.model_dump() for model in self.sdk.models.list()]

    def ask(self, model: str, messages: Sequence[Mapping[str, Any]], *, tools: Any, most_tokens: int) -> Answer:
        """Let a model answer greedily, where it lets itself be told so."""
        wanted = {"temperature": 0.0, self.provider.output_limit: most_tokens} | ({"tools": tools} if tools else {})
        started = time.perf_counter()
        try:
            made = self._completion(model, messages, wanted)
        except ProviderError as error:
            if error.status != 400 or "temperature" not in f"{error.where} {error.what}":
                raise
            wanted.pop("temperature")  # models that reason refuse it
            made = self._completion(model, messages, wanted)
        return _answer(made, time.perf_counter() - started)

    def stored_answers(self, model: str, limit: int) -> Iterator[list[dict[str, Any]]]:
        """Conversations that were asked with ``store: true``."""
        with self._told():
            kept = self.sdk.chat.completions
            for completion in itertools.islice(kept.list(model=model), limit):
                asked = [turn.model_dump() for turn in kept.messages.list(completion.id)]
                turns = [{"role": turn["role"], "content": turn.get("content")} for turn in asked]
                yield [*turns, {"role": "assistant", "content": completion.choices[0].message.content or ""}]

    # --- what others change -----------------------------------------------------------------------------------------

    _jobs = "/fine_tuning/jobs"
    _statuses: Mapping[str, Status] = {}
    """A provider's own words -> OpenAI's."""

    def _body(self, order: JobOrder) -> dict[str, Any]:
        """The request for a job."""
        settings = order.settings
        names = ("batch_size", "learning_rate_multiplier", *(("beta",) if order.method == "dpo" else ()))
        chosen: dict[str, Any] = {"n_epochs": settings.epochs} | {name: getattr(settings, name) for name in names}
        chosen = {name: value for name, value in chosen.items() if value != "auto"}
        extra = dict(settings.extra)
        chosen |= extra.pop("hyperparameters", {})
        body: dict[str, Any] = {"model": order.model, "training_file": order.training_file, "seed": order.seed}
        if self.provider.plain_hyperparameters:
            body["hyperparameters"] = chosen
        else:
            inner: dict[str, Any] = {"hyperparameters": chosen}
            if settings.grader is not None:
                inner["grader"] = settings.grader
            body["method"] = {"type": order.method, order.method: inner}
        if order.validation_file:
            body["validation_file"] = order.validation_file
        if settings.suffix:
            body["suffix"] = settings.suffix
        if self.provider.tags:
            body["metadata"] = {TAG: order.tag}
        return body | extra

    def _job(self, found: Mapping[str, Any]) -> Job:
        """A job of the provider as ours."""
        method = found.get("method") or {}
        kind = str(method.get("type") or "supervised")
        inner = (method.get(kind) or {}).get("hyperparameters") or found.get("hyperparameters") or {}
        error = found.get("error") or {}
        status = str(found.get("status"))
        return Job(
            id=str(found["id"]),
            status=self._statuses.get(status, status),  # type: ignore[arg-type]
            model=str(found.get("model")),
            tuned_model=found.get("fine_tuned_model"),
            training_file=found.get("training_file"),
            validation_file=found.get("validation_file"),
            created_at=int(found.get("created_at") or 0),
            finished_at=found.get("finished_at"),
            trained_tokens=found.get("trained_tokens"),
            error=self._scrub(str(error["message"])) if error.get("message") else None,
            result_files=list(found.get("result_files") or []),
            hyperparameters=dict(inner),
            method=kind,
            grader=(method.get(kind) or {}).get("grader"),
            seed=found.get("seed"),
            suffix=found.get("user_provided_suffix") or found.get("suffix"),
            tag=(found.get("metadata") or {}).get(TAG),
        )

    def _listed(self, limit: int, query: Mapping[str, Any]) -> list[Job]:
        """Jobs, page by page."""
        found: list[Job] = []
        more, after = True, dict[str, str]()
        while more and len(found) < limit:
            with self._told():
                options: Any = {"params": {"limit": min(limit, 100), **after, **query}}
                page = as_mapping(self.sdk.get(self._jobs, cast_to=object, options=options))
            jobs = [self._job(job) for job in page.get("data") or []]
            found += jobs
            more = bool(page.get("has_more")) and bool(jobs)
            after = {"after": jobs[-1].id} if jobs else {}
        return found[:limit]

    def _event(self, found: Mapping[str, Any]) -> JobEvent:
        message, data = self._scrub(str(found.get("message") or "")), found.get("data") or {}
        told_step = _STEP.search(message)
        step = data.get("step") if isinstance(data, dict) else None
        loss = data.get("train_loss") if isinstance(data, dict) else None
        return JobEvent(
            id=str(found.get("id") or f"{found.get('created_at')}-{message}"),
            created_at=seconds(found.get("created_at")),
            level=str(found.get("level") or "info"),
            message=message,
            step=int(step) if step is not None else int(told_step[1]) if told_step else None,
            steps=(data.get("total_steps") if isinstance(data, dict) else None)
            or (int(told_step[2]) if told_step and told_step[2] else None),
            loss=float(loss) if loss is not None else float(told_step[3]) if told_step else None,
        )

    def _completion(self, model: str, messages: Sequence[Mapping[str, Any]], wanted: Mapping[str, Any]) -> Any:
        with self._told():
            body = {"model": model, "messages": list(messages), **wanted}
            return self.sdk.post("/chat/completions", cast_to=object, body=body)

    def _told(self) -> Any:
        return told(self.provider, self.base_url, self.key)

    def _scrub(self, text: str) -> str:
        return scrub(text, self.key)


def _answer(made: Any, seconds: float) -> Answer:
    found = as_mapping(made)
    message = ((found.get("choices") or [{}])[0]).get("message") or {}
    usage = found.get("usage") or {}
    details = usage.get("prompt_tokens_details") or {}
    turn: dict[str, Any] = {"content": message.get("content") or message.get("refusal") or ""}
    if message.get("tool_calls"):
        turn = conversations.as_messages([{"role": "assistant", **turn, "tool_calls": message["tool_calls"]}])[0]
    return Answer(
        text=conversations.text_of(turn).strip(),
        prompt_tokens=int(usage.get("prompt_tokens") or 0),
        cached_tokens=int(details.get("cached_tokens") or 0),
        written_tokens=int(usage.get("completion_tokens") or 0),
        seconds=seconds,
    )


def as_mapping(found: Any) -> dict[str, Any]:
    """A response as an object.

    Raises:
        ProviderError: It is something else: the address is of another server.
    """
    if isinstance(found, str):
        try:
            found = json.loads(found)
        except ValueError:
            found = None
    if not isinstance(found, dict):
        raise ProviderError("the answer is no JSON object", fix="is the address right? `--base-url` ends in /v1")
    return found


def seconds(value: Any) -> float:
    """Unix seconds of a number, or of a time in ISO 8601."""
    if isinstance(value, int | float):
        return float(value)
    try:
        return datetime.fromisoformat(str(value)).timestamp()
    except ValueError:
        return 0.0
