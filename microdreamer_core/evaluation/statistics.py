"""Estimates from a set of runs with their uncertainty, and verdicts."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
        if len(values) < 2:
            return cls(values[0] if values else math.nan, None, 0.0, len(values))
        deviation = statistics.stdev(values)
        return cls(statistics.mean(values), deviation / math.sqrt(len(values)), deviation, len(values))

    @property
    def reach(self) -> float | None:
        """Half of the 95 % confidence interval (Student's t); None for a single value."""
        if self.error is None:
            return None
        from scipy.special import stdtrit

        return self.error * float(stdtrit(self.count - 1, 0.975))

    def above(self, limit: float) -> Verdict:
        """Judge whether the mean lies above a limit; undecided if the limit is within the 95 % interval."""
        return _judge(self.mean - limit, self.reach)

    def below(self, limit: float) -> Verdict:
        """Judge whether the mean lies below a limit; undecided if the limit is within the 95 % interval."""
        return _judge(limit - self.mean, self.reach)

    def within(self, limit: float) -> Verdict:
        """Judge whether the whole 95 % interval lies within ± a limit; "no" if it lies outside."""
        return _judge(limit - abs(self.mean), self.reach)

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


def _judge(margin: float, reach: float | None) -> Verdict:
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
    known = _group_by_object(values, objects)
    if len(known) == 1:
        return Estimate.of(next(iter(known.values())))
    return Estimate.of([statistics.mean(group) for group in known.values()])


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
    previous = None
    for cost, value in curve:
        if value >= quality:
            if previous is None or value == previous[1]:
                return cost
            before, low = previous
            return before + (cost - before) * (quality - low) / (value - low)
        previous = (cost, value)
    return None


def compare_costs(
    ours: Sequence[tuple[float, float]], theirs: Sequence[tuple[float, float]], below: float = 0.0
) -> tuple[float, float] | None:
    """Find (their cost / our cost, quality) at the best quality that both curves reach, or one ``below`` it."""
    quality = min(max(value for _, value in ours), max(value for _, value in theirs)) - below
    cost, other = find_cost(ours, quality), find_cost(theirs, quality)
    return None if not cost or other is None else (other / cost, quality)
