"""What tuning at a provider would cost on a given day, by the table of prices, and how to begin."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from typing import Any

from tunesmith.hosted import table as tables
from tunesmith.hosted.settings import Hosted
from tunesmith.hosted.table import Method, Provider, Table, TunableModel
from tunesmith.planning.costs import Range
from tunesmith.recipe import Recipe
from tunesmith.server.recipes import auto_epochs

EPOCHS = 3
"""Where a provider does not say how many it takes by itself."""
NOBODY = "the table of prices has no model that is tuned for money today: add one in a file that TUNESMITH_PRICES names"


@dataclass(frozen=True)
class Offer:
    """A model that a provider tunes.

    Attributes:
        provider: Its name in the table.
        model: Likewise.
        line: What the table says of the model.
        usd: Of training on the data, in US dollars.
    """

    provider: str
    model: str
    line: TunableModel
    usd: float


@dataclass(frozen=True)
class Offers:
    """All of them together.

    Attributes:
        cost: From the cheapest to the dearest.
        reasons: What to know of the cheapest, and the command to go on with.
        recipe: The recipe's keys for the cheapest.
    """

    cost: Range
    reasons: tuple[str, ...]
    recipe: dict[str, Any]


def offers(recipe: Recipe, rows: int, tokens: float, today: date) -> Offers | None:
    """What providers take for data of this size; ``None`` if none makes a job today.

    Args:
        recipe: Its task decides the kind of job, its `hosted.prices` the table.
        rows: Of the training data.
        tokens: Of one epoch.
        today: The day.

    Raises:
        UsageError: The user's own prices are malformed.
    """
    table = tables.load((recipe.hosted or Hosted()).prices)
    method: Method = "dpo" if recipe.task == "preference" else "supervised"
    found = sorted(_each(table, method, rows, tokens, today), key=lambda offer: offer.usd)
    if not found:
        return None
    low, high = found[0].usd, found[-1].usd
    best = found[0]
    return Offers(
        cost=Range(low, (low + high) / 2, high),
        reasons=tuple(_reasons(recipe, table, best, today)),
        recipe={"method": "hosted", "model": best.model, "hosted": {"provider": best.provider}},
    )


def _each(table: Table, method: Method, rows: int, tokens: float, today: date) -> Iterator[Offer]:
    for name, provider in table.providers.items():
        for model, line in tables.tunable(provider, method, today).items():
            if line.training is not None:
                yield Offer(name, model, line, _epochs(provider, rows) * tokens * line.training / 1e6)


def _epochs(provider: Provider, rows: int) -> int:
    return auto_epochs(rows) if provider.auto_epochs == "openai" else provider.auto_epochs or EPOCHS


def _reasons(recipe: Recipe, table: Table, best: Offer, today: date) -> Iterator[str]:
    yield f"the cheapest of the table is {best.model} of {table.provider(best.provider).what}"
    if best.line.shutdown is not None:
        yield f"it is shut down on {best.line.shutdown}"
    yield from tables.stale_warnings(table, table.provider(best.provider), today, [best.model])
    yield f"next: `{_command(recipe, best)}`"


def _command(recipe: Recipe, best: Offer) -> str:
    words = ["tunesmith", "hosted", "estimate", *recipe.data.train, "--task", recipe.task, "--model", best.model]
    words += ["--provider", best.provider]
    for field, column in recipe.data.columns.items():
        words += ["--set", f"data.columns.{field}={column if isinstance(column, str) else json.dumps(column)}"]
    return shlex.join(words)
