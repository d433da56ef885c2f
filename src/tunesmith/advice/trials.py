"""Quick real trials within a time: successive halving over the ways (Jamieson & Talwalkar 2016, arXiv 1502.07943).

All ways learn from few rows; the better half from three times as many, and so on until the rows or the time run out.
Optuna's pruner of this name stops trials of a search while they run. Here there are four or five candidates and
nothing to sample, and what grows is the training set, so a page of plain code does it without another dependency.
"""

from __future__ import annotations

import math
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tunesmith.errors import TunesmithError, UsageError
from tunesmith.events import Listener, Notice, nobody

GROWTH = 3
"""Each rung has so many times the rows of the one before; the way that goes on is chosen by half."""
RUNGS = 3
FEWEST_ROWS = 60
_SPAN = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h)?")


@dataclass(frozen=True)
class Trial:
    """One way, tried.

    Attributes:
        way: Its name.
        rows: Rows it learned from.
        metric: The task's primary metric.
        value: Of it.
        low: Lower limit of the interval.
        high: Upper limit.
        seconds: The whole trial took.
        better_is: 1 where more is better, -1 where less is.
    """

    way: str
    rows: int
    metric: str
    value: float
    low: float
    high: float
    seconds: float
    better_is: int = 1


Run = Callable[[str, int], Trial]


def seconds_of(text: str) -> float:
    """``90``, ``90s``, ``10m`` or ``1h`` in seconds.

    Raises:
        UsageError: It is none of these.
    """
    match = _SPAN.fullmatch(text.strip())
    seconds = float(match[1]) * {"s": 1, None: 1, "m": 60, "h": 3600}[match[2]] if match else 0.0
    if seconds <= 0:
        raise UsageError(f"{text!r} is no time", where="--trials", fix="give one as `90s`, `10m` or `1h`")
    return seconds


def rungs(rows: int) -> list[int]:
    """Rows of each rung, the last one all."""
    fewer = [math.ceil(rows / GROWTH**n) for n in range(RUNGS)]
    return sorted({count for count in fewer if count >= FEWEST_ROWS} | {rows})


def halving(
    ways: Sequence[str],
    rows: int,
    seconds: float,
    run: Run,
    on_event: Listener = nobody,
    *,
    planned: Mapping[str, float] = {},  # it is only read
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Trial]:
    """Try the ways; the last trial of each counts.

    Each rung has an equal share of the time, as successive halving has it, with what the rungs before it left; so the
    small ones cannot use up what the large ones need. A trial is not begun that would end after its rung's time: by
    the last trial of the same way, or by its plan, or by the trials of other ways. The first one is made in any case.

    Args:
        ways: To try, the most promising first.
        rows: All training rows.
        seconds: The time.
        run: Makes one trial.
        on_event: Told what is tried and what is left out.
        planned: Way -> seconds that it is planned to take with all rows.
        clock: Seconds since some moment.
    """
    start = clock()
    done: dict[str, Trial] = {}
    left = list(ways)
    counts = rungs(rows)
    for number, count in enumerate(counts, 1):
        end = start + seconds * number / len(counts)
        for way in list(left):
            if clock() >= end or clock() + _expected(way, count, done, planned, rows) > end:
                reason = f"{way} is not tried with {count:,} rows: there is no time for it"
                on_event(Notice(level="info", message=reason, fix="give --trials more time"))
                continue
            on_event(Notice(level="info", message=f"trying {way} with {count:,} rows"))
            try:
                done[way] = run(way, count)
            except TunesmithError as error:
                on_event(Notice(level="warning", message=f"{way} cannot be tried: {error.what}", fix=error.fix))
                left.remove(way)
        left = [way for way in left if way in done]
        left.sort(key=lambda way: -done[way].better_is * done[way].value)
        left = left[: max(1, math.ceil(len(left) / 2))]
    return done


def _expected(way: str, count: int, done: Mapping[str, Trial], planned: Mapping[str, float], rows: int) -> float:
    """Seconds that a trial of so many rows will take."""
    if not done:
        return 0.0
    if way in done:
        return done[way].seconds * count / done[way].rows
    if way in planned:
        return planned[way] * count / rows
    return count * statistics.mean(trial.seconds / trial.rows for trial in done.values())
