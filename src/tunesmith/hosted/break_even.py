"""After how many calls tuning has paid for itself, and whether the model lives that long."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import date
from typing import Any

DAYS_A_MONTH = 365.25 / 12


@dataclass(frozen=True)
class BreakEven:
    """When a way with a cost at the beginning has become cheaper than one without.

    Attributes:
        way: What costs at the beginning.
        against: What it is compared with.
        calls: How many calls it takes; ``None`` for never.
        days_left: Until `way` is shut down; ``None`` if no day is known.
        calls_a_day_needed: Calls a day that reach the number in time; ``None`` if never, or no day is known.
        verdict: In one sentence.
    """

    way: str
    against: str
    calls: float | None
    days_left: int | None
    calls_a_day_needed: float | None
    verdict: str

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def break_even_calls(fixed: float, call: float, other_call: float) -> float | None:
    """Calls after which ``fixed + n * call`` is no more than ``n * other_call``; ``None`` for never.

    Args:
        fixed: Dollars at the beginning, for training.
        call: Dollars a call of the tuned model, without examples in its prompt.
        other_call: Dollars a call of what it replaces, examples and cached tokens counted.
    """
    saved = other_call - call
    if fixed <= 0:
        return 0.0 if saved >= 0 else None
    return fixed / saved if saved > 0 else None


def break_even(
    way: str,
    against: str,
    *,
    fixed: float,
    call: float,
    other_call: float,
    shutdown: date | None,
    today: date,
    calls_a_month: float | None = None,
) -> BreakEven:
    """The number of calls, capped by the day on which the model is shut down.

    Args:
        way: Name of what costs at the beginning.
        against: Name of what it is compared with.
        fixed: As of :func:`break_even_calls`.
        call: Likewise.
        other_call: Likewise.
        shutdown: The last day but one of the tuned model.
        today: From which on calls are made.
        calls_a_month: How many are expected; ``None`` leaves open whether the day comes first.
    """
    calls = break_even_calls(fixed, call, other_call)
    days = None if shutdown is None else (shutdown - today).days
    if days is not None and days <= 0:
        text = f"never: {way} was shut down on {shutdown}"
        return BreakEven(way, against, None, days, None, text)
    if calls is None:
        text = f"never: a call of {way} costs ${call:.6f}, one of {against} ${other_call:.6f}"
        return BreakEven(way, against, None, days, None, text)
    needed = None if days is None else calls / days
    if days is not None and calls_a_month is not None and calls > days * calls_a_month / DAYS_A_MONTH:
        within = days * calls_a_month / DAYS_A_MONTH
        text = (
            f"never: {way} would pay off against {against} after {calls:,.0f} calls, and until it is shut down on "
            f"{shutdown} there are {within:,.0f} at {calls_a_month:,.0f} a month"
        )
        return BreakEven(way, against, None, days, needed, text)
    text = f"{way} pays off against {against} after {calls:,.0f} calls"
    if calls_a_month:
        text += f", that is {calls / calls_a_month * DAYS_A_MONTH:,.0f} days at {calls_a_month:,.0f} calls a month"
    elif needed is not None:
        text += f", if there are at least {needed:,.0f} a day until it is shut down on {shutdown}"
    return BreakEven(way, against, calls, days, needed, text)
