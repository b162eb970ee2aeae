"""What a set of runs says, and how sure that is."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["yes", "no", "undecided"]

# Student's t at 97.5 %, by degrees of freedom from 1 on; for more than these, the normal distribution's is near enough
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
_NORMAL = 1.96


@dataclass(frozen=True)
class Estimate:
    """A mean, its standard error (None for a single value), the values' standard deviation, and how many they are."""

    mean: float
    error: float | None
    deviation: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        if len(values) < 2:
            return cls(values[0] if values else math.nan, None, 0.0, len(values))
        deviation = statistics.stdev(values)
        return cls(statistics.mean(values), deviation / math.sqrt(len(values)), deviation, len(values))

    @property
    def reach(self) -> float | None:
        """Half of the 95 % confidence interval; None for a single value."""
        if self.error is None:
            return None
        freedom = self.count - 1
        return self.error * (_T[freedom - 1] if freedom <= len(_T) else _NORMAL)

    def above(self, limit: float) -> Verdict:
        """Whether the mean lies above a limit or below it; undecided while the limit is within the 95 % interval."""
        if self.reach is None or math.isnan(self.mean):
            return "undecided"
        if self.mean - self.reach > limit:
            return "yes"
        return "no" if self.mean + self.reach < limit else "undecided"

    def within(self, limit: float) -> Verdict:
        """Whether the mean lies within ± a limit with its whole 95 % interval; "no" when that lies outside."""
        if self.reach is None or math.isnan(self.mean):
            return "undecided"
        if abs(self.mean) + self.reach < limit:
            return "yes"
        return "no" if abs(self.mean) - self.reach > limit else "undecided"

    def text(self, unit: str = "", digits: int = 2, sign: bool = False) -> str:
        """The mean ± its standard error, which is left out where there is none."""
        number = f"{self.mean:+.{digits}f}" if sign else f"{self.mean:.{digits}f}"
        error = f" ± {self.error:.{digits}f}" if self.error else ""
        return f"{number}{error}{unit and ' ' + unit}"


def by_object(values: Sequence[float | None], objects: Sequence[int]) -> Estimate:
    """An estimate whose samples are objects, because seeds of one object are no independent witnesses; with a single object the
    seeds must do. Values of None are left out.

    Args:
        values, objects: of each run, in one order.
    """
    known: dict[int, list[float]] = {}
    for value, index in zip(values, objects, strict=True):
        if value is not None and not math.isnan(value):
            known.setdefault(index, []).append(value)
    if len(known) == 1:
        return Estimate.of(next(iter(known.values())))
    return Estimate.of([statistics.mean(group) for group in known.values()])


def reached(curve: Sequence[tuple[float, float]], quality: float) -> float | None:
    """Where a curve of (cost, quality) first reaches a quality, linear between its points; None when it never does."""
    previous = None
    for cost, value in curve:
        if value >= quality:
            if previous is None or value == previous[1]:
                return cost
            before, low = previous
            return before + (cost - before) * (quality - low) / (value - low)
        previous = (cost, value)
    return None


def ratio_at_equal_quality(
    ours: Sequence[tuple[float, float]], theirs: Sequence[tuple[float, float]]
) -> tuple[float, float] | None:
    """(their cost / our cost, quality) where both have the best quality that both reach."""
    quality = min(max(value for _, value in ours), max(value for _, value in theirs))
    cost, other = reached(ours, quality), reached(theirs, quality)
    return None if not cost or other is None else (other / cost, quality)
