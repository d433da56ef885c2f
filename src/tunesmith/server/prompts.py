"""From what clients send to prompts and settings: the rendering is that of training."""

from __future__ import annotations

import difflib
import secrets
from typing import TYPE_CHECKING, Any

from starlette.concurrency import run_in_threadpool

from tunesmith.data.templates import TemplateLimitError
from tunesmith.errors import DataError
from tunesmith.server import tools as calls
from tunesmith.server.answers import answer_length, json_constraint
from tunesmith.server.bodies import ChatBody, ChatMessage, NamedTool, Penalised
from tunesmith.server.errors import ApiError
from tunesmith.server.pool import Loaded

if TYPE_CHECKING:
    from tunesmith.generation.sampling import Sampling

MAX_STOPS = 4
OPENAIS_KEYS = frozenset(
    {"role", "content", "name", "tool_calls", "tool_call_id", "refusal", "annotations", "audio", "function_call"}
)
"""Keys of messages in OpenAI's API; answers come back with all of them."""


def plain_message(message: ChatMessage, number: int) -> dict[str, Any]:
    """A message with its parts of text joined, and its role as templates know it.

    Raises:
        ApiError: 400: there is nothing to read, or a part is no text.
    """
    content = message.content
    if content is None and message.role != "assistant":
        near = difflib.get_close_matches("content", message.model_extra or {}, n=1)
        hint = f" Did you mean that by '{near[0]}'?" if near else ""
        raise _missing(f"messages[{number}].content", hint)
    if isinstance(content, list):
        for index, part in enumerate(content):
            if part.type == "text" and part.text is None:
                raise _missing(f"messages[{number}].content[{index}].text")
            if part.type != "text":
                raise ApiError(
                    400,
                    f"Message {number} has a part of the type '{part.type}'; this server reads text only.",
                    code="unsupported_content",
                    param=f"messages[{number}].content",
                )
        content = "".join(part.text or "" for part in content)
    values = message.model_dump(exclude_none=True)
    role = "system" if message.role == "developer" else message.role  # as in training
    return calls.for_template({**values, "role": role, "content": content or ""})


Given = str | list[str] | list[int] | list[list[int]]


def several(given: Given, most: int, param: str) -> list[str | list[int]]:
    """One text, or the tokens of one, as a list of it; several as they are.

    Raises:
        ApiError: 400: there are none, or too many.
    """
    alone = isinstance(given, str) or (bool(given) and isinstance(given[0], int))
    many: list[Any] = [given] if alone else list(given)
    if not 1 <= len(many) <= most:
        raise ApiError(400, f"'{param}' must hold 1 to {most} texts.", code="invalid_value", param=param)
    return many


def _missing(param: str, hint: str = "") -> ApiError:
    return ApiError(400, f"Missing required parameter: '{param}'.{hint}", code="missing_parameter", param=param)


def _refuse_unread(messages: list[dict[str, Any]], template: str) -> None:
    """A key that neither OpenAI nor the model's template knows would be dropped in silence."""
    for number, message in enumerate(messages):
        for key in message:
            if key not in OPENAIS_KEYS and key not in template:
                param = f"messages[{number}].{key}"
                raise ApiError(400, f"Unknown parameter: '{param}'.", code="unknown_parameter", param=param)


async def chat_prompt(
    loaded: Loaded, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None
) -> list[int]:
    """Tokens of a conversation up to the answer, exactly as the model was trained to see it.

    Raises:
        ApiError: 400: the model does not write, or its template refuses the messages, knows no tools, or goes beyond
            the limits of templates.
    """
    renderer = loaded.renderer
    if renderer is None:
        raise ApiError(400, f"The model '{loaded.id}' does not write text.", code="unsupported_model", param="model")
    if tools and "tools" not in str(renderer.tokenizer.chat_template):
        raise ApiError(
            400, f"The chat template of '{loaded.id}' knows no tools.", code="unsupported_parameter", param="tools"
        )
    _refuse_unread(messages, str(renderer.tokenizer.chat_template))
    system = loaded.notes.system_prompt if loaded.notes else None
    if system and messages[0]["role"] != "system":  # it stood there in training
        messages = [{"role": "system", "content": system}, *messages]

    def render() -> list[int]:
        with loaded.lock:
            return renderer.prompt(messages, tools=tools)

    try:
        async with loaded.turn:
            return await run_in_threadpool(render)
    except DataError as error:
        raise ApiError(400, str(error.what), code="invalid_messages", param="messages") from error
    except TemplateLimitError as error:
        raise ApiError(400, str(error.what), code="chat_template_stopped", param="model") from error


def stops(body: Penalised) -> list[str]:
    """The texts that end an answer.

    Raises:
        ApiError: 400: there are too many.
    """
    given = [body.stop] if isinstance(body.stop, str) else list(body.stop or ())
    if len(given) > MAX_STOPS:
        raise ApiError(400, f"'stop' may hold {MAX_STOPS} texts at most.", code="invalid_value", param="stop")
    return given


def samplings(body: Penalised, length: int, top_logprobs: int | None, vocabulary: int) -> list[Sampling]:
    """How each of the ``n`` answers is chosen; each from a seed of its own.

    Raises:
        ApiError: 400: ``logit_bias`` names a token that does not exist.
    """
    from tunesmith.generation.sampling import Sampling

    foreign = [token for token in body.logit_bias or () if not 0 <= token < vocabulary]
    if foreign:
        raise ApiError(400, f"There is no token {foreign[0]}.", code="invalid_value", param="logit_bias")
    seed = secrets.randbits(63) if body.seed is None else body.seed
    return [
        Sampling(
            max_new_tokens=length,
            temperature=1.0 if body.temperature is None else body.temperature,
            top_p=1.0 if body.top_p is None else body.top_p,
            top_k=body.top_k or 0,
            seed=f"{seed}:{number}",
            frequency_penalty=body.frequency_penalty or 0.0,
            presence_penalty=body.presence_penalty or 0.0,
            logit_bias=body.logit_bias or {},
            top_logprobs=top_logprobs,
        )
        for number in range(body.n or 1)
    ]


def chat_length(loaded: Loaded, body: ChatBody, prompt: list[int]) -> int:
    """Longest answer: by either of the two names that OpenAI has for it, else what the context leaves."""
    return answer_length(loaded, len(prompt), body.max_completion_tokens or body.max_tokens)


async def chat_constraint(loaded: Loaded, body: ChatBody) -> Any:
    """What the answer may consist of: JSON, the call of a tool, or anything (``None``).

    Raises:
        ApiError: 400: the schema is missing or malformed, or the tool that must be called is not there.
    """
    form = body.response_format
    if form is not None and form.type == "json_object":
        return await json_constraint(loaded, None, param="response_format")
    if form is not None and form.type == "json_schema":
        if form.json_schema is None:
            raise ApiError(
                400,
                "Missing required parameter: 'response_format.json_schema'.",
                code="missing_required_parameter",
                param="response_format.json_schema",
            )
        schema = form.json_schema.schema_ or {}
        return await json_constraint(loaded, schema, param="response_format.json_schema.schema")
    tools = [tool.model_dump(exclude_none=True) for tool in body.tools or ()]
    choice = body.tool_choice.function if isinstance(body.tool_choice, NamedTool) else body.tool_choice
    wanted = calls.required(tools, choice)
    return await json_constraint(loaded, calls.call_schema(wanted), param="tools") if wanted else None
