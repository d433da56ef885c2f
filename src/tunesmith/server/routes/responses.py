"""``POST /v1/responses``: the newer API, for text; whole or as its typed events. Nothing is stored."""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, ValidationError

from tunesmith.server import tools as calls
from tunesmith.server.answers import (
    Answers,
    Wish,
    answer_length,
    event,
    json_constraint,
    respond,
)
from tunesmith.server.auth import Inferrer
from tunesmith.server.bodies import ChatMessage, ContentPart, NamedFunction, ResponseBody, ResponseFunction
from tunesmith.server.errors import ApiError
from tunesmith.server.pool import Loaded
from tunesmith.server.prompts import chat_prompt, plain_message
from tunesmith.server.services import Server
from tunesmith.server.tools import CallReader, Written

router = APIRouter(tags=["inference"])

Shape = TypeVar("Shape", bound=BaseModel)
TEXT_PARTS = ("input_text", "output_text", "text")


@router.post("/v1/responses", response_model=None)
async def create_response(body: ResponseBody, request: Request, server: Server, who: Inferrer) -> Response:
    """Answer, in the form of the Responses API."""
    return await respond(body, request, server, who, lambda loaded: _begin(loaded, body))


async def _begin(loaded: Loaded, body: ResponseBody) -> _Response:
    from tunesmith.generation.sampling import Sampling

    tools = _tools(body)
    offered = tools if body.tool_choice != "none" else []
    prompt = await chat_prompt(loaded, _messages(body), offered or None)
    sampling = Sampling(
        max_new_tokens=answer_length(loaded, len(prompt), body.max_output_tokens),
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        seed=secrets.randbits(63),
    )
    wish = Wish(
        prompts=[prompt],
        samplings=[sampling],
        constraint=await _constraint(loaded, body, tools),
        keep_special=bool(offered),
        is_turn=True,
    )
    return _Response(body, loaded.id, Answers(loaded, wish), with_tools=bool(offered))


async def _constraint(loaded: Loaded, body: ResponseBody, tools: list[dict[str, Any]]) -> Any:
    """What the answer may consist of: JSON, the call of a tool, or anything (``None``)."""
    form = body.text.format if body.text else None
    if form is not None and form.type != "text":
        schema = (form.schema_ or {}) if form.type == "json_schema" else None
        return await json_constraint(loaded, schema, param="text.format.schema")
    wanted = calls.required(tools, body.tool_choice)
    return await json_constraint(loaded, calls.call_schema(wanted), param="tools") if wanted else None


def _tools(body: ResponseBody) -> list[dict[str, Any]]:
    """The functions that may be called, in the form of chat completions."""
    found = []
    for number, tool in enumerate(body.tools or ()):
        param = f"tools[{number}]"
        if tool.get("type") != "function":
            message = f"This server does not support 'tools' of the type '{tool.get('type')}': functions alone."
            raise ApiError(400, message, code="unsupported_parameter", param=f"{param}.type")
        read = _validated(ResponseFunction, tool, param)
        found.append({"type": "function", "function": read.model_dump(exclude={"type"}, exclude_none=True)})
    return found


def _messages(body: ResponseBody) -> list[dict[str, Any]]:
    """The conversation: instructions, then the input; calls stand in the message of whoever made them."""
    opening = [{"role": "system", "content": body.instructions}] if body.instructions else []
    if isinstance(body.input, str):
        return [*opening, {"role": "user", "content": body.input}]
    if not body.input:
        raise ApiError(400, "'input' is empty.", code="invalid_value", param="input")
    messages: list[dict[str, Any]] = opening
    for number, item in enumerate(body.input):
        message = _message(item, number)
        if item.get("type") == "function_call" and messages and messages[-1]["role"] == "assistant":
            made = [*messages[-1].get("tool_calls", []), *message["tool_calls"]]
            messages[-1] = {**messages[-1], "tool_calls": made}
        else:
            messages.append(message)
    return messages


def _validated(shape: type[Shape], value: Any, place: str) -> Shape:
    try:
        return shape.model_validate(value)
    except ValidationError as error:
        problem = error.errors()[0]
        path = ".".join([place, *(str(step) for step in problem["loc"])])
        raise ApiError(400, f"Invalid value: {problem['msg']}: '{path}'.", code="invalid_value", param=path) from error


