"""From bodies of requests to prompts and lengths, without a server."""

from __future__ import annotations

from typing import Any

import pytest

from tunesmith.data.conversations import as_messages
from tunesmith.server.bodies import ChatMessage
from tunesmith.server.prompts import plain_message


@pytest.mark.parametrize("role", ["system", "developer", "user", "assistant"])
def test_roles_are_those_of_training(role: Any) -> None:
    message = {"role": role, "content": "Be brief."}
    assert plain_message(ChatMessage(**message), 0)["role"] == as_messages([message])[0]["role"]
