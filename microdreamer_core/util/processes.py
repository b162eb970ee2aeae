"""Independent tasks in one process or several, each with one thread of torch: seconds do not depend on their number."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from typing import Any, TypeVar

import torch

from ..errors import Cancelled
from .hooks import Hook

T = TypeVar("T")
Task = Callable[[T, Hook | None], Any]
"""task(item, check): does an item and calls ``check`` often, which raises to stop."""

_stop = None


def run_here(task: Task[T], items: Sequence[T], check: Hook | None = None) -> Iterator[T]:
    """Do all items in this process and yield each when it is done; torch's number of threads is put back at the end."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for item in items:
            task(item, check)
            yield item
    finally:
        torch.set_num_threads(threads)


def run_parallel(task: Task[T], items: Sequence[T], workers: int, check: Hook | None = None) -> Iterator[T]:
    """Do all items in processes, started in their order, and yield each when it is done.

    Args:
        task: can be pickled. check: called twice a second in this process; when it raises, the workers stop.

    Raises:
        BrokenProcessPool: a worker died.
    """
    context = multiprocessing.get_context("spawn")  # a forked torch may hang, and CUDA cannot be forked at all
    stop = context.Event()
    pool = ProcessPoolExecutor(workers, context, _begin_worker, (stop,))
    try:
        waiting = {pool.submit(_do, task, item): item for item in items}
        while waiting:
            for future in wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED).done:
                future.result()
                yield waiting.pop(future)
            if check is not None:
                check()
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


def _begin_worker(stop: Any) -> None:
    """Initialise a worker: it ignores Ctrl-C, and stops when the parent process tells it to."""
    global _stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _stop = stop
    torch.set_num_threads(1)


def _do(task: Task[T], item: T) -> None:
    task(item, _check_stop)


def _check_stop() -> None:
    if _stop is not None and _stop.is_set():
        raise Cancelled
