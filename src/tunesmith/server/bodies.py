"""What clients send to the inference routes. Keys that are not known are refused, as OpenAI refuses them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Text = Annotated[str, Field(max_length=8 * 2**20)]


class Body(BaseModel):
    """A body, or a part of one."""

    model_config = ConfigDict(extra="forbid")


class Ignored(Body):
    """Keys that change nothing here: who asks, how OpenAI stores and bills it, what other kinds of models do."""

    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None


class FunctionTool(Body):
    """The description of a function."""

    name: str = Field(min_length=1, max_length=64)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    """A tool that the model may call."""

    type: Literal["function"]
    function: FunctionTool


class NamedFunction(Body):
    """A function by its name."""

    name: str


class NamedTool(Body):
    """The choice of one tool."""

    type: Literal["function"]
    function: NamedFunction


class JsonSchema(Body):
    """A schema that the answer must follow."""

    name: str
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    """What the answer is."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StreamOptions(Body):
    """What a stream contains beside the answer."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class ContentPart(BaseModel):
    """A part of a message; only text can be read here."""

    model_config = ConfigDict(extra="allow")
    type: str
    text: Text | None = None


class ChatMessage(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="allow")  # templates may know more
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None


class Sampled(Ignored):
    """How tokens are chosen."""

    model: str | None = Field(default=None, description="Required, unless the path names a deployment.")
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    stream: bool | None = None


class Penalised(Sampled):
    """What the two older APIs share."""

    n: int | None = Field(default=None, ge=1, le=128)
    seed: int | None = None
    stop: Text | list[Text] | None = Field(default=None, description="At most four texts.")
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    logit_bias: dict[int, Annotated[float, Field(ge=-100, le=100)]] | None = None
    top_k: int | None = Field(default=None, ge=0, description="Not OpenAI's: only so many of the likeliest tokens.")
    stream_options: StreamOptions | None = None


class ChatBody(Penalised):
    """``POST /v1/chat/completions``."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=10_000)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = Field(default=None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    modalities: list[Literal["text"]] | None = None
    reasoning_effort: Any = None
    verbosity: Any = None


class CompletionBody(Penalised):
    """``POST /v1/completions``."""

    prompt: Text | list[Text] | list[int] | list[list[int]]
    max_tokens: int | None = Field(default=16, ge=1)
    logprobs: int | None = Field(default=None, ge=0, le=5)
    echo: bool | None = None
    best_of: int | None = Field(default=None, ge=1, le=20)
    suffix: str | None = None


class EmbeddingBody(Ignored):
    """``POST /v1/embeddings``."""

    model: str | None = Field(default=None, description="Required, unless the path names a deployment.")
    input: Text | list[Text] | list[int] | list[list[int]]
    dimensions: int | None = Field(default=None, ge=1)
    encoding_format: Literal["float", "base64"] | None = None


class ResponseTextFormat(Body):
    """The format of a response's text."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseText(Body):
    """How a response's text shall be."""

    format: ResponseTextFormat | None = None
    verbosity: Any = None


class ResponseFunction(FunctionTool):
    """The description of a function, in the shape of the Responses API."""

    type: Literal["function"]


class ChosenFunction(NamedFunction):
    """The choice of one function, in the shape of the Responses API."""

    type: Literal["function"]


class ResponseBody(Sampled):
    """``POST /v1/responses``."""

    input: Text | list[dict[str, Any]]
    instructions: Text | None = None
    max_output_tokens: int | None = Field(default=None, ge=1)
    text: ResponseText | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=0)
    tools: list[dict[str, Any]] | None = Field(default=None, max_length=128, description="Functions alone.")
    tool_choice: Literal["none", "auto", "required"] | ChosenFunction | None = None
    parallel_tool_calls: bool | None = None
    truncation: Literal["disabled"] | None = None
    include: list[Any] | None = Field(default=None, max_length=0)
    background: Literal[False] | None = None
    previous_response_id: None = Field(default=None, description="Responses are not stored: send the conversation.")
    stream_options: StreamOptions | None = None
    reasoning: Any = None