def _message(item: dict[str, Any], number: int) -> dict[str, Any]:
    place, kind = f"input[{number}]", item.get("type", "message")
    if kind == "function_call":
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        call = {"id": item.get("call_id"), "type": "function", "function": function}
        item = {"role": "assistant", "content": "", "tool_calls": [call]}
    elif kind == "function_call_output":
        item = {"role": "tool", "content": item.get("output"), "tool_call_id": item.get("call_id")}
    elif kind != "message":
        raise ApiError(
            400,
            f"Items of the type '{kind}' are not supported; this server reads messages and calls of functions.",
            code="unsupported_content",
            param=place,
        )
    keys = ("role", "content", "tool_calls", "tool_call_id")
    message = _validated(ChatMessage, {key: item[key] for key in keys if key in item}, place)
    if isinstance(message.content, list):
        parts = [ContentPart(type="text" if p.type in TEXT_PARTS else p.type, text=p.text) for p in message.content]
        message = message.model_copy(update={"content": parts})
    return plain_message(message, number)


class _Response:
    """The answer to one request, whole or as events."""

    def __init__(self, body: ResponseBody, model: str, answers: Answers, *, with_tools: bool) -> None:
        self.body = body
        self.model = model
        self.answers = answers
        self.id = f"resp_{secrets.token_hex(24)}"
        self.message_id = f"msg_{secrets.token_hex(24)}"
        self.created = int(time.time())
        self.written = Written(CallReader() if with_tools else None)

    async def whole(self) -> dict[str, Any]:
        """The body of the response."""
        async for _, token in self.answers:
            self.written.take(token)
        return self._state()

    async def events(self) -> AsyncIterator[str]:
        """The events in OpenAI's order, numbered from 0. The message begins with its first text."""
        numbers = itertools.count()

        def send(kind: str, **values: Any) -> str:
            return event({"type": kind, "sequence_number": next(numbers), **values}, name=kind)

        place = {"item_id": self.message_id, "output_index": 0, "content_index": 0}
        begun = False
        yield send("response.created", response=self._state())
        yield send("response.in_progress", response=self._state())
        try:
            async for _, token in self.answers:
                piece = self.written.take(token)
                ended_empty = self.written.finish_reason is not None and not self.written.calls
                if not begun and (piece or ended_empty):
                    begun = True
                    yield send("response.output_item.added", output_index=0, item=self._item([], "in_progress"))
                    yield send("response.content_part.added", **place, part=_part(""))
                if piece:
                    yield send("response.output_text.delta", **place, delta=piece, logprobs=[])
        except ApiError as error:
            failed = {**self._state(), "status": "failed"}
            failed["error"] = {"code": "server_error", "message": str(error.detail)}
            yield send("response.failed", response=failed)
            return
        state = self._state()
        if begun:
            text = self.written.text
            yield send("response.output_text.done", **place, text=text, logprobs=[])
            yield send("response.content_part.done", **place, part=_part(text))
            yield send("response.output_item.done", output_index=0, item=state["output"][0])
        for index, item in enumerate(state["output"]):
            if item["type"] == "function_call":
                for sent in _call_events(send, index, item):
                    yield sent
        yield send(f"response.{state['status']}", response=state)

    def _state(self) -> dict[str, Any]:
        """The response object as it stands now."""
        reason = self.written.finish_reason
        status = {None: "in_progress", "stop": "completed", "tool_calls": "completed"}.get(reason, "incomplete")
        ended = reason is not None
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
            "output": self._output(status) if ended else [],
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": 1.0 if body.temperature is None else body.temperature,
            "text": {"format": form.model_dump(by_alias=True, exclude_none=True) if form else {"type": "text"}},
            "tool_choice": _shown(body.tool_choice),
            "tools": [{"strict": None, "parameters": None, **tool} for tool in body.tools or ()],
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "truncation": "disabled",
            "usage": self._usage() if ended else None,
            "user": None,
        }

    def _output(self, status: str) -> list[dict[str, Any]]:
        """The message, unless there is nothing in it beside calls, and the calls."""
        text, made = self.written.text, self.written.calls
        items = [self._item([_part(text)], status)] if text or not made else []
        return items + [_call(self.id, number, call) for number, call in enumerate(made)]

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


def _call(response: str, number: int, call: dict[str, Any]) -> dict[str, Any]:
    item = {"type": "function_call", "id": f"fc_{response.removeprefix('resp_')}{number:02d}", "call_id": call["id"]}
    return {**item, **call["function"], "status": "completed"}


def _call_events(send: Callable[..., str], index: int, item: dict[str, Any]) -> Iterator[str]:
    """A call is known when it is whole: all its events come at once."""
    place = {"item_id": item["id"], "output_index": index}
    opened = {**item, "arguments": "", "status": "in_progress"}
    yield send("response.output_item.added", output_index=index, item=opened)
    yield send("response.function_call_arguments.delta", **place, delta=item["arguments"])
    yield send("response.function_call_arguments.done", **place, name=item["name"], arguments=item["arguments"])
    yield send("response.output_item.done", output_index=index, item=item)


def _shown(choice: str | NamedFunction | None) -> Any:
    return {"type": "function", "name": choice.name} if isinstance(choice, NamedFunction) else choice or "auto"
