"""The dated table of providers, models, prices, limits and last days: ``prices.yaml``, with a user's file over it."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Iterator
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError

from tunesmith import strict_yaml
from tunesmith.errors import NotFoundError, UsageError
from tunesmith.recipe_file import line_numbers, merged
from tunesmith.strict import Part
from tunesmith.yaml_lines import as_usage_error

PACKAGED = Path(__file__).with_name("prices.yaml")
OVERRIDE = "TUNESMITH_PRICES"
"""Environment variable that names the user's own file."""

OWN_FILE = f"name your own file of prices (`--prices`, `hosted.prices` or {OVERRIDE}), or leave it out"

_VERSION_OF_MODEL = re.compile(r"-(20\d\d-\d\d-\d\d|\d{4})$")
"""``gpt-4.1-mini-2025-04-14`` and ``gpt-3.5-turbo-0125`` are versions of the models without these endings."""

Dollars = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Method = Literal["supervised", "dpo", "reinforcement"]


class Rate(Part):
    """Dollars for a million tokens."""

    input: Dollars
    output: Dollars
    cached: Dollars | None = Field(default=None, description="Of input that was read before; default: as `input`.")

    def cost(self, prompt_tokens: float, written_tokens: float, cached_tokens: float = 0.0) -> float:
        """Dollars for some tokens; ``cached_tokens`` are among the ``prompt_tokens``."""
        cached = self.input if self.cached is None else self.cached
        fresh = prompt_tokens - cached_tokens
        return (fresh * self.input + cached_tokens * cached + written_tokens * self.output) / 1e6


class TunableModel(Part):
    """A model of a provider."""

    training: Dollars | None = Field(default=None, description="For a million tokens trained on, each epoch counted.")
    training_hour: Dollars | None = Field(default=None, description="For an hour of training, where that is charged.")
    tuned: Rate | None = Field(default=None, description="Asking a tuned model.")
    base: Rate | None = Field(default=None, description="Asking the untuned model.")
    methods: list[Method] | None = Field(default=None, description="Default: as the provider.")
    images: bool = Field(default=False, description="Whether users' turns may hold pictures.")
    shutdown: date | None = Field(
        default=None, description="The model, and what was tuned from it, answers until then."
    )
    seen: date
    source: str


class Limits(Part):
    """What a provider takes at most, or at least."""

    rows: int = Field(default=1, ge=1, description="Fewest rows of a training file.")
    row_tokens: int | None = Field(default=None, ge=1, description="Tokens of a row, beyond which its end is cut off.")
    file_bytes: int | None = Field(default=None, ge=1)
    row_images: int | None = Field(default=None, ge=0, description="Pictures in a row.")
    suffix: int = Field(default=64, ge=1, description="Characters.")


class Provider(Part):
    """Somebody who fine-tunes."""

    what: str
    protocol: Literal["openai", "mistral", "together", "fireworks"]
    base_url: str | None = None
    base_url_env: str | None = None
    base_path: str = Field(default="", description="What follows the address that a user gives.")
    key_env: list[str]
    key_needed: bool = True
    account_env: str | None = Field(default=None, description="The variable with the account, where paths name it.")
    own_machine: bool = Field(default=False, description="Asks no money.")
    seen: date
    source: str
    note: str | None = None
    jobs_until: date | None = Field(default=None, description="No job can be made from that day on.")
    methods: list[Method]
    roles: list[str]
    tags: bool = Field(description="Whether jobs carry metadata, by which they can be listed.")
    stored_answers: bool = Field(default=False, description="Whether it keeps answers that were asked to be kept.")
    byte_order_mark: bool = Field(default=False, description="Whether files must begin with one.")
    plain_hyperparameters: bool = Field(default=False, description="At the top of a job, not inside `method`.")
    output_limit: Literal["max_completion_tokens", "max_tokens"] = "max_completion_tokens"
    takes_rate: bool = Field(default=False, description="A learning rate in place of a multiplier.")
    auto_epochs: Literal["openai"] | int | None = Field(
        default=None, description="What it takes for `auto`: OpenAI's rule, or a number; unknown if missing."
    )
    limits: Limits = Limits()
    models: dict[str, TunableModel] = Field(default={})


class Table(Part):
    """All of it."""

    version: Literal[1]
    stale_after_days: int = Field(ge=1)
    vocabularies: dict[str, Literal["o200k_base", "cl100k_base"]]
    providers: dict[str, Provider]

    def provider(self, name: str) -> Provider:
        """A provider by its name.

        Raises:
            NotFoundError: There is none, with the nearest name.
        """
        if name not in self.providers:
            near = difflib.get_close_matches(name, self.providers, n=1)
            known = f"known: {', '.join(self.providers)}"
            raise NotFoundError(
                f"there is no provider {name!r}", fix=f"did you mean `{near[0]}`? {known}" if near else known
            )
        return self.providers[name]

    def vocabulary(self, model: str) -> str | None:
        """Name of the vocabulary of a model or of one tuned from it; ``None`` where nobody knows."""
        name = base_of(model)
        beginnings = [start for start in self.vocabularies if name.startswith(start)]
        return self.vocabularies[max(beginnings, key=len)] if beginnings else None

    def staleness(self, what: str, seen: date, today: date) -> str | None:
        """A warning, if something was last looked at long ago."""
        days = (today - seen).days
        if days <= self.stale_after_days:
            return None
        return (
            f"{what} were last seen on {seen}, {days} days ago: look at the provider's own page before you rely on them"
        )


