"""OpenAI's grader objects as requests bring them: which of them can run here, and what they make of an answer.

A grader of Python is code that a client sends. It runs in a process of its own without network or files
(:mod:`tunesmith.rewards.sandbox`), and only where whoever started the server said so.
"""

from __future__ import annotations

import ast
import time
from typing import Any

from tunesmith.data.rows import Origin, Row
from tunesmith.errors import RecipeError, RewardError
from tunesmith.rewards import Answered
from tunesmith.rewards.graders import NoSuchFieldError, calculate, compiled
from tunesmith.server.errors import ApiError
from tunesmith.server.schemas import Grader, Multi

SECONDS = 20.0
"""How long a grader may take for one answer when it is tried."""


def accepted(grader: Grader, *, python: bool, param: str) -> dict[str, Any]:
    """A grader that can run here, as the recipe takes it.

    Args:
        grader: As the request has it.
        python: Whether graders of Python may run.
        param: Where it stands in the request, for the error.

    Raises:
        ApiError: 400, with what cannot run and what to use instead.
    """
    value: dict[str, Any] = grader.model_dump(exclude_none=True)
    if isinstance(grader, Multi) and not isinstance(grader.graders, dict):
        value["graders"] = {grader.graders.name: value["graders"]}
    for part in [value, *value.get("graders", {}).values()]:
        if part["type"] in ("score_model", "label_model"):
            message = f"The grader type '{part['type']}' is not supported: no model judges the answers of a job here."
            raise ApiError(400, message, code="unsupported_grader", param=param)
        if part["type"] == "python" and not python:
            message = (
                "Graders of Python are not allowed on this server: they run code that the request brings. If everybody "
                "who may tune is trusted, start it with `--python-graders`; else use another type."
            )
            raise ApiError(400, message, code="unsupported_grader", param=param)
    try:
        compiled(value, SECONDS)
    except RecipeError as error:
        message = f"{error.what}." + (f" How to mend it: {error.fix}." if error.fix else "")
        raise ApiError(400, message, code="invalid_grader", param=param) from error
    return value


def tried(grader: dict[str, Any], text: str, item: dict[str, Any]) -> dict[str, Any]:
    """What a grader makes of one answer, as ``/graders/run`` says it. A grader that fails gives 0 and the reason.

    Args:
        grader: From :func:`accepted`.
        text: The answer.
        item: What ``{{item.x}}`` names.
    """
    answer = Answered([], text, "", Row({"item": item}, Origin("item", 1)))
    errors: dict[str, Any] = dict.fromkeys(_ERRORS, False)
    parts: dict[str, float] = {}
    started, reward = time.monotonic(), 0.0
    try:
        if grader["type"] == "multi":
            for name, part in grader["graders"].items():
                [parts[name]] = compiled(part, SECONDS)([answer])
            reward = calculate(ast.parse(grader["calculate_output"], mode="eval").body, parts)
        else:
            [reward] = compiled(grader, SECONDS)([answer])
    except RewardError as error:
        kind, detail = _kind(error)
        errors[kind] = True
        if detail is not None:
            errors[f"{kind}_details"] = detail
    except (ArithmeticError, RecipeError):
        errors["other_error"] = True
    return {
        "reward": reward,
        "sub_rewards": parts,
        "metadata": {
            "name": grader["name"],
            "type": grader["type"],
            "errors": errors,
            "execution_time": time.monotonic() - started,
            "scores": parts or {grader["name"]: reward},
            "token_usage": None,
            "sampled_model_name": None,
        },
        "model_grader_token_usage_per_model": {},
    }


_ERRORS = (
    "formula_parse_error", "sample_parse_error", "truncated_observation_error", "unresponsive_reward_error",
    "invalid_variable_error", "other_error", "python_grader_server_error", "python_grader_runtime_error",
    "model_grader_server_error", "model_grader_refusal_error", "model_grader_parse_error",
)  # fmt: skip


def _kind(error: RewardError) -> tuple[str, str | None]:
    if isinstance(error, NoSuchFieldError):
        return "invalid_variable_error", None
    return "python_grader_runtime_error", error.what
