"""What runs took against what was planned for them, remembered on this machine to correct later plans.

A sample is one run. Corrections are medians of ratios, so that one odd run changes little; ratios that no machine
explains are left out. Kinds of runs are kept apart, for the model of costs errs alike for like runs; a kind that was
never run takes the median of all, with a wider range.
"""

from __future__ import annotations

import contextlib
import json
import statistics
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from tunesmith.planning.costs import Range

KEPT_SAMPLES = 20  # of each kind and machine; the oldest go
ODDEST = 6.0
"""A run that took more than so many times the plan, or less than its inverse, was not what was planned."""
LEAST_SECONDS = 5.0
"""Shorter runs are mostly their first updates."""
MEMORY_NOISE = 256e6
"""Bytes by which a process differs from run to run. What is planned and measured is compared with so much added to
both, so that the ratio of two small numbers teaches nothing."""
ROOM = {"same": (0.85, 1.25), "other": (0.6, 1.7), "none": (0.5, 2.2)}
"""Lower and upper bound as shares of the expected time: after runs of the same kind, of other kinds, of none."""
MEMORY_ROOM = {"same": (0.85, 1.15), "other": (0.75, 1.3), "none": (0.75, 1.35)}
"""The same for what memory depends on the passes for; the weights' part is exact."""


@dataclass(frozen=True)
class Sample:
    """One run.

    Attributes:
        machine: Name of the device.
        kind: Of the run, see :func:`kind_of`.
        planned_seconds: Of its updates, without any correction.
        seconds: What they took by the clock.
        own_seconds: What they took of the processors' time, divided by the threads: the time on an idle machine.
        planned_bytes: What was planned for activations, scores and allocator, without any correction.
        bytes: What the run took beside process, weights, gradients and optimizer.
        time: When it ended, Unix time.
    """

    machine: str
    kind: str
    planned_seconds: float
    seconds: float
    own_seconds: float
    planned_bytes: float
    bytes: float
    time: float

    @property
    def bytes_ratio(self) -> float:
        """Measured over planned memory, as far as it means anything."""
        return ratio_of_bytes(self.bytes, self.planned_bytes)


@dataclass(frozen=True)
class Correction:
    """What to multiply a plan by.

    Attributes:
        seconds: For the time.
        bytes: For what memory depends on the passes for.
        sharing: How much longer runs took by the clock than on a machine of their own.
        basis: ``same`` kind, ``other`` kinds, or ``none``.
        samples: How many runs it comes from.
    """

    seconds: float = 1.0
    bytes: float = 1.0
    sharing: float = 1.0
    basis: str = "none"
    samples: int = 0

    def time_range(self, planned: float) -> Range:
        """Range of a planned time. Its upper bound is that of a machine shared as it was before."""
        low, high = ROOM[self.basis]
        expected = planned * self.seconds
        return Range(low * expected, expected, high * expected * self.sharing)

    def memory_range(self, fixed: float, planned: float) -> Range:
        """Range of memory of which one part is exact and the other planned."""
        low, high = MEMORY_ROOM[self.basis]
        expected = planned * self.bytes
        return Range(fixed + low * expected, fixed + expected, fixed + high * expected)


def ratio_of_bytes(measured: float, planned: float) -> float:
    """Measured over planned memory, near 1 where both are small."""
    return (max(0.0, measured) + MEMORY_NOISE) / (max(0.0, planned) + MEMORY_NOISE)


def kind_of(*, form: str, objective: str, parameters: str, dtype: str, compiled: bool) -> str:
    """Runs of one kind spend their time in the same operations."""
    return "/".join([form, objective, parameters, dtype, *(["compiled"] if compiled else [])])


def correction(machine: str, kind: str) -> Correction:
    """What earlier runs on this machine say about a run of this kind."""
    known = [sample for sample in _samples() if sample.machine == machine and _plausible(sample)]
    same = [sample for sample in known if sample.kind == kind]
    used = same or known
    if not used:
        return Correction()
    return Correction(
        seconds=statistics.median(sample.own_seconds / sample.planned_seconds for sample in used),
        bytes=statistics.median(sample.bytes_ratio for sample in used) if same else 1.0,
        sharing=max(1.0, statistics.median(sample.seconds / sample.own_seconds for sample in used)),
        basis="same" if same else "other",
        samples=len(used),
    )


def record(sample: Sample) -> bool:
    """Remember a run, unless it is too short or too odd to learn from. Nothing fails where nothing can be written.

    Returns:
        Whether it is remembered.
    """
    if sample.seconds < LEAST_SECONDS or not _plausible(sample):
        return False
    from tunesmith import disk
    from tunesmith.catalog import cache
    from tunesmith.errors import TunesmithError

    with contextlib.suppress(OSError, TunesmithError), cache.locked("calibration"):
        others = [known for known in _samples() if (known.machine, known.kind) != (sample.machine, sample.kind)]
        alike = [known for known in _samples() if (known.machine, known.kind) == (sample.machine, sample.kind)]
        kept = [*others, *alike[1 - KEPT_SAMPLES :], sample]
        disk.write_json(_path(), {"samples": [asdict(known) for known in kept]})
        return True
    return False


def _plausible(sample: Sample) -> bool:
    if not (sample.planned_seconds > 0 and sample.own_seconds > 0):
        return False
    ratios = (sample.own_seconds / sample.planned_seconds, sample.bytes_ratio)
    return all(1 / ODDEST < ratio < ODDEST for ratio in ratios)


def _sample(entry: dict[str, Any]) -> Sample:
    """A sample with its numbers made sure of."""
    numbers = [float(entry[f.name]) for f in fields(Sample)[2:]]
    return Sample(str(entry["machine"]), str(entry["kind"]), *numbers)


def _path() -> Path:
    from tunesmith.catalog import cache

    return cache.root() / "calibration.json"


def _samples() -> list[Sample]:
    """All that are remembered; a file that cannot be read is as none."""
    try:
        tree: Any = json.loads(_path().read_text(encoding="utf-8"))
        return [_sample(entry) for entry in tree["samples"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []
