"""``/v1/fine_tuning/alpha/graders``: try a grader before a job depends on it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, Field

from tunesmith.server import graders
from tunesmith.server.auth import Tuner
from tunesmith.server.schemas import Grader, Request
from tunesmith.server.services import Server

router = APIRouter(prefix="/v1/fine_tuning/alpha/graders", tags=["graders"])


class ValidateRequest(Request):
    """A grader to be checked."""

    grader: Grader


class RunRequest(ValidateRequest):
    """A grader, and an answer for it."""

    model_sample: str = Field(max_length=1_000_000)
    item: dict[str, Any] = Field(default={}, description="What `{{item.x}}` names.")


class ValidateResponse(BaseModel):
    """The grader as it will be used."""

    grader: dict[str, Any]


class RunResponse(BaseModel):
    """The reward, and what went wrong where it is 0 for that reason."""

    reward: float
    metadata: dict[str, Any]
    sub_rewards: dict[str, Any]
    model_grader_token_usage_per_model: dict[str, Any]


@router.post("/validate", response_model=ValidateResponse)
def validate_grader(body: ValidateRequest, server: Server, who: Tuner) -> ValidateResponse:
    """Check a grader."""
    python = server.settings.python_graders
    return ValidateResponse(grader=graders.accepted(body.grader, python=python, param="grader"))


@router.post("/run", response_model=RunResponse)
def run_grader(body: RunRequest, server: Server, who: Tuner) -> RunResponse:
    """Grade one answer."""
    grader = graders.accepted(body.grader, python=server.settings.python_graders, param="grader")
    return RunResponse(**graders.tried(grader, body.model_sample, body.item))
