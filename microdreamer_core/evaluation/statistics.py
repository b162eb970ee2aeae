"""What a set of runs says, and how sure that is."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["yes", "no", "undecided"]

SURE = 2.0
"""Standard errors that a difference must be away from its limit to count."""


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

    def above(self, limit: float) -> Verdict:
        """Whether the mean lies above a limit by more than ``SURE`` standard errors, below it by as much, or neither."""
        if self.error is None or math.isnan(self.mean):
            return "undecided"
        if self.mean - SURE * self.error > limit:
            return "yes"
        return "no" if self.mean + SURE * self.error < limit else "undecided"

    def within(self, limit: float) -> Verdict:
        """Whether the mean lies within ± a limit, all its standard errors included; "no" when it surely lies outside."""
        if self.error is None or math.isnan(self.mean):
            return "undecided"
        reach = SURE * self.error
        if abs(self.mean) + reach < limit:
            return "yes"
        return "no" if abs(self.mean) - reach > limit else "undecided"

    def text(self, unit: str = "", digits: int = 2, sign: bool = False) -> str:
        """The mean ± its standard error."""
        number = f"{self.mean:+.{digits}f}" if sign else f"{self.mean:.{digits}f}"
        error = "" if self.error is None else f" ± {self.error:.{digits}f}"
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
