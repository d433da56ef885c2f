"""Answers that must be JSON: which tokens may come next is told by llguidance, a kept library of grammars."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch

from tunesmith.errors import MissingExtraError, UsageError

# A model that has nothing to say fills the rest of its tokens with spaces if it may.
_WHITESPACE = r"[\x20\x0A\x0D\x09]{0,20}"


class Grammars:
    """Makes constraints for one tokenizer, which takes about a second to prepare.

    Args:
        tokenizer: The model's fast tokenizer.
        eos_ids: Tokens that end an answer.

    Raises:
        MissingExtraError: llguidance is not installed.
    """

    def __init__(self, tokenizer: Any, eos_ids: Sequence[int]) -> None:
        try:
            import llguidance.hf
        except ImportError as error:
            raise MissingExtraError("llguidance", "server", "an answer in JSON") from error
        self._tokenizer = llguidance.hf.from_tokenizer(tokenizer, eos_token=list(eos_ids) or None)

    def json(self, schema: Any = None) -> JsonConstraint:
        """JSON by a schema; without one, any object.

        Raises:
            UsageError: The schema is malformed, or asks for what the grammar library does not know.
        """
        from llguidance import LLMatcher

        wanted = {"type": "object"} if schema is None else schema
        try:
            grammar = LLMatcher.grammar_from_json_schema(
                json.dumps(wanted), overrides={"whitespace_pattern": _WHITESPACE}
            )
        except ValueError as error:
            raise UsageError(f"the JSON schema cannot be used: {error}") from error
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            reason = matcher.get_error().splitlines()[0]
            raise UsageError(f"the JSON schema cannot be used: {reason}")
        return JsonConstraint(matcher, wanted)


class JsonConstraint:
    """The state of one answer. Implements :class:`tunesmith.generation.sampling.Constraint`.

    Attributes:
        schema: What the answer follows, for an engine that has grammars of its own.
    """

    def __init__(self, matcher: Any, schema: Any) -> None:
        self._matcher = matcher
        self.schema = schema

    @property
    def finished(self) -> bool:
        """Whether the JSON is complete and can only end."""
        return bool(self._matcher.is_stopped())

    def allowed(self) -> torch.Tensor:
        """Which tokens may come next, (V,) bool."""
        return torch.frombuffer(bytearray(self._matcher.compute_logit_bias()), dtype=torch.uint8) > 0

    def accept(self, token: int) -> None:
        """Go on by a token."""
        if not self._matcher.consume_token(token):
            raise AssertionError(f"token {token} was not allowed: {self._matcher.get_error()}")

    def copy(self) -> JsonConstraint:
        """The same constraint at the same place, for another answer."""
        return JsonConstraint(self._matcher.deep_copy(), self.schema)
