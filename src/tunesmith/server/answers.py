"""From a route to the engine and back: answers as streams of pieces that stop when the client goes away."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from tunesmith.errors import DataError, UsageError
from tunesmith.recipe import Generation
from tunesmith.server.auth import Principal
from tunesmith.server.bodies import Sampled
from tunesmith.server.errors import ApiError
from tunesmith.server.pool import Loaded
from tunesmith.server.registry import Served
from tunesmith.server.services import Services

if TYPE_CHECKING:
    from tunesmith.generation.batch import Request, Token
    from tunesmith.generation.sampling import Constraint, Sampling

Result = TypeVar("Result")

MAX_ANSWERS = 2048
"""Of one request: prompts times ``n``."""

GONE = 499
"""What is logged for a client that did not wait (nginx's number); nobody is there to read it."""


@contextlib.asynccontextmanager
async def model_named(
    name: str | None, request: HttpRequest, server: Services, who: Principal
) -> AsyncIterator[Loaded]:
    """The model that a client names in the body or, as Azure's do, in the path; in memory within the block.

    Raises:
        ApiError: 400 without a name; 404 ``model_not_found``; 503 or 507 if there is no memory for it.
    """
    name = name or getattr(request.state, "deployment", None)
    if not name:
        raise ApiError(400, "Missing required parameter: 'model'.", code="missing_parameter", param="model")
    served = await run_in_threadpool(server.registry.find, name, who)
    known = served.id if served.folder else served.base  # a base has many names: any date may stand behind it
    async with server.pool.use(known, functools.partial(_folder, server, served)) as loaded:
        yield loaded if known == name else dataclasses.replace(loaded, id=name)


def _folder(server: Services, served: Served) -> Path:
    """Where the model is. ``models.yaml`` may name what was tuned elsewhere, too: a run, or the ``model/`` in it."""
    from tunesmith import catalog
    from tunesmith.models.saving import NOTES

    if served.folder is not None:
        return served.folder
    named = server.registry.bases[served.base].model
    for place in (Path(named) / "model", Path(named)):
        if (place / NOTES).is_file():
            return place
    return catalog.model_folder(named)


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What a client wants written.

    Attributes:
        prompts: Token ids; several in one request of the older completions API.
        samplings: How each of the answers to a prompt is chosen: ``n`` of them.
        stop: Texts that end an answer.
        constraint: What each answer may consist of; called once an answer.
        keep_special: Whether special tokens are part of the text.
        is_turn: Whether the answer is a turn of a conversation.
    """

    prompts: Sequence[Sequence[int]]
    samplings: Sequence[Sampling]
    stop: Sequence[str] = ()
    constraint: Callable[[], Constraint] | None = None
    keep_special: bool = False
    is_turn: bool = False


class Answers:
    """The answers to a wish, as they are written: iterate over ``(index, token)``.

    Answers to the same prompt follow one another: index = prompt * n + choice. Leaving the iteration early, or
    :meth:`cancel`, stops what is still being written.

    Args:
        loaded: The model.
        wish: What is wanted.

    Raises:
        ApiError: 429 with ``Retry-After`` if too many requests wait; 400 if the model cannot write, or if more answers
            are asked for than can ever wait.
    """

    def __init__(self, loaded: Loaded, wish: Wish) -> None:
        from tunesmith.generation.engine import QueueFullError

        engine = loaded.host.engine
        if engine is None:
            raise ApiError(
                400, f"The model '{loaded.id}' does not write text.", code="unsupported_model", param="model"
            )
        self.prompt_tokens = sum(len(prompt) for prompt in wish.prompts)
        self.completion_tokens = 0
        self._engine = engine
        self._queue: asyncio.Queue[tuple[int, Token]] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        count = len(wish.prompts) * len(wish.samplings)
        if count > MAX_ANSWERS:
            raise _too_many(f"{count} answers are asked for; a request may have up to {MAX_ANSWERS}.")
        pairs = [(prompt, sampling) for prompt in wish.prompts for sampling in wish.samplings]
        self._requests = [
            self._request(index, prompt, sampling, loaded, wish) for index, (prompt, sampling) in enumerate(pairs)
        ]
        self._open = set(range(len(self._requests)))
        try:
            engine.submit(self._requests)
        except UsageError as error:
            self._open.clear()
            raise _too_many(f"{error.what}.") from error
        except QueueFullError as error:
            self._open.clear()
            headers = {"Retry-After": str(error.retry_after)}
            raise ApiError(429, f"The server is busy: {error.what}.", code="queue_full", headers=headers) from error

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that needed no reading."""
        return sum(request.reused_tokens for request in self._requests)

    def __aiter__(self) -> AsyncIterator[tuple[int, Token]]:
        return self._tokens()

    async def _tokens(self) -> AsyncIterator[tuple[int, Token]]:
        try:
            while self._open:
                index, token = await self._queue.get()
                if token.choice is not None:
                    self.completion_tokens += 1
                if token.finish_reason is not None:
                    self._open.discard(index)
                if token.finish_reason in ("failed", "cancelled"):
                    raise ApiError(503, "The answer was given up; the server's log says why.", code="generation_failed")
                yield index, token
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Stop what is still being written, before the next step."""
        if self._open:
            self._engine.cancel([self._requests[index] for index in self._open])
            self._open.clear()

    def _request(self, index: int, prompt: Sequence[int], sampling: Sampling, loaded: Loaded, wish: Wish) -> Request:
        from tunesmith.generation.batch import Request
        from tunesmith.generation.text import TextStream

        def hear(token: Token) -> None:
            with contextlib.suppress(RuntimeError):  # the server has stopped: its loop is closed
                self._loop.call_soon_threadsafe(self._queue.put_nowait, (index, token))

        assert loaded.renderer is not None
        return Request(
            prompt=prompt,
            sampling=sampling,
            on_token=hear,
            adapter=loaded.adapter,
            text=TextStream(
                loaded.renderer.tokenizer,
                wish.stop,
                keep_special=wish.keep_special,
                is_turn=wish.is_turn,
                behind=prompt,
            ),
            constraint=wish.constraint() if wish.constraint else None,
        )


class WholeAnswers:
    """The answer of a tuned model that does not write token by token here, in one piece: a label, spans, a summary.

    Args:
        loaded: The model; a run's artefact.
        text: The last message, which is the task's input.
        count: How many times the answer is wanted.
        max_new_tokens: Longest answer, for models that write.
        temperature: 0 takes the likeliest tokens.
    """

    cached_tokens = 0

    def __init__(self, loaded: Loaded, text: str, count: int, *, max_new_tokens: int, temperature: float) -> None:
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self._loaded = loaded
        self._text = text
        self._count = count
        self._generation = Generation(max_new_tokens=max_new_tokens, temperature=temperature)

    def __aiter__(self) -> AsyncIterator[tuple[int, Token]]:
        return self._tokens()

    async def _tokens(self) -> AsyncIterator[tuple[int, Token]]:
        from tunesmith.generation.batch import Token

        try:
            answer = await asyncio.wrap_future(self._loaded.host.call(self._answer))
        except DataError as error:
            raise ApiError(400, str(error.what), code="invalid_messages", param="messages") from error
        for index in range(self._count):
            yield index, Token(None, answer, "stop")

    def _answer(self) -> str:
        """Runs in the host's thread."""
        from tunesmith.prediction.predicting import predict

        loaded = self._loaded
        assert loaded.notes is not None
        with loaded.lock:
            self.prompt_tokens = len(loaded.host.model.tokenizer(self._text)["input_ids"])
            answer = predict(loaded.host.model, loaded.notes, [self._text], self._generation)[0].answer
            self.completion_tokens = len(loaded.host.model.tokenizer(answer)["input_ids"]) * self._count
        return answer


def _too_many(message: str) -> ApiError:
    return ApiError(400, f"{message} Ask for fewer prompts, or a smaller 'n'.", code="too_many_answers", param="n")


def answer_length(loaded: Loaded, prompt_tokens: int, wanted: int | None) -> int:
    """How long an answer may get: what was asked for, or what the context leaves.

    Raises:
        ApiError: 400 ``context_length_exceeded``: the prompt, or prompt and answer, are too long.
    """
    from tunesmith.generation.batch import context_length

    engine = loaded.host.engine
    context = engine.context if engine else context_length(loaded.host.model)
    if prompt_tokens + (wanted or 1) > context:
        answer = f" and {wanted} in the completion" if wanted else ""
        raise ApiError(
            400,
            f"This model's maximum context length is {context} tokens. However, you requested "
            f"{prompt_tokens + (wanted or 0)} tokens ({prompt_tokens} in the messages{answer}). "
            "Please reduce the length of the messages or the completion.",
            code="context_length_exceeded",
            param="messages",
        )
    return wanted or context - prompt_tokens


async def json_constraint(loaded: Loaded, schema: Any, *, param: str) -> Callable[[], Constraint]:
    """A constraint to JSON by a schema (``None``: any object), made once and copied for each answer.

    Raises:
        ApiError: 400 ``invalid_json_schema``.
    """
    try:
        made = await run_in_threadpool(lambda: loaded.host.grammars.json(schema))
    except UsageError as error:
        raise ApiError(400, str(error.what), code="invalid_json_schema", param=param) from error
    return made.copy


class Answer(Protocol):
    """What a route makes of the words of a model."""

    async def whole(self) -> dict[str, Any]:
        """The body of the response."""
        ...

    def events(self) -> AsyncIterator[str]:
        """The same as server-sent events."""
        ...


async def respond(
    body: Sampled,
    request: HttpRequest,
    server: Services,
    who: Principal,
    begin: Callable[[Loaded], Awaitable[Answer]],
) -> Response:
    """An answer of the model that the body names, whole or as events; the model stays in memory until its end.

    Raises:
        ApiError: As :func:`model_named` does, or the client went away.
    """
    async with contextlib.AsyncExitStack() as held:
        loaded = await held.enter_async_context(model_named(body.model, request, server, who))
        answer = await begin(loaded)
        if body.stream:
            return EventStream(answer.events(), held.pop_all())
        return JSONResponse(await unless_gone(request, answer.whole()))


async def unless_gone(request: HttpRequest, work: Awaitable[Result]) -> Result:
    """The result of some work, which is cancelled as soon as the client is no longer there.

    Raises:
        ApiError: The client went away.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ApiError(GONE, "The client went away.")
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(request: HttpRequest) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class EventStream(StreamingResponse):
    """Server-sent events. What it holds is let go however the response ends, even if it never began.

    Args:
        events: Lines to send.
        held: Closed at the end.
    """

    def __init__(self, events: AsyncIterator[str], held: contextlib.AsyncExitStack) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._held.aclose()


def event(value: Any, name: str | None = None) -> str:
    """One server-sent event."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n"


def error_event(error: ApiError) -> str:
    """An error that comes when the answer has begun: the status was sent long ago."""
    body = json.loads(bytes(error.response().body))
    return event(body)
