"""What a set of runs says, and how sure that is."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["yes", "no", "undecided"]


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
        from scipy.special import stdtrit

        return self.error * float(stdtrit(self.count - 1, 0.975))

    def above(self, limit: float) -> Verdict:
        """Whether the mean lies above a limit or below it; undecided while the limit is within the 95 % interval."""
        if self.reach is None or math.isnan(self.mean):
            return "undecided"
        if self.mean - self.reach > limit:
            return "yes"
        return "no" if self.mean + self.reach < limit else "undecided"

    def below(self, limit: float) -> Verdict:
        """As ``above``, the other way round."""
        return Estimate(-self.mean, self.error, self.deviation, self.count).above(-limit)

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

    def interval(self, unit: str = "", digits: int = 2) -> str:
        """The mean with its sign and its 95 % interval, as a claim is judged by it."""
        number = f"{self.mean:+.{digits}f}{unit and ' ' + unit}"
        if self.reach is None:
            return f"{number} (one sample)"
        return f"{number} (95 %: {self.mean - self.reach:+.{digits}f} to {self.mean + self.reach:+.{digits}f})"

    def factor(self, digits: int = 2) -> str:
        """Of an estimate of logarithms: the factor with its 95 % interval."""
        if math.isnan(self.mean):
            return "an unknown number of"
        number = f"{math.exp(self.mean):.{digits}f}"
        if self.reach is None:
            return f"{number} (one sample)"
        low, high = (math.exp(self.mean + side * self.reach) for side in (-1, 1))
        return f"{number} (95 %: {low:.{digits}f} to {high:.{digits}f})"


def by_object(values: Sequence[float | None], objects: Sequence[int]) -> Estimate:
    """An estimate whose samples are objects, because seeds of one object are no independent witnesses; with a single object the
    seeds must do. Values of None are left out.

    Args:
        values, objects: of each run, in one order.
    """
    known = _group_by_object(values, objects)
    if len(known) == 1:
        return Estimate.of(next(iter(known.values())))
    return Estimate.of([statistics.mean(group) for group in known.values()])


def mean_or_nan(values: Sequence[float]) -> float:
    """The mean; not a number when there is nothing."""
    return statistics.mean(values) if values else math.nan


def object_means(values: Sequence[float | None], objects: Sequence[int]) -> dict[int, float]:
    """The mean of each object's values that are not None."""
    return {index: statistics.mean(group) for index, group in _group_by_object(values, objects).items()}


def _group_by_object(values: Sequence[float | None], objects: Sequence[int]) -> dict[int, list[float]]:
    known: dict[int, list[float]] = {}
    for value, index in zip(values, objects, strict=True):
        if value is not None and not math.isnan(value):
            known.setdefault(index, []).append(value)
    return known


def cost_to_reach(curve: Sequence[tuple[float, float]], quality: float) -> float | None:
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
    ours: Sequence[tuple[float, float]], theirs: Sequence[tuple[float, float]], below: float = 0.0
) -> tuple[float, float] | None:
    """(their cost / our cost, quality) where both have the best quality that both reach, or one ``below`` it."""
    quality = min(max(value for _, value in ours), max(value for _, value in theirs)) - below
    cost, other = cost_to_reach(ours, quality), cost_to_reach(theirs, quality)
    return None if not cost or other is None else (other / cost, quality)
