"""The thread pool of nogil kernels, used instead of a numba threading layer, which can clash with other libraries' threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

from ..errors import InputError

_threads = os.cpu_count() or 1


def set_threads(count: int | None = None) -> None:
    """Set the number of threads of the CPU renderers, to keep a shared machine usable; results do not depend on it.

    Args:
        count: number of threads, at least 1; None for one per CPU.

    Raises:
        InputError: ``count`` is below 1.
    """
    global _threads
    if count is not None and count < 1:
        raise InputError(f"The number of threads must be at least 1, got {count}; use None for one per CPU.")
    _threads = count or os.cpu_count() or 1


def get_threads() -> int:
    """Return the number of threads that the CPU renderers use."""
    return _threads


def run_all(tasks: Sequence[Callable[[], Any]]) -> list[Any]:
    """Run independent tasks in the thread pool and return their results in order; the first exception is raised.

    >>> run_all([lambda: 1, lambda: 2])
    [1, 2]
    """
    if _threads == 1 or len(tasks) <= 1:
        return [task() for task in tasks]
    return [future.result() for future in [_pool(_threads).submit(task) for task in tasks]]


def split_range(count: int) -> list[tuple[int, int]]:
    """Split ``count`` items into one [begin, end) per thread."""
    return [(count * i // _threads, count * (i + 1) // _threads) for i in range(_threads)]


@lru_cache(maxsize=1)
def _pool(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="microdreamer-render")
