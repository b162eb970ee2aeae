"""Threads on a CPU: the pool of nogil kernels, and the number of torch's threads for operations of a millisecond.

The kernels have a pool of their own instead of a numba threading layer, which can clash with other libraries' threads. torch's
threads wait by spinning, so that beside another busy program small operations take many times longer with two threads than
with one; and where many threads help depends on the machine. So repeated calls are timed while they do their work.
"""

from __future__ import annotations

import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..errors import InputError

_SPINS = {"GOMP_SPINCOUNT": "10000", "KMP_BLOCKTIME": "1"}
"""How long waiting threads of GNU's and of Intel's or LLVM's OpenMP spin, in rounds (about 20 microseconds) and milliseconds:
long enough for the next operation of a network, short enough to leave the core to other programs."""
_WAITING = {
    "GOMP_SPINCOUNT": r"\d+\s*[kmgt]?|infinit[ey]",
    "KMP_BLOCKTIME": r"\d+\s*[um]?s?|infinite",
    "OMP_WAIT_POLICY": r"active|passive",
}
"""Variables by which a user decides that, and their valid values; with others the libraries spin for long."""
_QUOTAS = ("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")
"""Files of a container's limit below /sys/fs/cgroup, of versions 2 and 1."""
_MOST_TORCH_THREADS = 8
_TIMED, _AGAIN, _RARELY = 2, 16, 256


def limit_spinning(environment: MutableMapping[str, str]) -> None:
    """Let OpenMP's threads wait without spinning for long; call it before torch is imported. The user's valid values win."""
    if not any(re.fullmatch(values, environment.get(name, "").strip().lower()) for name, values in _WAITING.items()):
        environment.update(_SPINS)


def count_cpus(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Return how many CPUs this process may use: those of its affinity, at most its container's quota, at least 1."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for names in _QUOTAS:
        try:
            quota, period = " ".join((cgroup / name).read_text() for name in names).split()[:2]
            if int(quota) > 0:
                cpus = min(cpus, math.ceil(int(quota) / int(period)))
        except (OSError, ValueError, ZeroDivisionError):  # no such file, or no limit: "max"
            continue
    return max(1, cpus)


def _default_threads() -> int:
    """One thread per CPU, at most OMP_NUM_THREADS if that is a number from 1 on."""
    wanted = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return min(count_cpus(), int(wanted)) if wanted.isdecimal() and int(wanted) else count_cpus()


_threads = _default_threads()


def set_threads(count: int | None = None) -> None:
    """Set the number of threads of the CPU renderers, to keep a shared machine usable; results do not depend on it.

    Args:
        count: number of threads, at least 1; None for one per CPU that this process may use.

    Raises:
        InputError: ``count`` is below 1.
    """
    global _threads
    if count is not None and count < 1:
        raise InputError(f"The number of threads must be at least 1, got {count}; use None for one per CPU.")
    _threads = count or _default_threads()


def get_threads() -> int:
    """Return the number of threads that the CPU renderers use."""
    return _threads


def run_all(tasks: Sequence[Callable[[], Any]]) -> list[Any]:
    """Run independent tasks in the thread pool and return their results in order; the first exception is raised.

    >>> run_all([lambda: 1, lambda: 2])
    [1, 2]
    """
    return run_stages(tasks)[0]


def run_stages(*stages: Sequence[Callable[[], Any]]) -> list[list[Any]]:
    """Run stages of independent tasks, each when the one before is done; the pool's threads are woken only once.

    >>> run_stages([lambda: 1, lambda: 2], [lambda: 3])
    [[1, 2], [3]]

    Returns:
        The results by stage, in order; the first exception is raised, and tasks that have not begun then are left out.
    """
    widest = max(map(len, stages), default=0)
    if _threads == 1 or widest <= 1:
        return [[task() for task in stage] for stage in stages]
    results: list[list[Any]] = [[None] * len(stage) for stage in stages]
    missing, done = [len(stage) for stage in stages], threading.Condition()
    open_tasks = iter([(s, place, task) for s, stage in enumerate(stages) for place, task in enumerate(stage)])
    failed = threading.Event()

    def work() -> None:
        for stage, place, task in open_tasks:  # shared: each task is taken once, in order
            with done:
                done.wait_for(lambda stage=stage: not any(missing[:stage]))
            if failed.is_set():
                return
            try:
                results[stage][place] = task()
            except BaseException:
                failed.set()
                raise
            finally:
                with done:
                    missing[stage] -= 1
                    done.notify_all()

    pool, helpers = _pool(_threads), min(_threads, widest) - 1
    running = [pool.submit(work) for _ in range(helpers)]
    try:
        work()  # this thread computes too: a sleeping one takes longer to wake than a small task
    finally:
        errors = [error for helper in running if (error := helper.exception())]
    if errors:
        raise errors[0]
    return results


def split_range(count: int) -> list[tuple[int, int]]:
    """Split ``count`` items into one [begin, end) per thread."""
    return [(count * i // _threads, count * (i + 1) // _threads) for i in range(_threads)]


@lru_cache(maxsize=1)
def _pool(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="microdreamer-render")


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch use ``count`` threads meanwhile."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class ThreadTuner:
    """Finds the number of torch's threads with which repeated calls are fastest at the moment, by timing them.

    The first calls of a kind try 1, 2, 4, ... threads, up to torch's number and to eight; later the neighbours of the best are
    tried again, ever more rarely while nothing changes. Results must not depend on the number of threads.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock = clock
        self._kinds: dict[Any, _Timings] = {}

    def __call__(self, kind: Any, function: Callable[[], Any]) -> Any:
        """Call ``function`` with the number of threads that suits calls of its kind."""
        import torch

        most = torch.get_num_threads()
        if most == 1:
            return function()
        timings = self._kinds.setdefault((kind, most), _Timings(most))
        count = timings.choose()
        with torch_threads(count):
            begin = self._clock()
            result = function()
            timings.add(count, self._clock() - begin)
        return result


class _Timings:
    """Seconds of one kind of call by the number of threads; None is noted for the first call, which prepares things."""

    def __init__(self, most: int):
        most = min(most, _MOST_TORCH_THREADS)
        self._counts = sorted({*(1 << i for i in range(most.bit_length())), most})
        self._best, self._wait, self._calls = most, _AGAIN, 0
        self._seconds: dict[int, float] = {}
        self._open = [most, *(count for count in self._counts for _ in range(_TIMED))]

    def choose(self) -> int:
        if not self._open and self._calls >= self._wait:
            place = self._counts.index(self._best)
            near = self._counts[max(place - 1, 0) : place + 2]
            self._open = [count for count in near for _ in range(_TIMED)]
            self._seconds = {}
        return self._open[0] if self._open else self._best

    def add(self, count: int, seconds: float) -> None:
        self._calls += 1
        if not self._open:
            return
        self._open.pop(0)
        self._seconds[count] = min(seconds, self._seconds.get(count, math.inf))
        if self._open:
            return
        fastest = min(self._seconds, key=self._seconds.__getitem__)
        self._wait = _AGAIN if fastest != self._best else min(2 * self._wait, _RARELY)
        self._best, self._calls = fastest, 0
