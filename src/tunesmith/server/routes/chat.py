"""``POST /v1/chat/completions``."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from tunesmith.recipe import Generation
from tunesmith.server.answers import (
    Answers,
    WholeAnswers,
    Wish,
    error_event,
    event,
    respond,
)
from tunesmith.server.auth import Inferrer
from tunesmith.server.bodies import ChatBody
from tunesmith.server.errors import ApiError
from tunesmith.server.pool import Loaded
from tunesmith.server.prompts import (
    chat_constraint,
    chat_length,
    chat_prompt,
    plain_message,
    samplings,
    stops,
)
from tunesmith.server.services import Server
from tunesmith.server.tools import CallReader, Written

if TYPE_CHECKING:
    from tunesmith.generation.batch import Token

router = APIRouter(tags=["inference"])


@router.post("/v1/chat/completions", response_model=None)
async def create_chat_completion(body: ChatBody, request: Request, server: Server, who: Inferrer) -> Response:
    """Answer in a conversation."""
    return await respond(body, request, server, who, lambda loaded: _begin(loaded, body))


async def _begin(loaded: Loaded, body: ChatBody) -> _ChatAnswer:
    messages = [plain_message(message, number) for number, message in enumerate(body.messages)]
    if loaded.host.engine is None and loaded.notes is not None:
        return _ChatAnswer(body, loaded, _whole(loaded, body, str(messages[-1]["content"])), False)
    offered = body.tool_choice != "none" and bool(body.tools)
    tools = [tool.model_dump(exclude_none=True) for tool in body.tools or ()] if offered else None
    prompt = await chat_prompt(loaded, messages, tools)
    constraint = await chat_constraint(loaded, body)
    top_logprobs = (body.top_logprobs or 0) if body.logprobs else None
    wish = Wish(
        prompts=[prompt],
        samplings=samplings(body, chat_length(loaded, body, prompt), top_logprobs, len(loaded.host.model.tokenizer)),
        stop=stops(body),
        constraint=constraint,
        keep_special=offered,
        is_turn=True,
    )
    return _ChatAnswer(body, loaded, Answers(loaded, wish), offered)


def _whole(loaded: Loaded, body: ChatBody, text: str) -> WholeAnswers:
    from tunesmith.generation.batch import context_length

    for name in ("tools", "response_format", "logprobs", "stop", "logit_bias"):
        if getattr(body, name):
            raise ApiError(
                400, f"'{loaded.id}' answers in one piece: no '{name}'.", code="unsupported_parameter", param=name
            )
    length = body.max_completion_tokens or body.max_tokens or Generation().max_new_tokens
    model = loaded.host.model
    if model.form in ("generate", "seq2seq"):
        length = min(length, context_length(model))
    return WholeAnswers(loaded, text, body.n or 1, max_new_tokens=length, temperature=body.temperature or 0.0)


@dataclass
class _Choice(Written):
    """One of the answers."""

    logprobs: list[dict[str, Any]] = field(default_factory=list)


class _ChatAnswer:
    """The answer to one request, whole or as events."""

    def __init__(self, body: ChatBody, loaded: Loaded, answers: Answers | WholeAnswers, with_tools: bool) -> None:
        self.body = body
        self.loaded = loaded
        self.answers = answers
        self.choices = [_Choice(CallReader() if with_tools else None) for _ in range(body.n or 1)]
        self.head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": loaded.id}

    async def whole(self) -> dict[str, Any]:
        """The body of the response."""
        async for index, token in self.answers:
            choice = self.choices[index]
            choice.take(token)
            choice.logprobs += self._logprobs(token)
        return {
            **self.head,
            "object": "chat.completion",
            "choices": [self._choice(n, choice) for n, choice in enumerate(self.choices)],
            "usage": usage(self.answers),
        }

    async def events(self) -> AsyncIterator[str]:
        """The chunks, in OpenAI's order: the role, the text, the reason of the end; perhaps the usage; ``[DONE]``."""
        options = self.body.stream_options
        with_usage = bool(options and options.include_usage)
        try:
            for index in range(len(self.choices)):
                yield self._chunk(index, {"role": "assistant", "content": "", "refusal": None}, with_usage)
            async for index, token in self.answers:
                for delta, logprobs, reason in self._deltas(self.choices[index], token):
                    yield self._chunk(index, delta, with_usage, logprobs, reason)
        except ApiError as error:
            yield error_event(error)
            return
        if with_usage:
            head = {**self.head, "object": "chat.completion.chunk"}
            yield event({**head, "choices": [], "usage": usage(self.answers)})
        yield "data: [DONE]\n\n"

    def _deltas(self, choice: _Choice, token: Token) -> list[tuple[dict[str, Any], Any, str | None]]:
        piece, logprobs = choice.take(token), self._logprobs(token)
        deltas: list[tuple[dict[str, Any], Any, str | None]] = []
        if piece or logprobs:
            deltas.append(({"content": piece}, _logprobs_object(logprobs), None))
        if choice.finish_reason is not None:
            for number, call in enumerate(choice.calls):
                deltas.append(({"tool_calls": [{"index": number, **call}]}, None, None))
            deltas.append(({}, None, choice.finish_reason))
        return deltas

    def _chunk(
        self, index: int, delta: dict[str, Any], with_usage: bool, logprobs: Any = None, reason: str | None = None
    ) -> str:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        chunk = {**self.head, "object": "chat.completion.chunk", "choices": [choice]}
        return event({**chunk, "usage": None} if with_usage else chunk)

    def _choice(self, index: int, choice: _Choice) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": choice.text, "refusal": None}
        if choice.calls:
            message |= {"content": choice.text or None, "tool_calls": choice.calls}
        logprobs = _logprobs_object(choice.logprobs) if self.body.logprobs else None
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": choice.finish_reason}

    def _logprobs(self, token: Token) -> list[dict[str, Any]]:
        if token.choice is None or token.choice.logprob is None:
            return []
        tokenizer = self.loaded.host.model.tokenizer
        top = [_logprob(tokenizer, other, value) for other, value in token.choice.top]
        return [{**_logprob(tokenizer, token.choice.token, token.choice.logprob), "top_logprobs": top}]


def _logprob(tokenizer: Any, token: int, value: float) -> dict[str, Any]:
    from tunesmith.generation.text import token_bytes

    raw = token_bytes(tokenizer, token)
    # JSON has no infinity; OpenAI, too, gives -9999 to what cannot come.
    return {"token": raw.decode(errors="replace"), "logprob": max(value, -9999.0), "bytes": list(raw)}


def _logprobs_object(content: list[dict[str, Any]]) -> dict[str, Any] | None:
    return {"content": content, "refusal": None} if content else None


def usage(answers: Answers | WholeAnswers) -> dict[str, Any]:
    """What was read and written, in tokens."""
    return {
        "prompt_tokens": answers.prompt_tokens,
        "completion_tokens": answers.completion_tokens,
        "total_tokens": answers.prompt_tokens + answers.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": min(answers.cached_tokens, answers.prompt_tokens)},
    }
