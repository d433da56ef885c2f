"""Durations, sizes and intervals in words, the same wherever people read them."""

from __future__ import annotations

from typing import Any

SIZES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "bytes"))
TIMES = ((3600, "hours"), (60, "minutes"), (1, "seconds"))


def duration(seconds: float) -> str:
    """``0.42 s``, ``38 s``, ``3 min 12 s``, ``2 h 05 min``."""
    whole = round(seconds)
    if whole < 10:
        return f"{round(seconds, 3):.2g} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def duration_span(low: float, high: float) -> str:
    """Two numbers of seconds in the unit that suits the larger, or one if they are equal: ``1.5 to 2.2 minutes``."""
    unit, title = next(((u, t) for u, t in TIMES if high >= 2 * u), TIMES[-1])
    return f"{low / unit:.1f} {title}" if low == high else f"{low / unit:.1f} to {high / unit:.1f} {title}"


def size(count: float) -> str:
    """Bytes as ``312 kB``, ``1.4 GB`` (powers of 1000)."""
    unit, title = _size_unit(count)
    return f"{count / unit:.3g} {title}"


def size_span(low: float, high: float) -> str:
    """Two numbers of bytes in the unit that suits the larger: ``0.95 to 1.4 GB``."""
    unit, title = _size_unit(high)
    return f"{low / unit:.3g} to {high / unit:.3g} {title}"


def not_used(rows: int) -> str:
    """That so many rows are not used."""
    return f"{rows:,} {'row is' if rows == 1 else 'rows are'} not used"


def interval(found: Any, *, signed: bool = False) -> str:
    """An interval (``{"value", "low", "high"}``, or an object with these) as ``0.843 [0.812, 0.871]``.

    Args:
        found: The interval.
        signed: Write the sign of positive numbers too, as differences want it.
    """
    values = found if isinstance(found, dict) else found.as_dict()
    value, low, high = (f"{values[name]:{'+' if signed else ''}.3f}" for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _size_unit(count: float) -> tuple[float, str]:
    """The largest unit of which there is one, in three digits."""
    return next(((unit, title) for unit, title in SIZES if float(f"{count / unit:.3g}") >= 1), SIZES[-1])
