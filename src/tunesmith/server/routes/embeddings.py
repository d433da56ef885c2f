"""``POST /v1/embeddings``: of sentence encoders, and of any other model by the mean over its last hidden states."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool

from tunesmith.server.answers import model_named, unless_gone
from tunesmith.server.auth import Inferrer
from tunesmith.server.bodies import EmbeddingBody
from tunesmith.server.errors import ApiError
from tunesmith.server.pool import Loaded
from tunesmith.server.prompts import several
from tunesmith.server.services import Server

if TYPE_CHECKING:
    import numpy as np

router = APIRouter(tags=["inference"])

MAX_INPUTS = 2048

MAX_TOKENS = 300_000
"""Of all texts of a request together, as at OpenAI."""

TOKENS_AT_ONCE = 8192
"""The model reads no more before others have their turn."""


@router.post("/v1/embeddings")
async def create_embeddings(body: EmbeddingBody, request: Request, server: Server, who: Inferrer) -> dict[str, Any]:
    """Vectors of length 1, one a text."""
    async with model_named(body.model, request, server, who) as loaded:
        examples = await run_in_threadpool(_tokens, loaded, body)
        vectors = await unless_gone(request, _embed_all(loaded, examples, body.dimensions))
    tokens = sum(len(ids) for ids in examples)
    data = [
        {"object": "embedding", "index": n, "embedding": _written(vector, body.encoding_format or "float")}
        for n, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": loaded.id, "usage": usage}


async def _embed_all(loaded: Loaded, examples: list[list[int]], dimensions: int | None) -> list[np.ndarray]:
    """A vector for each text; some texts at a time, so that answers are written in between."""
    vectors: list[np.ndarray] = []
    for part in _portions(examples):
        vectors += list(await asyncio.wrap_future(loaded.host.call(partial(_embed, loaded, part, dimensions))))
    return vectors


def _portions(examples: list[list[int]]) -> Iterator[list[list[int]]]:
    part: list[list[int]] = []
    for ids in examples:
        if part and sum(map(len, part)) + len(ids) > TOKENS_AT_ONCE:
            yield part
            part = []
        part.append(ids)
    yield part


def _embed(loaded: Loaded, examples: list[list[int]], dimensions: int | None) -> np.ndarray:
    """Unit vectors (N, d) in fp32. Runs in the host's thread."""
    import numpy as np

    from tunesmith.models import inference

    host = loaded.host
    use = host.adapters.use_for_all(loaded.adapter) if host.adapters else contextlib.nullcontext()
    with use:
        vectors = inference.embeddings(host.model, examples)[:, :dimensions]
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return vectors.astype(np.float32)


def _tokens(loaded: Loaded, body: EmbeddingBody) -> list[list[int]]:
    from tunesmith.compression.onnx_model import OnnxNetwork

    many = several(body.input, MAX_INPUTS, "input")
    model = loaded.host.model
    if isinstance(model.network, OnnxNetwork):  # its graph gives scores, and no hidden states
        raise ApiError(400, f"The model '{loaded.id}' gives no embeddings.", code="unsupported_model", param="model")
    width = int(cast(Any, model.transformer()).config.hidden_size)
    if body.dimensions is not None and body.dimensions > width:
        raise ApiError(
            400, f"This model's embeddings have {width} dimensions.", code="invalid_value", param="dimensions"
        )
    with loaded.host.lock:
        examples = [
            model.tokenizer(one, split_special_tokens=True)["input_ids"] if isinstance(one, str) else list(one)
            for one in many
        ]
    vocabulary = len(model.tokenizer)
    for number, ids in enumerate(examples):
        if not ids or not many[number]:  # encoders put tokens of their own around nothing
            raise ApiError(400, f"Input {number} is empty.", code="invalid_value", param="input")
        if len(ids) > model.max_length:
            raise ApiError(
                400,
                f"Input {number} has {len(ids)} tokens; this model takes up to {model.max_length}.",
                code="context_length_exceeded",
                param="input",
            )
        if not all(0 <= token < vocabulary for token in ids):
            raise ApiError(400, f"Input {number} has a token that does not exist.", code="invalid_value", param="input")
    if (total := sum(map(len, examples))) > MAX_TOKENS:
        message = f"The inputs have {total} tokens together; a request may have up to {MAX_TOKENS}."
        raise ApiError(400, message, code="max_tokens_per_request", param="input")
    return examples


def _written(vector: np.ndarray, encoding: str) -> str | list[float]:
    """Base64 of little-endian fp32, which clients ask for by default, or numbers."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode() if encoding == "base64" else vector.tolist()
