"""``POST /v1/responses``: the newer API, for text; whole or as its typed events. Nothing is stored."""

from __future__ import annotations

import contextlib
import itertools
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError

from tunesmith.server.answers import (
    Answers,
    EventStream,
    Wish,
    answer_length,
    event,
    json_constraint,
    model_named,
    unless_gone,
)
from tunesmith.server.auth import Inferrer
from tunesmith.server.bodies import ChatMessage, ContentPart, ResponseBody
from tunesmith.server.errors import ApiError
from tunesmith.server.pool import Loaded
from tunesmith.server.prompts import chat_prompt, plain_message
from tunesmith.server.services import Server

router = APIRouter(tags=["inference"])

TEXT_PARTS = ("input_text", "output_text", "text")


@router.post("/v1/responses", response_model=None)
async def create_response(body: ResponseBody, request: Request, server: Server, who: Inferrer) -> Response:
    """Answer, in the form of the Responses API."""
    async with contextlib.AsyncExitStack() as held:
        loaded = await held.enter_async_context(model_named(body.model, request, server, who))
        response = await _begin(loaded, body)
        if body.stream:
            return EventStream(response.events(), held.pop_all())
        return JSONResponse(await unless_gone(request, response.whole()))


async def _begin(loaded: Loaded, body: ResponseBody) -> _Response:
    from tunesmith.generation.sampling import Sampling

    prompt = await chat_prompt(loaded, _messages(body))
    sampling = Sampling(
        max_new_tokens=answer_length(loaded, len(prompt), body.max_output_tokens),
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        seed=secrets.randbits(63),
    )
    constraint, form = None, body.text.format if body.text else None
    if form is not None and form.type != "text":
        schema = (form.schema_ or {}) if form.type == "json_schema" else None
        constraint = await json_constraint(loaded, schema, param="text.format.schema")
    return _Response(
        body, loaded.id, Answers(loaded, Wish(prompts=[prompt], samplings=[sampling], constraint=constraint))
    )


def _messages(body: ResponseBody) -> list[dict[str, Any]]:
    """The conversation: instructions, then the input."""
    opening = [{"role": "system", "content": body.instructions}] if body.instructions else []
    if isinstance(body.input, str):
        return [*opening, {"role": "user", "content": body.input}]
    if not body.input:
        raise ApiError(400, "'input' is empty.", code="invalid_value", param="input")
    return [*opening, *(_message(item, number) for number, item in enumerate(body.input))]


def _message(item: dict[str, Any], number: int) -> dict[str, Any]:
    place = f"input[{number}]"
    if item.get("type", "message") != "message":
        raise ApiError(
            400,
            f"Items of the type '{item['type']}' are not supported; this server reads messages.",
            code="unsupported_content",
            param=place,
        )
    try:
        message = ChatMessage.model_validate({"role": item.get("role"), "content": item.get("content")})
    except ValidationError as error:
        problem = error.errors()[0]["msg"]
        raise ApiError(400, f"Invalid value: {problem}: '{place}'.", code="invalid_value", param=place) from error
    if isinstance(message.content, list):
        parts = [ContentPart(type="text" if p.type in TEXT_PARTS else p.type, text=p.text) for p in message.content]
        message = message.model_copy(update={"content": parts})
    return plain_message(message, number)


class _Response:
    """The answer to one request, whole or as events."""

    def __init__(self, body: ResponseBody, model: str, answers: Answers) -> None:
        self.body = body
        self.model = model
        self.answers = answers
        self.id = f"resp_{secrets.token_hex(24)}"
        self.message_id = f"msg_{secrets.token_hex(24)}"
        self.created = int(time.time())
        self.text = ""
        self.finish_reason: str | None = None

    async def whole(self) -> dict[str, Any]:
        """The body of the response."""
        async for _, token in self.answers:
            self.text += token.text
            self.finish_reason = token.finish_reason
        return self._state()

    async def events(self) -> AsyncIterator[str]:
        """The events in OpenAI's order, numbered from 0."""
        numbers = itertools.count()

        def send(kind: str, **values: Any) -> str:
            return event({"type": kind, "sequence_number": next(numbers), **values}, name=kind)

        place = {"item_id": self.message_id, "output_index": 0, "content_index": 0}
        yield send("response.created", response=self._state())
        yield send("response.in_progress", response=self._state())
        yield send("response.output_item.added", output_index=0, item=self._item([], "in_progress"))
        yield send("response.content_part.added", **place, part=_part(""))
        try:
            async for _, token in self.answers:
                self.text += token.text
                self.finish_reason = token.finish_reason
                if token.text:
                    yield send("response.output_text.delta", **place, delta=token.text, logprobs=[])
        except ApiError as error:
            failed = {**self._state(), "status": "failed"}
            failed["error"] = {"code": "server_error", "message": str(error.detail)}
            yield send("response.failed", response=failed)
            return
        status = "completed" if self.finish_reason == "stop" else "incomplete"
        yield send("response.output_text.done", **place, text=self.text, logprobs=[])
        yield send("response.content_part.done", **place, part=_part(self.text))
        yield send("response.output_item.done", output_index=0, item=self._item([_part(self.text)], status))
        yield send(f"response.{status}", response=self._state())

    def _state(self) -> dict[str, Any]:
        """The response object as it stands now."""
        status = {None: "in_progress", "stop": "completed"}.get(self.finish_reason, "incomplete")
        ended = self.finish_reason is not None
        body, form = self.body, self.body.text.format if self.body.text else None
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "model": self.model,
            "output": [self._item([_part(self.text)], status)] if ended else [],
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": 1.0 if body.temperature is None else body.temperature,
            "text": {"format": form.model_dump(by_alias=True, exclude_none=True) if form else {"type": "text"}},
            "tool_choice": "auto",
            "tools": [],
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "truncation": "disabled",
            "usage": self._usage() if ended else None,
            "user": None,
        }

    def _item(self, content: list[dict[str, Any]], status: str) -> dict[str, Any]:
        return {"id": self.message_id, "type": "message", "role": "assistant", "status": status, "content": content}

    def _usage(self) -> dict[str, Any]:
        read, written = self.answers.prompt_tokens, self.answers.completion_tokens
        return {
            "input_tokens": read,
            "input_tokens_details": {"cached_tokens": self.answers.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": written,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": read + written,
        }


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
