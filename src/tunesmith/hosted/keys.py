"""Keys of providers: from the environment, or from a keyring if one is installed, in a type that never prints."""

from __future__ import annotations

import importlib
import os
from typing import Any

from pydantic import SecretStr

from tunesmith.errors import ResourceError
from tunesmith.hosted.table import Provider

SERVICE = "tunesmith"
"""Under which a keyring keeps keys; the user name there is the provider's."""


def key_of(name: str, provider: Provider) -> SecretStr | None:
    """The key of a provider; ``None`` where it needs none.

    Raises:
        ResourceError: There is none, with the variable to set.
    """
    for variable in provider.key_env:
        if value := os.environ.get(variable, "").strip():
            return SecretStr(value)
    if kept := _from_keyring(name):
        return SecretStr(kept)
    if not provider.key_needed:
        return None
    raise ResourceError(
        f"there is no key for {provider.what}",
        where=provider.key_env[0],
        fix=f"export {provider.key_env[0]}=..., or with the package keyring: `keyring set {SERVICE} {name}`",
    )


def _from_keyring(name: str) -> str | None:
    try:
        keyring: Any = importlib.import_module("keyring")
        found = keyring.get_password(SERVICE, name)
    except Exception:  # not installed, or no keyring on this machine: its own errors are many
        return None
    return str(found) if found else None


def scrub(text: str, key: SecretStr | None) -> str:
    """A text without the key: servers repeat what they were sent, in errors and in logs."""
    return text if key is None else text.replace(key.get_secret_value(), "***")
