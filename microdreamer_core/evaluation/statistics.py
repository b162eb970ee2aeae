"""Estimates from a set of runs with their uncertainty, and verdicts."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Verdict = Literal["yes", "no", "undecided"]
Samples = Mapping[tuple[Any, int], float]
"""A number of each run that has it, by the run's subject and seed."""


@dataclass(frozen=True)
class Estimate:
    """A mean, its standard error (None for a single value), the values' standard deviation, and their number.

    In format strings a number's format writes it ± its error; "spread FORMAT" ± its deviation; "interval UNIT" with the 95 %
    interval by which claims are judged, and "factor" does so for an estimate of logarithms.

    >>> f"{Estimate.of([1.0, 2.0, 3.0]):.1f}", f"{Estimate.of([1.0]):interval dB}"
    ('2.0 ± 0.6', '+1.00 dB (one sample)')
    """

    mean: float
    error: float | None
    deviation: float
    count: int

    @classmethod
    def of(cls, values: Collection[float]) -> Estimate:
        """Estimate from independent values; of none, the mean is NaN."""
        if len(values) < 2:
            return cls(next(iter(values), math.nan), None, 0.0, len(values))
        deviation = statistics.stdev(values)
        return cls(statistics.mean(values), deviation / math.sqrt(len(values)), deviation, len(values))

    @classmethod
    def of_runs(cls, samples: Samples) -> Estimate:
        """Estimate with subjects as samples: seeds of one subject are not independent, so they are averaged.

        With a single subject, seeds are the samples.
        """
        means = average(samples)
        return cls.of((means if len(means) != 1 else samples).values())

    @property
    def reach(self) -> float | None:
        """Half of the 95 % confidence interval (Student's t); None for a single value."""
        from scipy.special import stdtrit

        return None if self.error is None else self.error * float(stdtrit(self.count - 1, 0.975))

    def judge(self, relation: str, limit: float) -> Verdict:
        """Judge whether the mean lies "above" or "below" a limit, or "within" ± it, or is of the logarithms of more "times" it;
        undecided if the limit is within the 95 % interval."""
        distance = self.mean - (math.log(limit) if relation == "times" else limit)
        margin = {"below": -distance, "within": limit - abs(self.mean)}.get(relation, distance)
        return judge(margin, self.reach)

    def __format__(self, spec: str) -> str:
        kind, _, unit = spec.partition(" ")
        if kind == "spread":
            return f"{self.mean:{unit}}{f' ± {self.deviation:{unit}}' if self.count > 1 else ''}" if self.count else "none"
        write = {"interval": "{:+.2f}".format, "factor": lambda value: f"{math.exp(value):.2f}"}.get(kind)
        if write is None:
            return f"{self.mean:{spec}}" + (f" ± {self.error:{spec}}" if self.error else "")
        if kind == "factor" and math.isnan(self.mean):
            return "an unknown number of"
        low, high = (self.mean + side * (self.reach or 0.0) for side in (-1, 1))
        ends = "one sample" if self.reach is None else f"95 %: {write(low)} to {write(high)}"
        return f"{write(self.mean)}{unit and ' ' + unit} ({ends})"


def judge(margin: float, reach: float | None) -> Verdict:
    """Judge a margin over a criterion; undecided if it is not larger than the reach of its uncertainty, or that is unknown."""
    if reach is None or math.isnan(margin) or abs(margin) <= reach:
        return "undecided"
    return "yes" if margin > 0 else "no"


def average(samples: Samples, by: int = 0) -> dict[Any, float]:
    """Average the samples of each subject, or of each seed if ``by`` is 1.

    >>> average({("a", 0): 1.0, ("a", 1): 3.0, ("b", 0): 4.0})
    {'a': 2.0, 'b': 4.0}
    """
    groups: dict[Any, list[float]] = {}
    for key, value in samples.items():
        groups.setdefault(key[by], []).append(value)
    return {name: statistics.mean(group) for name, group in groups.items()}


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
