"""Mistral's variant of OpenAI's API: lists of files, jobs that start by themselves, states in capitals.

Paths and states are those of its public API reference.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from tunesmith.hosted.client import Job, JobEvent, JobOrder, Status
from tunesmith.hosted.openai_api import OpenAIClient, as_mapping


class MistralClient(OpenAIClient):
    """What differs."""

    _statuses: Mapping[str, Status] = {
        "QUEUED": "queued",
        "STARTED": "queued",
        "VALIDATING": "validating_files",
        "VALIDATED": "queued",
        "RUNNING": "running",
        "FAILED_VALIDATION": "failed",
        "FAILED": "failed",
        "SUCCESS": "succeeded",
        "CANCELLED": "cancelled",
        "CANCELLATION_REQUESTED": "running",
    }

    def _body(self, order: JobOrder) -> dict[str, Any]:
        settings = order.settings
        chosen = {"epochs": settings.epochs, "learning_rate": settings.learning_rate_multiplier}
        body = {
            "model": order.model,
            "training_files": [{"file_id": order.training_file, "weight": 1}],
            "validation_files": [order.validation_file] if order.validation_file else [],
            "hyperparameters": {name: value for name, value in chosen.items() if value != "auto"},
            "suffix": settings.suffix,
            "auto_start": True,
        }
        return body | dict(settings.extra)

    def _job(self, found: Mapping[str, Any]) -> Job:
        files = {name: next(iter(found.get(f"{name}s") or []), None) for name in ("training_file", "validation_file")}
        message = found.get("message") or found.get("error")
        return super()._job({**found, **files, "error": {"message": message} if message else None})

    def _listed(self, limit: int, query: Mapping[str, Any]) -> list[Job]:
        jobs: list[Job] = []
        for page in range(-(-limit // 100)):
            with self._told():
                options: Any = {"params": {"page": page, "page_size": min(limit, 100)}}
                found = as_mapping(self.sdk.get(self._jobs, cast_to=object, options=options)).get("data") or []
            jobs += [self._job(job) for job in found]
            if len(found) < min(limit, 100):
                break
        return jobs[:limit]

    def events(self, job_id: str, known: Set[str] = frozenset()) -> list[JobEvent]:
        """States and losses, which stand in the job itself."""
        with self._told():
            found = as_mapping(self.sdk.get(f"{self._jobs}/{job_id}", cast_to=object))
        states = [
            {
                "id": f"{event.get('name')}-{event.get('created_at')}",
                "created_at": event.get("created_at"),
                "message": " ".join(
                    str(part) for part in (event.get("name"), (event.get("data") or {}).get("status")) if part
                ),
            }
            for event in found.get("events") or []
        ]
        losses = [
            {
                "id": f"step-{point.get('step_number')}",
                "created_at": point.get("created_at"),
                "message": f"Step {point.get('step_number')}",
                "data": {
                    "step": point.get("step_number"),
                    "train_loss": (point.get("metrics") or {}).get("train_loss"),
                },
            }
            for point in found.get("checkpoints") or []
        ]
        events = sorted((self._event(event) for event in [*states, *losses]), key=lambda event: event.created_at)
        return [event for event in events if event.id not in known]

    def checkpoints(self, job_id: str) -> list[dict[str, Any]]:
        """Losses on the way; the weights behind them are not offered."""
        with self._told():
            return list(as_mapping(self.sdk.get(f"{self._jobs}/{job_id}", cast_to=object)).get("checkpoints") or [])
