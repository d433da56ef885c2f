"""What a job costs before it is made, and what a thousand calls of the tuned model cost after it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import date
from typing import Any

from tunesmith.hosted import clock
from tunesmith.hosted.check import Checked, Size
from tunesmith.hosted.table import Provider, Rate, Table, TunableModel, find_model, stale_warnings
from tunesmith.recipe import Recipe
from tunesmith.server.recipes import auto_epochs


@dataclass(frozen=True)
class Estimate:
    """Tokens and money.

    Attributes:
        rows: Rows of the training file.
        tokens: Tokens of one epoch.
        epochs: Passes over the rows; ``None`` where the provider does not say what `auto` means.
        billed_tokens: The product.
        training_cost_usd: Dollars; ``None`` where no price is known.
        price_date: When the price was last seen, ISO 8601.
        tuned_usd_per_1000_calls: With the rows' own mean question and answer.
        base_usd_per_1000_calls: The same asked of the untuned model.
        warnings: What the figures do not say.
    """

    rows: int
    tokens: int
    epochs: int | None
    billed_tokens: int | None
    training_cost_usd: float | None
    price_date: str | None
    tuned_usd_per_1000_calls: float | None
    base_usd_per_1000_calls: float | None
    warnings: list[str]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def estimate(checked: Checked, recipe: Recipe, table: Table, *, today: date | None = None) -> Estimate:
    """Tokens and money of a job.

    Args:
        checked: Its data.
        recipe: With the number of epochs.
        table: Prices.
        today: By which a price is stale.
    """
    provider, size, today = checked.provider, checked.size, today or clock.today()
    warnings = list(checked.warnings)
    found = find_model(provider, recipe.model)
    model = found[1] if found else None
    epochs = epochs_of(recipe, provider, size.rows)
    if epochs is None:
        warnings.append(f"how many epochs {provider.what} takes for `auto` is not known: give a number")
    billed = None if epochs is None else size.tokens * epochs
    cost, more = _training_cost(provider, model, recipe.model, billed, checked.method)
    seen = None if provider.own_machine else model.seen if model else None
    stale = stale_warnings(table, provider, today, [found[0]] if found else [])
    return Estimate(
        rows=size.rows,
        tokens=size.tokens,
        epochs=epochs,
        billed_tokens=billed,
        training_cost_usd=cost,
        price_date=seen.isoformat() if seen else None,
        tuned_usd_per_1000_calls=_per_thousand(model.tuned if model else None, size),
        base_usd_per_1000_calls=_per_thousand(model.base if model else None, size),
        warnings=[*warnings, *more, *stale, *_uncounted(checked)],
    )


def epochs_of(recipe: Recipe, provider: Provider, rows: int) -> int | None:
    """The number of epochs, as the provider computes it where it is left open."""
    asked = recipe.hosted.epochs if recipe.hosted else "auto"
    if asked != "auto":
        return asked
    return auto_epochs(rows) if provider.auto_epochs == "openai" else provider.auto_epochs


def _training_cost(
    provider: Provider, model: TunableModel | None, name: str, billed: int | None, method: str
) -> tuple[float | None, list[str]]:
    if provider.own_machine:
        return 0.0, ["your own machine asks no money for tokens: `tunesmith plan` says how long it will take"]
    if model is None or (model.training is None and model.training_hour is None):
        return None, [f"no price is known of training {name} at {provider.what}: add it by `--prices FILE`"]
    if method == "reinforcement" or model.training is None:
        by_hour = "" if model.training_hour is None else f": {model.training_hour:g} dollars an hour"
        return None, [f"this kind of training is charged by the hour, not by tokens{by_hour}"]
    return None if billed is None else billed * model.training / 1e6, []


def _per_thousand(rate: Rate | None, size: Size) -> float | None:
    if rate is None or not size.rows:
        return None
    return 1000 * rate.cost(size.prompt_tokens, size.answer_tokens) / size.rows


def _uncounted(checked: Checked) -> list[str]:
    size, left_out = checked.size, checked.report.rows_left_out.get("errors", 0)
    found = []
    if left_out:
        found.append(f"{left_out:,} rows have errors and are not counted: see `tunesmith hosted check`")
    if size.num_too_long:
        found.append(f"{size.num_too_long:,} rows are longer than the provider reads: the rest of them is not counted")
    if size.with_tools:
        found.append(f"{size.with_tools:,} rows describe tools: how their tokens are counted is not published")
    if size.with_pictures:
        found.append(f"{size.with_pictures:,} rows hold pictures, whose tokens are not counted")
    if checked.method == "dpo":
        found.append("rows of preferences are counted with both answers, each after its prompt")
    return found
