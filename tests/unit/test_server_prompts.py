"""From bodies of requests to prompts and lengths, without a server."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import tiny
from tunesmith.data.conversations import as_messages
from tunesmith.server.bodies import ChatBody, ChatMessage, CompletionBody
from tunesmith.server.prompts import plain_message
from tunesmith.server.routes import chat, completions


@pytest.mark.parametrize("role", ["system", "developer", "user", "assistant"])
def test_roles_are_those_of_training(role: Any) -> None:
    message = {"role": role, "content": "Be brief."}
    assert plain_message(ChatMessage(**message), 0)["role"] == as_messages([message])[0]["role"]


@pytest.mark.parametrize(("prompt", "echo"), [("the film", "the film"), ("", ""), ([1, 2], "<s> 1 2")])
def test_an_echo_is_what_was_sent(prompt: Any, echo: str) -> None:
    def decode(ids: list[int]) -> str:
        return "<s> " + " ".join(map(str, ids))

    loaded: Any = SimpleNamespace(renderer=SimpleNamespace(tokenizer=SimpleNamespace(decode=decode)))
    assert completions._echoes(loaded, CompletionBody(prompt=prompt, echo=True), [[1, 2]]) == [echo]
    assert completions._echoes(loaded, CompletionBody(prompt=prompt), [[1, 2]]) == [""]


@pytest.mark.parametrize(("asked", "length"), [(5, 5), (10**9, None)])
def test_an_encoder_decoder_model_writes_no_more_than_it_can(tiny_t5: Path, asked: int, length: int | None) -> None:
    model = tiny.build(tiny_t5, "seq2seq")
    loaded: Any = SimpleNamespace(id="t5", host=SimpleNamespace(model=model))
    body = ChatBody(messages=[ChatMessage(role="user", content="x")], max_tokens=asked)
    assert chat._whole(loaded, body, "x")._generation.max_new_tokens == (length or model.max_length)
