"""Rewards that can be looked up: whether an answer is right, or has the right form."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Sequence
from typing import Any

from tunesmith.errors import MissingExtraError, RecipeError, RewardError
from tunesmith.recipe import RewardSource
from tunesmith.rewards import Answered, item_of

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
        except (ValueError, RecursionError):  # a model may well write a thousand brackets
            return False
        return self.validator is None or bool(self.validator.is_valid(value))


def last_number(text: str) -> float | None:
    """The last number in a text; commas between digits are taken out."""
    found = _NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


class UnitTests:
    """The share of the row's ``tests`` that the program in the answer passes.

    ``tests`` is a list of Python statements, or a text of them that counts as one. The program is the last block of
    code of the answer, or all of it. Program and tests run in :mod:`tunesmith.rewards.sandbox`; one that does not
    compile, raises, takes too long or does what it must not is worth 0.
    """

    def __init__(self, source: RewardSource) -> None:
        self.timeout = source.timeout

    def __call__(self, answers: Sequence[Answered]) -> list[float]:
        """Between 0 and 1 for each.

        Raises:
            RewardError: A row has no tests.
        """
        return [self._passed(answer) for answer in answers]

    def _passed(self, answer: Answered) -> float:
        from tunesmith.rewards.sandbox import PASSED_TESTS, call_grade

        tests = item_of(answer.row).get("tests")
        tests = [tests] if isinstance(tests, str) else tests
        if not isinstance(tests, list) or not tests:
            raise RewardError(
                "the row has no `tests` for the program to pass",
                where=str(answer.row.origin),
                fix="give each row a list of Python statements, e.g. `tests: ['assert add(1, 2) == 3']`",
            )
        blocks = _CODE.findall(answer.text)
        program = {"output_text": blocks[-1] if blocks else answer.text}
        try:
            return call_grade(PASSED_TESTS, program, {"tests": [str(test) for test in tests]}, self.timeout)
        except RewardError:
            return 0.0


_CODE = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)```", re.DOTALL)