def base_of(model: str) -> str:
    """The base of a model: ``ft:gpt-4.1-mini-2025-04-14:acme::7p4lURel`` was tuned from ``gpt-4.1-mini-2025-04-14``."""
    return model.split(":")[1] if model.startswith("ft:") and ":" in model[3:] else model.removeprefix("ft:")


def find_model(provider: Provider, model: str) -> tuple[str, TunableModel] | None:
    """A model's line of the table, by its name, its dated name, or the name of what was tuned from it."""
    name = base_of(model)
    for candidate in (name, _VERSION_OF_MODEL.sub("", name)):
        if candidate in provider.models:
            return candidate, provider.models[candidate]
    return None


def known_model(provider: Provider, model: str) -> tuple[str, TunableModel]:
    """The same, where the table must have it.

    Raises:
        NotFoundError: With the nearest name, and how to add a line.
    """
    found = find_model(provider, model)
    if found is not None:
        return found
    near = difflib.get_close_matches(base_of(model), provider.models, n=1)
    hint = f"did you mean `{near[0]}`? " if near else ""
    known = f"known: {', '.join(provider.models)}; " if provider.models else ""
    raise NotFoundError(
        f"the table of prices has no model {model!r} of {provider.what}",
        fix=f"{hint}{known}add it in a file of your own (`--prices FILE`): see `tunesmith hosted models`",
    )


def load(override: str | Path | None = None) -> Table:
    """Read the table, with the user's own file over it.

    Args:
        override: The user's file; default: the one that ``TUNESMITH_PRICES`` names, if it is set.

    Raises:
        UsageError: A file is missing, is no YAML, or holds an unknown key or a value that cannot be (a negative price),
            with ``file:line``.
    """
    path = override or os.environ.get(OVERRIDE)
    tree, lines = _read(PACKAGED)
    if path:
        own, own_lines = _read(Path(path))
        tree, lines = merged(tree, own), lines | own_lines
    try:
        return Table.model_validate(tree)
    except ValidationError as error:
        fix = "prices are dollars for a million tokens, never below 0; days are written 2026-11-27"
        raise as_usage_error(error, lines, fix=fix) from None


def _read(path: Path) -> tuple[dict[str, Any], dict[tuple[str, ...], str]]:
    """A file's content, and path of each key -> ``file:line``."""
    try:
        text = path.read_text(encoding="utf-8")
        tree, node = strict_yaml.load(text), yaml.compose(text, Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UsageError(f"cannot read the prices: {why}", where=str(path), fix=OWN_FILE) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise UsageError(
            f"not valid YAML: {getattr(error, 'problem', error)}", where=where, fix="mend it there"
        ) from error
    if not isinstance(tree, dict):
        raise UsageError("prices are a mapping of keys to values", where=str(path), fix="start with `providers:`")
    return tree, {keys: f"{path}:{line}" for keys, line in line_numbers(node).items()}


def tunable(provider: Provider, method: Method, today: date) -> dict[str, TunableModel]:
    """The models of the table of which a provider still makes jobs of a kind."""
    if provider.jobs_until is not None and provider.jobs_until <= today:
        return {}
    return {
        name: model
        for name, model in provider.models.items()
        if method in (provider.methods if model.methods is None else model.methods)
        and (model.shutdown is None or model.shutdown > today)
    }


def stale_warnings(table: Table, provider: Provider, today: date, models: Iterable[str] | None = None) -> Iterator[str]:
    """What was last looked at long ago: the provider's own line, and the prices of some of its models.

    Args:
        table: Says how long is long.
        provider: Whose lines.
        today: The day.
        models: Names in the table; default: all.
    """
    if provider.own_machine:
        return
    lines = [(f"limits and dates of {provider.what}", provider.seen)]
    by_day: dict[date, list[str]] = {}
    for name in provider.models if models is None else dict.fromkeys(models):
        by_day.setdefault(provider.models[name].seen, []).append(name)
    lines += [(f"the prices of {', '.join(names)}", seen) for seen, names in by_day.items()]
    for what, seen in lines:
        if (warning := table.staleness(what, seen, today)) is not None:
            yield warning


def shutdown_warnings(provider: Provider, model: str, today: date) -> Iterator[str]:
    """What of the provider's calendar concerns a model."""
    found = find_model(provider, model)
    if found and (end := found[1].shutdown) is not None:
        word = "was" if end <= today else "will be"
        yield f"{found[0]}, and every model tuned from it, {word} shut down on {end}"
    if provider.jobs_until is not None:
        word = "took no" if provider.jobs_until <= today else "takes no"
        yield f"{provider.what} {word} new fine-tuning jobs from {provider.jobs_until} on"
