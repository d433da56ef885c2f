"""The table of ways and rules, and what it says about given facts. All judgement is in the table."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, field_validator

from tunesmith import strict_yaml
from tunesmith.errors import NotFoundError, UsageError
from tunesmith.strict import Part

Value = bool | int | float | str
Test = Value | list[Value] | dict[str, float]
Facts = Mapping[str, Value | None]

FACTS = ("task", "answer", "rows", "rows_per_label", "model", "parameters", "private", "teacher", "longest_share")


class Need(Part):
    """A condition, and why a way is ruled out where it does not hold."""

    conditions: dict[str, Test] = Field(alias="if")
    reason: str = Field(alias="else")


class Quality(Part):
    """A guess for the cases in which all conditions hold."""

    when: dict[str, Test]
    share: tuple[float, float]
    because: str

    @field_validator("share")
    @classmethod
    def _in_order(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0.0 <= value[0] <= value[1] <= 1.0:
            raise ValueError(f"a share is two numbers from 0 to 1, the lower one first, not {list(value)}")
        return value


class Way(Part):
    """One way; see the comments of ``ways.yaml``."""

    title: str
    recipe: dict[str, Any]
    recipe_for: dict[str, dict[str, Any]] = Field(default={})
    trains: bool
    runs: bool
    needs: list[Need]
    quality: list[Quality] = Field(min_length=1)
    pro: str
    sources: list[str]
    hosted: bool = False

    def ruled_out(self, facts: Facts) -> str | None:
        """Why this way cannot be gone; ``None`` if it can."""
        return next((need.reason for need in self.needs if not holds(need.conditions, facts)), None)

    def guess(self, facts: Facts) -> Quality:
        """The first line whose conditions hold; the last one if none does."""
        return next((line for line in self.quality if holds(line.when, facts)), self.quality[-1])


class Rules(Part):
    """The whole table."""

    version: int
    sources: dict[str, str]
    ways: dict[str, Way] = Field(min_length=1)


def load(own: Path | None = None) -> Rules:
    """The table that comes with Tunesmith, or another.

    Raises:
        NotFoundError: There is no such file.
        UsageError: It is malformed, or names a fact or a source that there is not.
    """
    where = "ways.yaml" if own is None else str(own)
    if own is not None and not own.is_file():
        raise NotFoundError("there is no table of rules", where=where, fix="name a file for --rules")
    shipped = resources.files("tunesmith.advice").joinpath("ways.yaml")
    text = shipped.read_text(encoding="utf-8") if own is None else own.read_text(encoding="utf-8")
    try:
        rules = Rules.model_validate(strict_yaml.load(text))
    except yaml.YAMLError as error:
        raise UsageError(f"the table of rules is no YAML: {error}", where=where) from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        fix = "see the comments of the table that comes with Tunesmith"
        raise UsageError(f"`{key}`: {first['msg']}", where=where, fix=fix) from error
    for name, way in rules.ways.items():
        tests = [*(need.conditions for need in way.needs), *(line.when for line in way.quality)]
        unknown = {fact for test in tests for fact in test if fact not in FACTS}
        unknown |= {source for source in way.sources if source not in rules.sources}
        if unknown:
            raise UsageError(
                f"`ways.{name}` names {', '.join(sorted(unknown))}, which is neither a fact nor a source",
                where=where,
                fix=f"facts are {', '.join(FACTS)}",
            )
    return rules


def holds(conditions: Mapping[str, Test], facts: Facts) -> bool:
    """Whether all conditions hold. A fact that is not known holds no condition."""
    return all(_one(test, facts.get(name)) for name, test in conditions.items())


def _one(test: Test, fact: Value | None) -> bool:
    if fact is None:
        return False
    if isinstance(test, dict):
        number = float(fact)
        return number >= test.get("at_least", float("-inf")) and number < test.get("below", float("inf"))
    return fact in test if isinstance(test, list) else fact == test
