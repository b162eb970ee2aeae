"""The thread pool that runs nogil kernels; no numba threading layer, so that it works next to any other user of threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

from ..errors import InputError

_threads = os.cpu_count() or 1


def set_threads(count: int | None = None) -> None:
    """Limit the CPU renderers, because a shared machine should stay usable; results do not depend on the count.

    Args:
        count: number of threads, at least 1; None for one per CPU.

    Raises:
        InputError: if ``count`` is below 1.
    """
    global _threads
    if count is not None and count < 1:
        raise InputError(f"The number of threads must be at least 1, got {count}; use None for one per CPU.")
    _threads = count or os.cpu_count() or 1


def get_threads() -> int:
    """The number of threads that the CPU renderers use."""
    return _threads


def run_all(tasks: Sequence[Callable[[], Any]]) -> list[Any]:
    """Run tasks that do not depend on each other and return their results in order; the first failure is raised."""
    if _threads == 1 or len(tasks) <= 1:
        return [task() for task in tasks]
    return [future.result() for future in [_pool(_threads).submit(task) for task in tasks]]


def shares(count: int) -> list[tuple[int, int]]:
    """[begin, end) of each thread's part of ``count`` items."""
    return [(count * i // _threads, count * (i + 1) // _threads) for i in range(_threads)]


@lru_cache(maxsize=1)
def _pool(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="microdreamer-render")
