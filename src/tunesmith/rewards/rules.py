"""Rewards that can be looked up: whether an answer is right, or has the right form."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Sequence
from typing import Any

from tunesmith.errors import MissingExtraError, RecipeError
from tunesmith.recipe import RewardSource
from tunesmith.rewards import Answered

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


class Exact:
    """1 if the answer is the reference, letter case and outer white space aside."""

    def __init__(self, source: RewardSource) -> None:
        pass

    def __call__(self, answers: Sequence[Answered]) -> list[float]:
        """1 or 0 for each."""
        return [float(a.text.strip().casefold() == a.reference.strip().casefold()) for a in answers]


class Number:
    """1 if the last number of the answer is the last number of the reference (to 1e-6)."""

    def __init__(self, source: RewardSource) -> None:
        pass

    def __call__(self, answers: Sequence[Answered]) -> list[float]:
        """1 or 0 for each."""
        result = []
        for answer in answers:
            given, wanted = last_number(answer.text), last_number(answer.reference)
            result.append(float(given is not None and wanted is not None and abs(given - wanted) <= 1e-6))
        return result


class Regex:
    """1 if the pattern is found in the answer."""

    def __init__(self, source: RewardSource) -> None:
        try:
            self.pattern = re.compile(source.pattern or "", re.DOTALL)
        except re.error as error:
            raise RecipeError(f"not a regular expression: {error}", where="rewards.pattern") from error

    def __call__(self, answers: Sequence[Answered]) -> list[float]:
        """1 or 0 for each."""
        return [float(self.pattern.search(answer.text) is not None) for answer in answers]


class Json:
    """1 if the answer is JSON, and fits the schema if one is given."""

    def __init__(self, source: RewardSource) -> None:
        self.validator: Any = None
        if source.json_schema is not None:
            try:
                schemas: Any = importlib.import_module("jsonschema_rs")
            except ImportError as error:
                raise MissingExtraError("jsonschema-rs", "rewards", "a reward with a JSON schema") from error
            self.validator = schemas.validator_for(source.json_schema)

    def __call__(self, answers: Sequence[Answered]) -> list[float]:
        """1 or 0 for each."""
        return [float(self._fits(answer.text)) for answer in answers]

    def _fits(self, text: str) -> bool:
        try:
            value = json.loads(text)
        except ValueError:
            return False
        return self.validator is None or bool(self.validator.is_valid(value))


def last_number(text: str) -> float | None:
    """The last number in a text; commas between digits are taken out."""
    found = _NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None
