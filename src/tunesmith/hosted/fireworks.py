"""Fireworks AI: data sets and jobs below an account, as its public API reference has them.

Questions go to its OpenAI-compatible address. A tuned model answers once it is deployed, which is done there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from tunesmith.errors import UsageError
from tunesmith.hosted.client import Answer, Job, JobEvent, JobOrder, ProviderError, Status
from tunesmith.hosted.openai_api import UPLOAD_TIMEOUT, OpenAIClient, as_mapping, seconds
from tunesmith.hosted.table import Provider


class FireworksClient(OpenAIClient):
    """What differs. ``base_url`` is the address without a path."""

    _statuses: Mapping[str, Status] = {
        "JOB_STATE_CREATING": "validating_files",
        "JOB_STATE_PENDING": "queued",
        "JOB_STATE_VALIDATING": "validating_files",
        "JOB_STATE_RUNNING": "running",
        "JOB_STATE_WRITING_RESULTS": "running",
        "JOB_STATE_COMPLETED": "succeeded",
        "JOB_STATE_FAILED": "failed",
        "JOB_STATE_CANCELLED": "cancelled",
        "JOB_STATE_EXPIRED": "failed",
    }

    def __init__(self, provider: Provider, base_url: str, key: SecretStr | None) -> None:
        variable = provider.account_env or ""
        account = os.environ.get(variable, "")
        if not account:
            raise UsageError(f"{provider.what} wants the account's id", where=variable, fix=f"export {variable}=...")
        super().__init__(provider, base_url.rstrip("/") + "/inference/v1", key)
        root = f"{base_url.rstrip('/')}/v1/accounts/{account}"
        self.account = f"accounts/{account}"
        self._datasets = f"{root}/datasets"
        self._jobs = f"{root}/supervisedFineTuningJobs"

    def upload(self, path: Path, name: str) -> str:
        """Make a data set and fill it; its id is the file's name."""
        dataset = Path(name).stem.replace("_", "-")
        with path.open("rb") as file:
            rows = sum(1 for line in file if line.strip())
        with self._told():
            body = {"datasetId": dataset, "dataset": {"userUploaded": {}, "exampleCount": str(rows), "format": "CHAT"}}
            self.once.post(self._datasets, cast_to=object, body=body)
            with path.open("rb") as file:
                options: Any = {"headers": {"Content-Type": "multipart/form-data"}, "timeout": UPLOAD_TIMEOUT}
                self.once.post(
                    f"{self._datasets}/{dataset}:upload",
                    cast_to=object,
                    files=[("file", (name, file))],
                    options=options,
                )
        return dataset

    def find_upload(self, name: str, size: int) -> str | None:
        """The data set of this name, if its rows have arrived."""
        dataset = Path(name).stem.replace("_", "-")
        try:
            with self._told():
                found = as_mapping(self.sdk.get(f"{self._datasets}/{dataset}", cast_to=object))
        except ProviderError as error:
            if error.status == 404:
                return None
            raise
        return dataset if found.get("state") == "READY" else None

    def content(self, file_id: str) -> bytes:
        """Not offered in one request."""
        raise ProviderError(f"{self.provider.what} gives no file back by its id", fix="use your own copy of the data")

    def cancel(self, job_id: str) -> Job:
        """Its reference names no path for this."""
        raise ProviderError(
            f"{self.provider.what} documents no request that cancels a job",
            fix=f"firectl supervised-fine-tuning-job cancel {job_id}",
        )

    def _body(self, order: JobOrder) -> dict[str, Any]:
        settings = order.settings
        body = {
            "displayName": f"tunesmith-{order.tag}",
            "baseModel": order.model,
            "dataset": f"{self.account}/datasets/{order.training_file}",
            "evaluationDataset": f"{self.account}/datasets/{order.validation_file}" if order.validation_file else None,
            "outputModel": settings.suffix,
            "epochs": settings.epochs,
            "learningRate": settings.learning_rate_multiplier,
            "batchSizeSamples": settings.batch_size,
        }
        return {name: value for name, value in body.items() if value not in (None, "auto")} | dict(settings.extra)

    def _job(self, found: Mapping[str, Any]) -> Job:
        state = str(found.get("state"))
        failed = state == "JOB_STATE_FAILED"
        tag = str(found.get("displayName") or "")
        return Job(
            id=str(found.get("name", "")).rpartition("/")[2],
            status=self._statuses.get(state, "running"),
            model=str(found.get("baseModel")),
            tuned_model=found.get("outputModel") if state == "JOB_STATE_COMPLETED" else None,
            training_file=str(found.get("dataset", "")).rpartition("/")[2] or None,
            validation_file=str(found.get("evaluationDataset") or "").rpartition("/")[2] or None,
            created_at=int(seconds(found.get("createTime"))),
            finished_at=int(seconds(found["completedTime"])) if found.get("completedTime") else None,
            error=self._scrub(str((found.get("status") or {}).get("message"))) if failed else None,
            hyperparameters={"n_epochs": found["epochs"]} if found.get("epochs") else {},
            tag=tag.removeprefix("tunesmith-") if tag.startswith("tunesmith-") else None,
        )

    def _listed(self, limit: int, query: Mapping[str, Any]) -> list[Job]:
        jobs: list[Job] = []
        token = ""
        while len(jobs) < limit:
            with self._told():
                options: Any = {"params": {"pageSize": min(limit, 100), **({"pageToken": token} if token else {})}}
                page = as_mapping(self.sdk.get(self._jobs, cast_to=object, options=options))
            jobs += [self._job(job) for job in page.get("supervisedFineTuningJobs") or []]
            token = str(page.get("nextPageToken") or "")
            if not token:
                break
        return jobs[:limit]

    def events(self, job_id: str, known: Set[str] = frozenset()) -> list[JobEvent]:
        """How far the job is; it keeps no log that could be asked for."""
        with self._told():
            found = as_mapping(self.sdk.get(f"{self._jobs}/{job_id}", cast_to=object))
        progress = found.get("jobProgress") or {}
        state = str(found.get("state")).removeprefix("JOB_STATE_").lower()
        text = f"{state}, {progress.get('percent', 0)} %, epoch {progress.get('epoch', 0)}"
        event = JobEvent(id=text, created_at=seconds(found.get("updateTime")), level="info", message=text)
        return [] if text in known else [event]

    def checkpoints(self, job_id: str) -> list[dict[str, Any]]:
        """None are offered."""
        return []

    def ask(self, model: str, messages: Sequence[Mapping[str, Any]], *, tools: Any, most_tokens: int) -> Answer:
        """Let a deployed model answer."""
        try:
            return super().ask(model, messages, tools=tools, most_tokens=most_tokens)
        except ProviderError as error:
            if error.status == 404:
                error.fix = f"deploy it: firectl deployment create {model}"
            raise

    def stored_answers(self, model: str, limit: int) -> Iterator[list[dict[str, Any]]]:
        """None are kept."""
        return iter(())
