"""The stopwatch: seconds by stage, and of an iteration's items."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


class Clock:
    """Seconds by stage, in the order in which the stages first ran.

    >>> clock = Clock()
    >>> clock.add("render", 1.5); clock.add("render", 0.5)
    >>> clock.seconds
    {'render': 2.0}
    """

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self._started = time.perf_counter()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the duration of the ``with`` block to ``name``."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - begin)

    def add(self, name: str, seconds: float) -> None:
        """Add seconds that were measured elsewhere to ``name``."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    @property
    def total(self) -> float:
        """Seconds since the clock was created."""
        return time.perf_counter() - self._started


def time_items(items: Iterable[T], *, wall: bool) -> Iterator[tuple[T, float]]:
    """Yield each item with the seconds spent on all items so far, without the caller's time between them.

    Args:
        wall: wall-clock time; else process time over all threads, which other programs do not disturb.
    """
    clock = time.perf_counter if wall else time.process_time
    total, begin = 0.0, clock()
    for item in items:
        total += clock() - begin
        yield item, total
        begin = clock()
