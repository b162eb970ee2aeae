"""Estimates from a set of runs with their uncertainty, and verdicts."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

Verdict = Literal["yes", "no", "undecided"]


@dataclass(frozen=True)
class Estimate:
    """A mean, its standard error (None for a single value), the values' standard deviation, and their number."""

    mean: float
    error: float | None
    deviation: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """Estimate from independent values; of none, the mean is NaN."""
        if len(values) < 2:
            return cls(values[0] if values else math.nan, None, 0.0, len(values))
        deviation = statistics.stdev(values)
        return cls(statistics.mean(values), deviation / math.sqrt(len(values)), deviation, len(values))

    @property
    def reach(self) -> float | None:
        """Half of the 95 % confidence interval (Student's t); None for a single value."""
        from scipy.special import stdtrit

        return None if self.error is None else self.error * float(stdtrit(self.count - 1, 0.975))

    def above(self, limit: float) -> Verdict:
        """Judge whether the mean lies above a limit; undecided if the limit is within the 95 % interval."""
        return judge(self.mean - limit, self.reach)

    def below(self, limit: float) -> Verdict:
        """Judge whether the mean lies below a limit; undecided if the limit is within the 95 % interval."""
        return judge(limit - self.mean, self.reach)

    def within(self, limit: float) -> Verdict:
        """Judge whether the whole 95 % interval lies within ± a limit; "no" if it lies outside."""
        return judge(limit - abs(self.mean), self.reach)

    def text(self, digits: int = 2) -> str:
        """Write the mean ± its standard error, if there is one."""
        return f"{self.mean:.{digits}f}" + (f" ± {self.error:.{digits}f}" if self.error else "")

    def interval(self, unit: str = "") -> str:
        """Write the mean with its sign and the 95 % interval by which claims are judged."""
        return f"{self.mean:+.2f}{unit and ' ' + unit} {self._write_ends(lambda end: f'{end:+.2f}')}"

    def factor(self, digits: int = 2) -> str:
        """Write an estimate of logarithms as the factor with its 95 % interval."""
        if math.isnan(self.mean):
            return "an unknown number of"
        return f"{math.exp(self.mean):.{digits}f} {self._write_ends(lambda end: f'{math.exp(end):.{digits}f}')}"

    def _write_ends(self, write: Callable[[float], str]) -> str:
        if self.reach is None:
            return "(one sample)"
        return f"(95 %: {write(self.mean - self.reach)} to {write(self.mean + self.reach)})"


def judge(margin: float, reach: float | None) -> Verdict:
    """Judge a margin over a criterion; undecided if it is not larger than the reach of its uncertainty, or that is unknown."""
    if reach is None or math.isnan(margin) or abs(margin) <= reach:
        return "undecided"
    return "yes" if margin > 0 else "no"


def estimate_objects(values: Sequence[float | None], objects: Sequence[int]) -> Estimate:
    """Estimate a number with objects as samples: seeds of one object are not independent, so they are averaged.

    With a single object, seeds are the samples.

    Args:
        values, objects: of each run, in the same order; None values are left out.

    >>> estimate_objects([1.0, 3.0, 4.0, 6.0], [0, 0, 1, 1]).mean
    3.5
    """
    groups = _group_by_object(values, objects).values()
    return Estimate.of([*map(statistics.mean, groups)] if len(groups) != 1 else [*chain(*groups)])


def average_objects(values: Sequence[float | None], objects: Sequence[int]) -> dict[int, float]:
    """Average each object's values that are not None."""
    return {index: statistics.mean(group) for index, group in _group_by_object(values, objects).items()}


def _group_by_object(values: Sequence[float | None], objects: Sequence[int]) -> dict[int, list[float]]:
    known: dict[int, list[float]] = {}
    for value, index in zip(values, objects, strict=True):
        if value is not None and not math.isnan(value):
            known.setdefault(index, []).append(value)
    return known


def find_cost(curve: Sequence[tuple[float, float]], quality: float) -> float | None:
    """Find the cost at which a curve of (cost, quality) first reaches a quality, interpolated linearly; None if it never does.

    >>> find_cost([(0.0, 10.0), (2.0, 20.0)], 15.0)
    1.0
    """
    for (before, low), (cost, value) in zip([*curve[:1], *curve], curve, strict=False):
        if value >= quality:
            return cost if value == low else before + (cost - before) * (quality - low) / (value - low)
    return None


def compare_costs(
    ours: Sequence[tuple[float, float]], theirs: Sequence[tuple[float, float]], below: float = 0.0
) -> tuple[float, float] | None:
    """Find (their cost / our cost, quality) at the best quality that both curves reach, or one ``below`` it."""
    quality = min(max(value for _, value in curve) for curve in (ours, theirs)) - below
    cost, other = find_cost(ours, quality), find_cost(theirs, quality)
    return None if not cost or other is None else (other / cost, quality)
