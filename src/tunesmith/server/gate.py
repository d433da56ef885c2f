"""What every request passes before it reaches a route: Host, Origin, Azure's paths, a token, the size of the body.

Plain ASGI, so that nothing of a body is read before its sender is known.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tunesmith.server.auth import LOCAL, PUBLIC, FailureLimit, Principal
from tunesmith.server.errors import ApiError

if TYPE_CHECKING:
    from tunesmith.server.auth import Tokens
    from tunesmith.server.settings import Settings

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
AZURE_DEPLOYMENT = re.compile(r"^/openai/deployments/(.+?)(/(?:chat/completions|completions|embeddings|responses))$")
STREAMED = re.compile(r"^/v1/(files|uploads/[^/]+/parts)$")
"""Bodies that go straight to the disk; their own limits are checked there."""


class Gate:
    """Refuses or lets through.

    Args:
        app: What lies behind.
        settings: Limits and names.
        tokens: Who may enter; on loopback nobody needs one while there is none.
        observe: Told method, route, status and seconds of each answer.
    """

    def __init__(
        self, app: ASGIApp, settings: Settings, tokens: Tokens, observe: Callable[[str, str, int, float], None]
    ) -> None:
        self.app = app
        self.observe = observe
        self.settings = settings
        self.tokens = tokens
        self.failures = FailureLimit(settings.max_failures)
        self._hosts = {host.lower() for host in settings.allowed_hosts} | (
            LOOPBACK_NAMES if settings.is_loopback else set()
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":  # the lifespan; there are no web sockets here
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def noted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self._answer(scope, receive, noted)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            self.observe(scope["method"], route, status, time.perf_counter() - started)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        try:
            self._check_host(headers)
            self._check_origin(headers)
            _translate_azure(scope)
            scope.setdefault("state", {})["principal"] = self._principal(scope, headers)
            receive = self._capped(scope, headers, receive)
        except ApiError as error:
            await error.response()(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _check_host(self, headers: Headers) -> None:
        """A page of another site whose name was made to point here (DNS rebinding) sends that site's name."""
        host = _without_port(headers.get("host", ""))
        if self._hosts and host not in self._hosts:
            raise ApiError(403, f"This server does not answer to the name {host!r}.", code="host_not_allowed")

    def _check_origin(self, headers: Headers) -> None:
        """Browsers say which page a request comes from; other sites' pages, and nameless ones, are refused."""
        origin = headers.get("origin")
        if origin is None:
            return
        page, here = urlsplit(origin).netloc.lower(), headers.get("host", "").lower()
        if not page or (page != here and _without_port(page) not in self.settings.allowed_hosts):
            raise ApiError(403, f"Requests from pages of {origin!r} are refused.", code="origin_not_allowed")

    def _principal(self, scope: Scope, headers: Headers) -> Principal | None:
        if scope["path"] in PUBLIC:
            return None
        if not self.tokens and self.settings.is_loopback:  # the last may have been revoked since the start
            return LOCAL
        address = (scope.get("client") or ("unknown",))[0]
        if (wait := self.failures.wait(address)) > 0:
            raise ApiError(
                429,
                "Too many wrong tokens from this address.",
                code="too_many_failures",
                headers={"Retry-After": str(int(wait) + 1)},
            )
        kind, _, token = headers.get("authorization", "").partition(" ")
        token = token.strip() if kind.lower() == "bearer" else headers.get("api-key", "")
        who = self.tokens.principal(token) if token else None
        if who is None:
            if token:
                self.failures.failed(address)
            message = "Incorrect API key provided." if token else "You didn't provide an API key."
            code = "invalid_api_key" if token else "missing_api_key"
            raise ApiError(401, message, code=code, headers={"WWW-Authenticate": "Bearer"})
        return who

    def _capped(self, scope: Scope, headers: Headers, receive: Receive) -> Receive:
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise ApiError(415, "Compressed request bodies are not accepted.", code="unsupported_media_type")
        if STREAMED.match(scope["path"]):
            return receive
        limit = self.settings.max_body_bytes
        try:
            announced = int(headers.get("content-length", "0"))
        except ValueError:
            raise ApiError(400, "The header Content-Length is no number.") from None
        if announced > limit:
            raise _too_large(limit)
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > limit:
                raise _too_large(limit)
            return message

        return counted


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"The body is larger than {limit} bytes.", code="request_too_large")


def _without_port(host: str) -> str:
    return re.sub(r":\d*$", "", host.lower())


def _translate_azure(scope: Scope) -> None:
    """Azure's paths mean the same as OpenAI's: ``/openai/v1/X``, ``/openai/X``, ``/openai/deployments/MODEL/X``.

    The deployment is the model, for clients that do not repeat it in the body: routes find it as
    ``request.state.deployment``.
    """
    path: str = scope["path"]
    if not path.startswith("/openai/"):
        return
    deployment = AZURE_DEPLOYMENT.match(path)
    if deployment:
        scope.setdefault("state", {})["deployment"] = deployment[1]
        path = f"/v1{deployment[2]}"
    else:
        path = f"/v1/{path.removeprefix('/openai/').removeprefix('v1/')}"
    scope["path"] = path
    scope["raw_path"] = path.encode()
