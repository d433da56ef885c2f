"""Who is asking, and what they may do.

Authentication is a gate before all routes (:mod:`tunesmith.server.gate`): a path that is not in :data:`PUBLIC` needs a
token as soon as there is one. Each route then names the scope that it takes with :func:`require`.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import filelock
from fastapi import Depends, Request
from fastapi.security import APIKeyHeader, HTTPBearer
from pydantic import SecretStr

from tunesmith import disk
from tunesmith.errors import NotFoundError, UsageError
from tunesmith.server.errors import ApiError

Scope = Literal["admin", "tune", "infer"]
SCOPES: tuple[Scope, ...] = ("admin", "tune", "infer")
PUBLIC = frozenset({"/health", "/", "/dashboard", "/docs", "/openapi.json"})
"""Paths without a token: a sign of life, a description whose source is public anyway, and pages without data."""
WINDOW_SECONDS = 60.0
"""How long a wrong token counts against the address that it came from."""


@dataclass(frozen=True)
class Principal:
    """Somebody who asks.

    Attributes:
        name: Name of the token.
        owner: Whose files, jobs and models are meant: the project.
        scopes: What the token is good for; ``admin`` includes the others, and sees everybody's.
    """

    name: str
    owner: str
    scopes: frozenset[str]

    @property
    def is_admin(self) -> bool:
        """Whether all files, jobs and models may be seen."""
        return "admin" in self.scopes

    def may(self, scope: str) -> bool:
        """Whether a scope is among the rights."""
        return self.is_admin or scope in self.scopes

    def sees(self, owner: str) -> bool:
        """Whether what belongs to ``owner`` exists for this principal."""
        return self.is_admin or owner == self.owner


LOCAL = Principal("local", "local", frozenset(SCOPES))
"""Whoever can reach a server that listens on loopback and has no tokens."""


@dataclass(frozen=True)
class StoredToken:
    """A token as it is kept: nobody can read the token back from it."""

    name: str
    sha256: str
    scopes: list[str]
    owner: str
    created_at: float


def digest(token: str) -> str:
    """SHA-256 suffices for tokens of 256 random bits: there is nothing to guess that a slow hash would protect."""
    return hashlib.sha256(token.encode()).hexdigest()


class Tokens:
    """The tokens of a data folder: ``tokens.json``, readable by its owner only.

    Args:
        data: The server's data folder.
        master: A further token with all rights, from the command line.
    """

    def __init__(self, data: Path, master: SecretStr | None = None) -> None:
        self.path = data / "tokens.json"
        self._master = digest(master.get_secret_value()) if master else None
        self._seen: tuple[float, list[StoredToken]] = (-1.0, [])

    def __bool__(self) -> bool:
        return self._master is not None or bool(self.all())

    def all(self) -> list[StoredToken]:
        """Every stored token; a change by another process counts at once."""
        try:
            changed = self.path.stat().st_mtime_ns / 1e9
        except FileNotFoundError:
            return []
        if changed != self._seen[0]:
            values = json.loads(self.path.read_text(encoding="utf-8"))
            self._seen = (changed, [StoredToken(**value) for value in values])
        return self._seen[1]

    def principal(self, token: str) -> Principal | None:
        """Whose token this is. Every stored one is compared, in a time that does not depend on which fits."""
        given = digest(token)
        found = None
        if self._master is not None and hmac.compare_digest(self._master, given):
            found = Principal("master", "local", frozenset(SCOPES))
        for stored in self.all():
            if hmac.compare_digest(stored.sha256, given):
                found = Principal(stored.name, stored.owner, frozenset(stored.scopes))
        return found

    def add(self, name: str, scopes: Iterable[str], owner: str | None = None) -> SecretStr:
        """Make a token; it is shown once and kept as a hash.

        Raises:
            UsageError: The name is taken or malformed, or a scope is unknown.
        """
        scopes = sorted(set(scopes))
        if not scopes or set(scopes) - set(SCOPES):
            raise UsageError(f"scopes are {', '.join(SCOPES)}, not {scopes}", where="--scope")
        for given in (name, owner or name):
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", given):
                raise UsageError(f"{given!r} is no name", fix="letters, digits, `.`, `_` and `-`, at most 64")
        token = f"sk-tunesmith-{secrets.token_urlsafe(32)}"
        with self._changing():
            known = self.all()
            if any(stored.name == name for stored in known):
                raise UsageError(f"there is a token {name!r} already", fix=f"tunesmith serve token revoke {name}")
            self._write([*known, StoredToken(name, digest(token), scopes, owner or name, time.time())])
        return SecretStr(token)

    def revoke(self, name: str) -> None:
        """Forget a token.

        Raises:
            NotFoundError: There is none of this name.
        """
        with self._changing():
            left = [stored for stored in self.all() if stored.name != name]
            if len(left) == len(self.all()):
                raise NotFoundError(f"there is no token {name!r}", fix="tunesmith serve token list")
            self._write(left)

    def _changing(self) -> filelock.BaseFileLock:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return filelock.FileLock(self.path.with_suffix(".lock"), timeout=10)

    def _write(self, tokens: list[StoredToken]) -> None:
        disk.write_json(self.path, [asdict(stored) for stored in tokens])
        os.chmod(self.path, 0o600)
        self._seen = (-1.0, [])


class FailureLimit:
    """Slows the guessing of tokens down: an address that failed too often has to wait."""

    def __init__(self, failures: int, window: float = WINDOW_SECONDS) -> None:
        self.failures, self.window = failures, window
        self._times: dict[str, list[float]] = {}
        self._lock = threading.Lock()

    def wait(self, address: str) -> float:
        """Seconds until this address may try again; 0 if it may now."""
        with self._lock:
            recent = self._recent(address)
            return recent[0] + self.window - time.monotonic() if len(recent) >= self.failures else 0.0

    def failed(self, address: str) -> None:
        """Count a failure."""
        with self._lock:
            if len(self._times) > 10_000:  # many addresses: forget those whose window is over
                self._times = {known: times for known in list(self._times) if (times := self._recent(known))}
            self._times[address] = [*self._recent(address), time.monotonic()][-self.failures :]

    def _recent(self, address: str) -> list[float]:
        oldest = time.monotonic() - self.window
        return [moment for moment in self._times.get(address, ()) if moment > oldest]


_bearer = HTTPBearer(auto_error=False, description="A token of this server, as OpenAI's clients send it.")
_api_key = APIKeyHeader(name="api-key", auto_error=False, description="The same, as Azure's clients send it.")


def require(scope: Scope) -> Callable[..., Principal]:
    """A dependency that lets only those through whose token has ``scope``, and says who it is."""

    def principal(
        request: Request,
        bearer: Annotated[object, Depends(_bearer)],
        api_key: Annotated[object, Depends(_api_key)],
    ) -> Principal:
        who: Principal = request.state.principal  # set by the gate, which lets nobody else in
        if not who.may(scope):
            raise ApiError(403, f"The token {who.name!r} lacks the scope {scope!r}.", code="insufficient_permissions")
        return who

    principal.scope = scope  # type: ignore[attr-defined]  # read by the test that enumerates all routes
    return principal


Tuner = Annotated[Principal, Depends(require("tune"))]
"""The parameter type of routes that take or show files and jobs."""
Inferrer = Annotated[Principal, Depends(require("infer"))]
"""The parameter type of routes that use models."""
Admin = Annotated[Principal, Depends(require("admin"))]
"""The parameter type of routes for whoever runs the server."""
