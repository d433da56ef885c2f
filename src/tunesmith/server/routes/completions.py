"""``POST /v1/completions``: the older API, which goes on where a bare text ends."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from tunesmith.server.answers import (
    Answers,
    Wish,
    answer_length,
    error_event,
    event,
    respond,
)
from tunesmith.server.auth import Inferrer
from tunesmith.server.bodies import CompletionBody
from tunesmith.server.errors import ApiError
from tunesmith.server.pool import Loaded
from tunesmith.server.prompts import samplings, several, stops
from tunesmith.server.routes.chat import usage
from tunesmith.server.services import Server

if TYPE_CHECKING:
    from tunesmith.generation.batch import Token

router = APIRouter(tags=["inference"])

MAX_PROMPTS = 128


@router.post("/v1/completions", response_model=None)
async def create_completion(body: CompletionBody, request: Request, server: Server, who: Inferrer) -> Response:
    """Go on where a text ends."""
    _refuse_unsupported(body)
    return await respond(body, request, server, who, lambda loaded: _begin(loaded, body))


def _refuse_unsupported(body: CompletionBody) -> None:
    if body.suffix:
        raise ApiError(400, "'suffix' is not supported.", code="unsupported_parameter", param="suffix")
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise ApiError(400, "'best_of' must equal 'n'.", code="unsupported_parameter", param="best_of")
    if body.echo and body.logprobs is not None:
        raise ApiError(400, "'echo' cannot go with 'logprobs'.", code="unsupported_parameter", param="echo")


async def _begin(loaded: Loaded, body: CompletionBody) -> _Completion:
    if loaded.renderer is None:
        raise ApiError(400, f"The model '{loaded.id}' does not write text.", code="unsupported_model", param="model")
    prompts = await run_in_threadpool(_prompts, loaded, body)
    length = min(answer_length(loaded, len(prompt), body.max_tokens) for prompt in prompts)
    wish = Wish(
        prompts=prompts,
        samplings=samplings(body, length, body.logprobs, len(loaded.host.model.tokenizer)),
        stop=stops(body),
    )
    return _Completion(body, loaded, _echoes(loaded, body, prompts), Answers(loaded, wish))


def _echoes(loaded: Loaded, body: CompletionBody, prompts: list[list[int]]) -> list[str]:
    """What each answer begins with: nothing, or its prompt as it was sent."""
    assert loaded.renderer is not None
    if not body.echo:
        return [""] * len(prompts)
    given = several(body.prompt, MAX_PROMPTS, "prompt")
    decode = loaded.renderer.tokenizer.decode
    return [one if isinstance(one, str) else decode(ids) for one, ids in zip(given, prompts, strict=True)]


def _prompts(loaded: Loaded, body: CompletionBody) -> list[list[int]]:
    """Each prompt as tokens; here special tokens spelled out count, for whoever writes a template by hand."""
    assert loaded.renderer is not None
    tokenizer = loaded.renderer.tokenizer
    many = several(body.prompt, MAX_PROMPTS, "prompt")
    with loaded.lock:
        prompts = [tokenizer(one)["input_ids"] if isinstance(one, str) else list(one) for one in many]
    # An empty text is the beginning of one.
    beginning = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    prompts = [prompt or [beginning] for prompt in prompts]
    if not all(isinstance(t, int) and 0 <= t < len(tokenizer) for prompt in prompts for t in prompt):
        raise ApiError(400, "'prompt' has a token that does not exist.", code="invalid_value", param="prompt")
    return prompts


@dataclass
class _Text:
    """One of the texts, as far as it is written."""

    text: str = ""
    finish_reason: str | None = None
    tokens: list[str] = field(default_factory=list)
    token_logprobs: list[float] = field(default_factory=list)
    top_logprobs: list[dict[str, float]] = field(default_factory=list)
    text_offset: list[int] = field(default_factory=list)


class _Completion:
    def __init__(self, body: CompletionBody, loaded: Loaded, echoes: list[str], answers: Answers) -> None:
        assert loaded.renderer is not None
        self.body = body
        self.answers = answers
        self.tokenizer = loaded.renderer.tokenizer
        self.head = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": loaded.id,
        }
        self.echoes = [text for text in echoes for _ in range(body.n or 1)]
        self.texts = [_Text(text) for text in self.echoes]

    async def whole(self) -> dict[str, Any]:
        """The body of the response."""
        async for index, token in self.answers:
            self._take(self.texts[index], token)
        choices = [self._choice(n, text, text.text, text.finish_reason) for n, text in enumerate(self.texts)]
        return {**self.head, "choices": choices, "usage": usage(self.answers)}

    async def events(self) -> AsyncIterator[str]:
        """The pieces as they come; perhaps the usage; ``[DONE]``."""
        options = self.body.stream_options
        with_usage = bool(options and options.include_usage)
        extra = {"usage": None} if with_usage else {}
        try:
            for index, echo in enumerate(self.echoes):
                if echo:
                    yield event({**self.head, "choices": [self._choice(index, _Text(), echo, None)], **extra})
            async for index, token in self.answers:
                piece = _Text(text_offset=[], text="")
                written = len(self.texts[index].text)
                self.texts[index].text += token.text
                self._take(piece, token, written)
                if piece.text or piece.tokens or piece.finish_reason:
                    choice = self._choice(index, piece, piece.text, piece.finish_reason)
                    yield event({**self.head, "choices": [choice], **extra})
        except ApiError as error:
            yield error_event(error)
            return
        if with_usage:
            yield event({**self.head, "choices": [], "usage": usage(self.answers)})
        yield "data: [DONE]\n\n"

    def _take(self, text: _Text, token: Token, offset: int | None = None) -> None:
        from tunesmith.generation.text import token_bytes

        choice = token.choice
        if choice is not None and choice.logprob is not None:
            text.text_offset.append(len(text.text) if offset is None else offset)
            text.tokens.append(token_bytes(self.tokenizer, choice.token).decode(errors="replace"))
            text.token_logprobs.append(max(choice.logprob, -9999.0))
            top = {token_bytes(self.tokenizer, t).decode(errors="replace"): max(p, -9999.0) for t, p in choice.top}
            text.top_logprobs.append(top)
        text.text += token.text
        text.finish_reason = token.finish_reason

    def _choice(self, index: int, text: _Text, content: str, reason: str | None) -> dict[str, Any]:
        logprobs = None
        if self.body.logprobs is not None:
            logprobs = {
                "tokens": text.tokens,
                "token_logprobs": text.token_logprobs,
                "top_logprobs": text.top_logprobs,
                "text_offset": text.text_offset,
            }
        return {"index": index, "text": content, "logprobs": logprobs, "finish_reason": reason}
