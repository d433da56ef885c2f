"""Together AI: files by ``/files/upload``, jobs by ``/fine-tunes``, as its public API reference has them."""

from __future__ import annotations

from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from tunesmith.hosted.client import Job, JobEvent, JobOrder, Status
from tunesmith.hosted.openai_api import UPLOAD_TIMEOUT, OpenAIClient, as_mapping, seconds


class TogetherClient(OpenAIClient):
    """What differs."""

    _jobs = "/fine-tunes"
    _statuses: Mapping[str, Status] = {
        "pending": "validating_files",
        "compressing": "running",
        "uploading": "running",
        "cancel_requested": "running",
        "user_error": "failed",
        "error": "failed",
        "completed": "succeeded",
    }

    def upload(self, path: Path, name: str) -> str:
        """Send a file for fine-tuning."""
        with self._told(), path.open("rb") as file:
            made = self.once.post(
                "/files/upload",
                cast_to=object,
                body={"purpose": "fine-tune", "file_name": name, "file_type": "jsonl"},
                files=[("file", (name, file))],
                options={"headers": {"Content-Type": "multipart/form-data"}, "timeout": UPLOAD_TIMEOUT},
            )
        return str(as_mapping(made)["id"])

    def find_upload(self, name: str, size: int) -> str | None:
        """A file of this name and size."""
        with self._told():
            files = as_mapping(self.sdk.get("/files", cast_to=object)).get("data") or []
        return next((f["id"] for f in files if f.get("filename") == name and f.get("bytes") in (size, 0)), None)

    def _body(self, order: JobOrder) -> dict[str, Any]:
        settings = order.settings
        chosen = {
            "n_epochs": settings.epochs,
            "batch_size": settings.batch_size,
            "learning_rate": settings.learning_rate_multiplier,
        }
        method: dict[str, Any] = {"method": "sft", "train_on_inputs": False}
        if order.method == "dpo":
            method = {"method": "dpo"} | ({} if settings.beta == "auto" else {"dpo_beta": settings.beta})
        body = {
            "model": order.model,
            "training_file": order.training_file,
            "training_method": method,
            "suffix": settings.suffix,
            "random_seed": order.seed,
            **{name: value for name, value in chosen.items() if value != "auto"},
        }
        if order.validation_file:
            body["validation_file"] = order.validation_file
        return {name: value for name, value in body.items() if value is not None} | dict(settings.extra)

    def _job(self, found: Mapping[str, Any]) -> Job:
        failed = next(
            (event.get("message") for event in found.get("events") or [] if event.get("level") == "error"), None
        )
        return super()._job(
            {
                **found,
                "created_at": seconds(found.get("created_at")),
                "fine_tuned_model": found.get("output_name") or found.get("model_output_name"),
                "trained_tokens": found.get("token_count"),
                "method": {"type": "dpo"} if (found.get("training_method") or {}).get("method") == "dpo" else None,
                "hyperparameters": {
                    name: found[name] for name in ("n_epochs", "batch_size", "learning_rate") if name in found
                },
                "error": {"message": failed} if failed else None,
            }
        )

    def _listed(self, limit: int, query: Mapping[str, Any]) -> list[Job]:
        with self._told():
            found = as_mapping(self.sdk.get(self._jobs, cast_to=object)).get("data") or []
        return sorted((self._job(job) for job in found), key=lambda job: -job.created_at)[:limit]

    def events(self, job_id: str, known: Set[str] = frozenset()) -> list[JobEvent]:
        """The events since those that are known, oldest first."""
        with self._told():
            found = as_mapping(self.sdk.get(f"{self._jobs}/{job_id}/events", cast_to=object)).get("data") or []
        events = [
            self._event({**event, "id": event.get("hash") or f"{event.get('created_at')}-{event.get('message')}"})
            for event in found
        ]
        fresh = (event for event in events if event.id not in known)
        return sorted(fresh, key=lambda event: event.created_at)

    def checkpoints(self, job_id: str) -> list[dict[str, Any]]:
        """States of the model that can be answered from or gone on with."""
        with self._told():
            return list(
                as_mapping(self.sdk.get(f"{self._jobs}/{job_id}/checkpoints", cast_to=object)).get("data") or []
            )
