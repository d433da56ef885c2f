"""Every error of the server in OpenAI's form: ``{"error": {"message", "type", "param", "code"}}``."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from tunesmith.errors import NotFoundError, ResourceError, TunesmithError

log = logging.getLogger("tunesmith.server")

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
    507: "server_error",
}
CODES = {404: "not_found", 405: "method_not_allowed", 413: "request_too_large", 415: "unsupported_media_type"}


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """The body of every response that is no success."""

    error: ErrorDetail


class ApiError(HTTPException):
    """An answer that is no success.

    Args:
        status: HTTP status.
        message: What is wrong and how to mend it, for people.
        code: Stable name of the kind, for programs.
        param: The field of the request that is meant.
        headers: Such as ``Retry-After``.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, headers)
        self.code = code
        self.param = param

    def response(self) -> JSONResponse:
        """The error as it is sent."""
        return error_response(self.status_code, str(self.detail), self.code, self.param, dict(self.headers or {}))


def not_found(kind: str, name: str, *, param: str = "id") -> ApiError:
    """There is no such thing, or it is not this user's: the two look the same from outside."""
    return ApiError(404, f"No such {kind}: {name}", code="not_found", param=param)


def error_response(
    status: int,
    message: str,
    code: str | None = None,
    param: str | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    """An error in OpenAI's form. Clients retry what a second try may mend, and are told not to retry the rest."""
    kind = TYPES.get(status, "invalid_request_error")
    detail = ErrorDetail(message=message, type=kind, param=param, code=code or CODES.get(status))
    sent = ({"x-should-retry": "false"} if status in (409, 500, 507) else {}) | (headers or {})
    return JSONResponse({"error": detail.model_dump()}, status, headers=sent)


def add_handlers(app: FastAPI) -> None:
    """Answer every exception in this form."""
    app.add_exception_handler(HTTPException, _from_http)
    app.add_exception_handler(RequestValidationError, _from_validation)
    app.add_exception_handler(TunesmithError, _from_tunesmith)
    app.add_exception_handler(OSError, _from_os)
    app.add_exception_handler(Exception, _from_defect)


def _from_http(request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, ApiError):
        return error.response()
    assert isinstance(error, HTTPException)
    message = str(error.detail)
    if error.status_code == 404:
        message = f"Unknown request URL: {request.method} {request.url.path}"
    return error_response(error.status_code, message, None, None, dict(error.headers or {}))


def _from_validation(request: Request, error: Exception) -> JSONResponse:
    """OpenAI answers 400 to a malformed body, where FastAPI would answer 422."""
    assert isinstance(error, RequestValidationError)
    problems: Sequence[dict[str, Any]] = error.errors()
    problem = problems[0]
    place = _place(problem, error.body)
    if problem["type"] == "json_invalid":
        return error_response(400, f"The body is not valid JSON: {problem['ctx']['error']}", "invalid_json")
    name = _written(place) or "body"
    if problem["type"] == "missing":
        return error_response(400, f"Missing required parameter: '{name}'.", "missing_parameter", name)
    if problem["type"] == "extra_forbidden":
        return error_response(400, f"Unknown parameter: '{name}'.", "unknown_parameter", name)
    if problem["type"] == "none_required" or problem.get("ctx", {}).get("max_length") == 0:
        return error_response(400, f"This server does not support '{name}'.", "unsupported_parameter", name)
    reasons = list(dict.fromkeys(p["msg"] for p in problems if _place(p, error.body) == place))  # one per alternative
    reasons[1:] = [reason.removeprefix("Input should be ") for reason in reasons[1:]]
    return error_response(400, f"Invalid value: {' or '.join(reasons)}: '{name}'.", "invalid_value", name)


def _written(place: list[str]) -> str:
    """A path as OpenAI writes it: ``messages[0].content``."""
    return "".join(f"[{step}]" if step.isdigit() else f".{step}" for step in place).removeprefix(".")


def _place(problem: dict[str, Any], body: Any) -> list[str]:
    """The path of a field as the client wrote it: pydantic's has the names of a union's alternatives in it, too."""
    source, *path = problem["loc"]
    if source != "body":
        return [str(step) for step in path]
    place = []
    for number, step in enumerate(path):
        absent = problem["type"] == "missing" and number == len(path) - 1
        if absent or (isinstance(body, dict) and step in body) or (isinstance(body, list) and isinstance(step, int)):
            place.append(str(step))
            body = None if absent else body[step]
    return place


def _from_tunesmith(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, TunesmithError)
    status = 404 if isinstance(error, NotFoundError) else 507 if isinstance(error, ResourceError) else 400
    message = error.what + (f". How to mend it: {error.fix}" if error.fix else "")
    return error_response(status, message, error.code)


def _from_os(request: Request, error: Exception) -> JSONResponse:
    """A full disk above all. Nothing was stored: what is stored is stored whole."""
    assert isinstance(error, OSError)
    log.error("%s %s: %s", request.method, request.url.path, error)
    return error_response(
        507, f"The server could not read or write its data: {error.strerror}.", "insufficient_storage"
    )


def _from_defect(request: Request, error: Exception) -> JSONResponse:
    log.error("defect while answering %s %s", request.method, request.url.path, exc_info=error)
    return error_response(500, "The server had an error; its log says which.", "internal_error")
