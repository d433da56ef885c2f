"""What can be in a job's way before a row is read: the calendar, the model's name, the grader, a missing key."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import Any

from tunesmith.errors import UsageError
from tunesmith.hosted import check, client, clock, jobs
from tunesmith.hosted.settings import Hosted
from tunesmith.hosted.table import Table, find_model, tunable
from tunesmith.recipe import Recipe


def refuse_closed(recipe: Recipe, known: Table, today: date, *, live: date | None = None) -> None:
    """Stop before any work where the calendar says that it is in vain.

    Args:
        recipe: With `method: hosted`.
        known: The table of prices and dates.
        today: The day.
        live: The last day as the provider itself says it.

    Raises:
        UsageError: With what to do instead.
    """
    provider = known.provider((recipe.hosted or Hosted()).provider)
    found = find_model(provider, recipe.model)
    in_table = found[1].shutdown if found else None
    name = found[0] if found else recipe.model
    for shutdown in (in_table, live):
        if shutdown is not None and shutdown <= today:
            others = [other for other in tunable(provider, check.method_of(recipe), today) if other != name]
            raise UsageError(f"{name} was shut down on {shutdown}", where="model", fix=_instead(others))
    if provider.jobs_until is not None and provider.jobs_until <= today:
        raise UsageError(
            f"{provider.what} takes no new fine-tuning jobs since {provider.jobs_until}",
            where="hosted.provider",
            fix=_instead([]),
        )


def _instead(others: list[str]) -> str:
    named = f" ({', '.join(others)})" if others else ""
    here = "or here: `tunesmith hosted import` takes an old job home"
    return f"tune another model{named}, at another `--provider`, {here}"


def refuse_in_vain(recipe: Recipe, known: Table, state: Mapping[str, Any] | None = None) -> None:
    """Stop before data are read where the job could not be made, or not be asked after, whatever the data are.

    Args:
        recipe: Resolved, with `method: hosted`.
        known: The table of prices and dates.
        state: Of a run that is gone on with: once its job may be made, closing days no longer matter.

    Raises:
        UsageError: The model is past its last day, no jobs are taken any more, the grader is wrong, or the address is.
        NotFoundError: The provider or the model is not in the table.
        ResourceError: There is no key.
    """
    if state is None or not jobs.may_be_made(state):
        refuse_closed(recipe, known, clock.today())
        check.of_model(recipe, known, clock.today())
    client.access(recipe.hosted or Hosted(), known)
